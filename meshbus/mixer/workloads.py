"""Who is at the other end: peers of requests found among the workloads of the mesh.

A certificate proves a namespace and a service account, and names the workload in its subject. An
address alone proves nothing, so it is believed only where there is no certificate, or among
instances that the certificate fits.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from meshbus.mixer.values import Value, parse_ip
from meshbus.model.rows import WorkloadInstance
from meshbus.model.world import Query, World

_SPIFFE = re.compile(r"spiffe://([^/]+)/ns/([^/]+)/sa/([^/]+)")
_COMMON_NAME = re.compile(r"(?:^|,)\s*CN=((?:[^,\\]|\\.)*)")


class Peer(NamedTuple):
    """What a proxy says of a connection's other end; empty what it does not know."""

    uri: str = ""
    """SPIFFE id of its certificate."""
    subject: str = ""
    """Subject of its certificate: `CN=reviews-v1`."""
    address: str = ""
    """IP address, without port."""

    @property
    def principal(self) -> str:
        """The identity as Istio writes it, without scheme."""
        return self.uri.removeprefix("spiffe://")

    @property
    def account(self) -> tuple[str, str] | None:
        """(namespace, service account), None without a SPIFFE id of Istio's form."""
        found = _SPIFFE.fullmatch(self.uri)
        return (found[2], found[3]) if found else None

    @property
    def workload(self) -> str:
        """Name of the workload in the certificate's subject."""
        found = _COMMON_NAME.search(self.subject)
        return found[1] if found else ""


def host_of(address: str) -> str:
    """The host of `HOST:PORT` or `[HOST]:PORT`; an address without port is itself."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address if address.count(":") != 1 else address.partition(":")[0]


def find_peer(world: World, peer: Peer) -> WorkloadInstance | None:
    """The instance at the other end, or one that is equal to it but for its name and address.

    None when the mesh knows nothing of it, or too much: several workloads of one service account.
    """
    here = [e.row for e in world.entries(Query("reg.workloads", "address", peer.address))]
    if not peer.uri:
        return here[0] if len(here) == 1 else None
    fitting: list[WorkloadInstance] = [
        entry.row for entry in world.entries(Query("reg.workloads", "account", peer.account))
    ]
    candidates = [row for row in fitting if row.workload == peer.workload] or fitting
    for row in candidates:
        if row in here:
            return row
    return candidates[0] if len({row.workload for row in candidates}) == 1 else None


def instance_attributes(side: str, row: WorkloadInstance) -> Iterator[tuple[str, Value]]:
    """The attributes of a workload instance.

    Args:
        side: `source` or `destination`.
    Source: Mixer 1.4, kubernetesenv adapter.
    """
    yield f"{side}.uid", f"kubernetes://{row.name}.{row.namespace}"
    yield f"{side}.name", row.name
    yield f"{side}.namespace", row.namespace
    yield f"{side}.serviceAccount", row.service_account or "default"
    yield f"{side}.labels", row.labels
    yield f"{side}.workload.name", row.workload
    yield f"{side}.workload.namespace", row.namespace
    yield f"{side}.workload.uid", f"istio://{row.namespace}/workloads/{row.workload}"


def source_attributes(world: World, peer: Peer) -> dict[str, Value]:
    """The attributes of who calls."""
    out: dict[str, Value] = {}
    if peer.principal:
        out["source.principal"] = out["source.user"] = peer.principal
    account = peer.account
    if account is not None:
        out["source.namespace"], out["source.serviceAccount"] = account
    address = parse_ip(peer.address)
    if address is not None:
        out["source.ip"] = out["origin.ip"] = address
    row = find_peer(world, peer)
    if row is not None:
        out.update(instance_attributes("source", row))
    return out
