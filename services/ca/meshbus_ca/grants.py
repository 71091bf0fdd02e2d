"""Who may have which names: pure.

The xds-gateway may ask for any workload of the trust domain, because it has authenticated the
proxies; a service only for itself.
"""

import ipaddress
import re

from meshbus.model.requests import SignRequest
from meshbus_ca.issue import Names

GATEWAY = "xds-gateway"
SERVICES = frozenset({"config", "discovery", "ca", GATEWAY, "policy", "telemetry"})
MAX_NAMES = 16
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
NAMESPACE = re.compile(rf"{_LABEL}\Z")
ACCOUNT = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\Z")
"""Kubernetes names: RFC 1123 labels and subdomains."""


class ForbiddenError(Exception):
    """The asker may not have this name."""


def granted_names(request: SignRequest, *, trust_domain: str, root_namespace: str) -> Names:
    """The names of a certificate that is asked for.

    Raises:
        ForbiddenError: The asker may not have one of them, or it is malformed.
    """
    service = request.service
    if service not in SERVICES:
        raise ForbiddenError(f"{service!r} is not a service of the mesh")
    if len(request.dns_names) > MAX_NAMES or len(request.ip_addresses) > MAX_NAMES:
        raise ForbiddenError(f"more than {MAX_NAMES} names")
    own_id = f"spiffe://{trust_domain}/ns/{root_namespace}/sa/meshbus-{service}"
    if request.spiffe_id != own_id:
        if service != GATEWAY:
            raise ForbiddenError(f"{service} may only have {own_id}, not {request.spiffe_id}")
        _check_workload(request.spiffe_id, trust_domain, root_namespace)
        if request.dns_names or request.ip_addresses:
            raise ForbiddenError(
                "the certificate of a workload has its SPIFFE id and no other name"
            )
        return Names(request.spiffe_id, common_name=_printable(request.subject))
    for name in request.dns_names:
        if not is_own_dns_name(name, service, root_namespace):
            raise ForbiddenError(f"{service} may not have the DNS name {name!r}")
    for address in request.ip_addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise ForbiddenError(f"{address!r} is not an IP address") from error
    return Names(
        own_id,
        tuple(dict.fromkeys(request.dns_names)),
        tuple(dict.fromkeys(request.ip_addresses)),
        _printable(request.subject),
    )


def own_dns_names(service: str, root_namespace: str) -> frozenset[str]:
    """DNS names that a service of the default revision goes by."""
    bases = [f"{name}.{root_namespace}" for name in (service, f"meshbus-{service}")]
    return frozenset(
        {"localhost"}.union(*({base, f"{base}.svc", f"{base}.svc.cluster.local"} for base in bases))
    )


def is_own_dns_name(name: str, service: str, root_namespace: str) -> bool:
    """Whether a DNS name is one that a service goes by: `localhost`, or that of its Kubernetes
    Service, which has the service's name, maybe after `meshbus-` and before `-REVISION`. Webhooks
    of a pod that runs all services are called at `meshbus-all`."""
    if name == "localhost":
        return True
    host, _, rest = name.partition(".")
    if rest not in (
        root_namespace,
        f"{root_namespace}.svc",
        f"{root_namespace}.svc.cluster.local",
    ):
        return False
    bases = [service, f"meshbus-{service}", *(["meshbus-all"] if service == "config" else ())]
    return any(
        host == base or (host.startswith(f"{base}-") and NAMESPACE.match(host)) for base in bases
    )


def _check_workload(spiffe_id: str, trust_domain: str, root_namespace: str) -> None:
    """Raises: ForbiddenError: not `spiffe://TRUST_DOMAIN/ns/NS/sa/SA`, or one of a service."""
    prefix = f"spiffe://{trust_domain}/ns/"
    namespace, separator, account = spiffe_id.removeprefix(prefix).partition("/sa/")
    if (
        not spiffe_id.startswith(prefix)
        or not separator
        or not NAMESPACE.match(namespace)
        or not ACCOUNT.match(account)
    ):
        raise ForbiddenError(
            f"{spiffe_id!r} is not the identity of a workload: {prefix}NAMESPACE/sa/ACCOUNT"
        )
    if namespace == root_namespace and account in {f"meshbus-{s}" for s in SERVICES}:
        raise ForbiddenError(f"{spiffe_id} belongs to a service of the control plane")


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())
