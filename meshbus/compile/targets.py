"""Whom a policy concerns: `selector` and `targetRefs` of policies of security.istio.io.

A policy may be attached to a Gateway of the Gateway API, and then concerns its workloads. Services,
ServiceEntries and GatewayClasses are targets at waypoints alone, which no workload here is: what is
attached to those concerns nobody.

Source: https://istio.io/latest/docs/reference/config/type/workload-selector/
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from meshbus.compile.written import entries, fields, pairs

Labels = tuple[tuple[str, str], ...]
GATEWAY_API = "gateway.networking.k8s.io"
GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
"""The label that ties a workload to a Gateway of the Gateway API."""


class Target(NamedTuple):
    """The workloads of a policy."""

    selector: Labels
    """Empty: every workload of the namespace, or of the mesh in the root namespace."""
    gateways: tuple[str, ...] | None
    """Names of Gateways that it is attached to; None: it is not attached to anything."""

    def concerns(self, labels: Labels, same_namespace: bool) -> bool:
        """Whether workloads of these labels follow the policy. `same_namespace`: they are in the
        policy's namespace, where alone it can be attached."""
        if self.gateways is not None:
            return same_namespace and dict(labels).get(GATEWAY_NAME, "") in self.gateways
        return not self.selector or set(labels).issuperset(self.selector)


def target_of(spec: Mapping[str, Any]) -> Target:
    """The workloads that a policy's spec names."""
    selector = pairs(fields(spec.get("selector")).get("matchLabels"))
    references = entries(spec.get("targetRefs"))
    if spec.get("targetRef"):
        references.append(fields(spec["targetRef"]))
    if not references:
        return Target(selector, None)
    names = [
        str(reference.get("name") or "")
        for reference in references
        if (reference.get("group"), reference.get("kind")) == (GATEWAY_API, "Gateway")
    ]
    return Target((), tuple(sorted(names)))
