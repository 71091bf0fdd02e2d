"""Fields and kinds that are going away.

Source: Istio, analysis message IST0002.
"""

from collections.abc import Iterator

from meshbus.analyze.messages import Message, about
from meshbus.analyze.objects import NETWORKING, Objects, number, record, records, text

_GONE = frozenset({"ClusterRbacConfig", "RbacConfig", "ServiceRole", "ServiceRoleBinding"})


def fields(objects: Objects) -> Iterator[Message]:
    """Fields and definitions that should not be used any more."""
    for one in objects.of(NETWORKING, "VirtualService"):
        for index, rule in enumerate(records(one.spec.get("http"))):
            if number(record(record(rule.get("fault")).get("delay")).get("percent")) > 0:
                message = "fault.delay.percent is deprecated: use fault.delay.percentage"
                path = f"spec.http[{index}].fault.delay.percent"
                yield about(one, "IST0002", message, path)
    for one in objects.of(NETWORKING, "Sidecar"):
        if record(one.spec.get("outboundTrafficPolicy")).get("egressProxy"):
            path = "spec.outboundTrafficPolicy.egressProxy"
            yield about(one, "IST0002", "outboundTrafficPolicy.egressProxy is deprecated", path)
    for one in objects.of("apiextensions.k8s.io", "CustomResourceDefinition"):
        kind = text(record(one.spec.get("names")).get("kind"))
        if one.spec.get("group") == "rbac.istio.io" and kind in _GONE:
            message = f"kind {kind} of rbac.istio.io was removed from Istio"
            yield about(one, "IST0002", message, "spec.names.kind")
