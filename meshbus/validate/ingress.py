"""Rules of Ingress.

Source: https://kubernetes.io/docs/concepts/services-networking/ingress/
"""

from msgspec import UnsetType

from meshbus.api.addresses import is_ip
from meshbus.api.ingress import IngressBackend, IngressClassSpec, IngressSpec
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import is_namespace, is_subdomain
from meshbus.validate.report import Findings


@independent
def check(spec: IngressSpec, name: ObjectName, out: Findings) -> None:
    """An Ingress."""
    if isinstance(spec.default_backend, UnsetType) and not spec.rules:
        out.required("spec", "either defaultBackend or rules must be given")
    if not isinstance(spec.default_backend, UnsetType):
        _check_backend(spec.default_backend, "spec.defaultBackend", out)
    for index, tls in enumerate(spec.tls):
        for number, host in enumerate(tls.hosts):
            _check_host(host, f"spec.tls[{index}].hosts[{number}]", out)
    for index, rule in enumerate(spec.rules):
        path = f"spec.rules[{index}]"
        if rule.host:
            _check_host(rule.host, f"{path}.host", out)
        if isinstance(rule.http, UnsetType):
            continue
        if not rule.http.paths:
            out.required(f"{path}.http.paths")
        for number, item in enumerate(rule.http.paths):
            at = f"{path}.http.paths[{number}]"
            if item.path_type != "ImplementationSpecific" or item.path:
                if not item.path.startswith("/"):
                    out.error(f"{at}.path", "must be an absolute path")
                elif any(bad in item.path for bad in ("//", "/./", "/../", "%2f", "%2F")):
                    out.error(
                        f"{at}.path", f"{item.path!r}: `//`, `.`, `..` and %2f are not allowed"
                    )
            _check_backend(item.backend, f"{at}.backend", out)


@independent
def check_class(spec: IngressClassSpec, name: ObjectName, out: Findings) -> None:
    """An IngressClass."""
    if not spec.controller:
        out.required("spec.controller")


@independent
def _check_host(host: str, path: str, out: Findings) -> None:
    if is_ip(host):
        out.error(path, f"{host!r} is an address: a name is needed")
    elif not is_subdomain(host.removeprefix("*.")):
        out.error(path, f"{host!r}: a name in lower case, maybe after `*.`")


@independent
def _check_backend(backend: IngressBackend, path: str, out: Findings) -> None:
    service = backend.service
    if isinstance(service, UnsetType):
        if isinstance(backend.resource, UnsetType):
            out.required(path, "a service is required")
        return
    if not is_namespace(service.name):
        out.error(f"{path}.service.name", f"{service.name!r} is not the name of a service")
    port = service.port
    if isinstance(port, UnsetType) or (
        isinstance(port.name, UnsetType) and isinstance(port.number, UnsetType)
    ):
        out.required(f"{path}.service.port", "name or number is required")
    elif isinstance(port.number, int) and not 1 <= port.number <= 65535:
        out.error(f"{path}.service.port.number", f"{port.number}: port must be between 1-65535")
