"""Addresses of services that nobody gave one, and of hosts of ServiceEntries without one."""

import hashlib
import ipaddress
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from meshbus.compile.engine import Reader
from meshbus.compile.names import is_wildcard
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.model.world import Query

VIP_NETWORK = ipaddress.ip_network("240.240.0.0/16")
VIP_NETWORK_V6 = ipaddress.ip_network("2001:2::/48")
ALLOCATE_LABEL = "networking.istio.io/enable-autoallocate-ip"
SERVICE = "service"
ENTRY = "entry"
BOTH = ("IPv4", "IPv6")
"""Families of addresses where nothing else is known, the preferred one first."""
_NETWORKS = {"IPv4": VIP_NETWORK, "IPv6": VIP_NETWORK_V6}


def virtual_addresses(reader: Reader) -> dict[tuple[str, str, str], int]:
    """Node: offset in `VIP_NETWORK` and `VIP_NETWORK_V6` of each service that nobody gave an
    address, and of each host of a ServiceEntry without one; by (kind, namespace, name or host).

    A service keeps its address whatever comes and goes, but for hash collisions, which services
    win before entries, and the first by name among either. What is more than there are addresses
    gets none.
    Source: the networks are those of Istio's automatic allocation.
    """
    size = VIP_NETWORK.num_addresses - 2
    wanted: dict[tuple[str, str, str], None] = {}
    for key in reader.keys(Query("cfg.services", "all", None)):
        if reader.node(_service_wants, key):
            wanted[SERVICE, key.namespace, key.name] = None
    hosts: set[tuple[str, str, str]] = set()
    for key in reader.keys(Query("cfg.serviceentries", "all", None)):
        hosts.update((ENTRY, key.namespace, host) for host in reader.node(_entry_wants, key))
    wanted.update(dict.fromkeys(sorted(hosts)))
    taken: dict[int, tuple[str, str, str]] = {}
    for name in itertools.islice(wanted, size):
        text = "/".join(name[1:] if name[0] == SERVICE else name)
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        offset = int.from_bytes(digest, "big") % size
        while offset in taken:
            offset = (offset + 1) % size
        taken[offset] = name
    return {name: offset + 1 for offset, name in taken.items()}


def _service_wants(reader: Reader, key: Key) -> bool:
    """Node: nobody gave a service an address. Of one alone, so that what else of a service changes
    does not touch the others."""
    spec = reader.get(key).spec
    given = spec.get("clusterIP") or spec.get("clusterIPs")
    return not given and spec.get("type") != "ExternalName"


def _entry_wants(reader: Reader, key: Key) -> tuple[str, ...]:
    """Node: hosts of a ServiceEntry that get addresses."""
    row: ConfigObject = reader.get(key)
    if not allocates(row):
        return ()
    return tuple(host for host in row.spec.get("hosts") or () if isinstance(host, str))


def virtual_address(
    reader: Reader, kind: str, namespace: str, name: str, families: Iterable[str]
) -> list[str]:
    """The addresses of one service or host, one of each of `families`; none: it has some of its
    own, or can have none."""
    offset = reader.node(_offset, kind, namespace, name)
    return [str(_NETWORKS[family][offset]) for family in families] if offset else []


def _offset(reader: Reader, kind: str, namespace: str, name: str) -> int:
    """Node: the offset of one alone, so that who reads it is not touched by the others."""
    return reader.node(virtual_addresses).get((kind, namespace, name), 0)


def allocates(entry: ConfigObject) -> bool:
    """A ServiceEntry gets addresses: it has none, somebody can resolve its hosts, and nobody has
    said otherwise.

    Source: Istio, ServiceEntry reference ("Address allocation").
    """
    spec = entry.spec
    if spec.get("addresses") or str(spec.get("resolution") or "NONE") == "NONE":
        return False
    if entry.labels.get(ALLOCATE_LABEL, "").lower() == "false":
        return False
    return not any(is_wildcard(str(host)) for host in spec.get("hosts") or ())


def families_of_service(spec: Mapping[str, Any], mesh: Iterable[str]) -> list[str]:
    """Families of a Service's addresses, the preferred one first.

    Args:
        spec: Of the Service.
        mesh: Families that the mesh has, the preferred one first.
    Source: Kubernetes, "IPv4/IPv6 dual-stack": of one family, that of the cluster, unless
        `ipFamilyPolicy` or `ipFamilies` say otherwise.
    """
    there = list(mesh)
    wanted = [str(family) for family in spec.get("ipFamilies") or there[:1]]
    if str(spec.get("ipFamilyPolicy") or "").endswith("DualStack"):
        wanted += there
    return [family for family in dict.fromkeys(wanted) if family in there]
