"""MeshNetworks: registries that nobody knows.

Source: Istio, analysis message IST0126.
"""

from collections.abc import Iterator

from meshbus.analyze.messages import LEVELS, Message
from meshbus.analyze.objects import NETWORKS_NAME, SYSTEM_NAMESPACE, Objects, record, records, text

_KNOWN = frozenset({"Mock", "Kubernetes", "External"})
_CLUSTERS = "istio/multiCluster"


def registries(objects: Objects) -> Iterator[Message]:
    """Members of networks come from registries that are there."""
    known = set(_KNOWN)
    for one in objects.of("", "Secret"):
        if one.labels.get(_CLUSTERS) == "true":
            for field in ("data", "stringData"):
                known.update(map(str, record(one.content.get(field))))
    for name, network in objects.networks().items():
        for member in records(record(network).get("endpoints")):
            registry = text(member.get("fromRegistry"))
            if registry and registry not in known:
                yield Message(
                    "IST0126",
                    LEVELS["IST0126"],
                    f"network {name}: there is no registry {registry}",
                    f"MeshNetworks {SYSTEM_NAMESPACE}/{NETWORKS_NAME}",
                )
