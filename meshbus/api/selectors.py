"""What policies use to say whom they concern (`istio.type.v1beta1`)."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta

from meshbus.api.shape import Maybe, Shape

MatchLabels = Annotated[
    dict[str, Annotated[str, Meta(max_length=63)]],
    Meta(max_length=4096, extra={"format": "match-labels"}),
]


class WorkloadSelector(Shape, frozen=True, kw_only=True):
    """Workloads by their labels; all of them must match."""

    match_labels: MatchLabels = {}
    """Labels that a workload must have, without wildcards."""


class PolicyTargetReference(Shape, frozen=True, kw_only=True):
    """A resource that a policy is attached to."""

    group: Annotated[
        str,
        Meta(
            max_length=253,
            pattern=r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        ),
    ] = ""
    """API group of the target; empty for core kinds."""
    kind: Annotated[
        str,
        Meta(min_length=1, max_length=63, pattern=r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"),
    ]
    """Kind of the target."""
    name: Annotated[str, Meta(min_length=1, max_length=253)]
    """Name of the target."""
    namespace: str = ""
    """Must be empty: a policy reaches only targets of its own namespace."""


NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""The label of each namespace that is its name."""
TargetRefs = Maybe[Annotated[list[PolicyTargetReference], Meta(max_length=16)]]


def matches_selector(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector of Kubernetes chooses these labels; an empty one chooses all.

    Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/label-selector/
    """
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(name) != value for name, value in wanted.items()):
        return False
    return all(_meets(rule, labels) for rule in selector.get("matchExpressions") or ())


def _meets(rule: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = str(rule.get("key")), rule.get("values") or ()
    match rule.get("operator"):
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    return False
