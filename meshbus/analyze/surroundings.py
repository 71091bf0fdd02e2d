"""What the mesh stands on: definitions of the Gateway API, and what a control plane may fetch.

Source: Istio, analysis messages IST0175, IST0176.
"""

import re
from collections.abc import Iterator

from meshbus.analyze.messages import Message, about
from meshbus.analyze.objects import SECURITY, Objects, containers, record, records

_BUNDLE = "gateway.networking.k8s.io/bundle-version"
_LEAST = {
    "grpcroutes.gateway.networking.k8s.io": (1, 1, 0),
    "backendtlspolicies.gateway.networking.k8s.io": (1, 4, 0),
    "tlsroutes.gateway.networking.k8s.io": (1, 5, 0),
}
"""Versions of the Gateway API from which the definitions are those that are read."""
_VERSION = re.compile(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?")
_BLOCKED = "BLOCKED_CIDRS_IN_JWKS_URIS"
_SHOWN = 5


def definitions(objects: Objects) -> Iterator[Message]:
    """Definitions of the Gateway API are not older than what reads their objects."""
    for one in objects.of("apiextensions.k8s.io", "CustomResourceDefinition"):
        least = _LEAST.get(one.name)
        found = _VERSION.fullmatch(one.annotations.get(_BUNDLE, ""))
        if least is None or found is None:
            continue
        # A version before its release counts as the release.
        if tuple(int(part or 0) for part in found.groups()) < least:
            message = (
                f"{one.name} is of Gateway API {found[0]}: its objects are not read before "
                + ".".join(map(str, least))
            )
            yield about(one, "IST0176", message, f"metadata.annotations[{_BUNDLE}]")


def key_addresses(objects: Objects) -> Iterator[Message]:
    """Where RequestAuthentications have keys fetched, an istiod knows which addresses it must not
    ask."""
    names = [one.full_name for one in objects.of(SECURITY, "RequestAuthentication")]
    if not names:
        return
    shown = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        shown += f", and {len(names) - _SHOWN} more"
    for one in objects.of("apps", "Deployment"):
        if one.labels.get("app") != "istiod":
            continue
        template = record(record(one.spec.get("template")).get("spec"))
        if any(
            variable.get("name") == _BLOCKED and variable.get("value")
            for container in containers(template, initial=False)
            for variable in records(container.get("env"))
        ):
            continue
        message = f"fetches keys from any address for {shown}: set {_BLOCKED}"
        yield about(one, "IST0175", message, "spec.template.spec.containers")
