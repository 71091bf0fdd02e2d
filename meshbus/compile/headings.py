"""Virtual services without their routes: what decides who follows one, and for which hosts.

Lists of virtual services are made of these, so that a changed route re-runs what is made of that
route and no list: it is by far the most frequent change, and lists are as long as the mesh is big.
"""

from typing import NamedTuple

from meshbus.compile.engine import Reader
from meshbus.compile.names import MESH_GATEWAY, fqdn
from meshbus.compile.namespaces import is_discovered
from meshbus.compile.written import entries, pairs, texts
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.model.world import Query

ISTIO_NETWORKING = "networking.istio.io/"
SECTIONS = ("http", "tls", "tcp")

Labels = tuple[tuple[str, str], ...]


class Heading(NamedTuple):
    """What a virtual service says besides its routes."""

    namespace: str
    name: str
    created: float
    hosts: tuple[str, ...]
    """In full, as they are written."""
    gateways: frozenset[str]
    """`mesh`, or `NAMESPACE/NAME` of a Gateway."""
    export_to: tuple[str, ...]
    """Empty: as the mesh's default says."""
    sections: frozenset[str]
    """Those of `SECTIONS` that it has."""
    sources: frozenset[Labels]
    """Every `sourceLabels`."""
    names_callers: bool
    """Some routes are for callers of a `sourceNamespace`."""
    mirrors: bool
    """Some requests go to other destinations as well."""

    @property
    def for_sidecars(self) -> bool:
        """Sidecars follow it."""
        return MESH_GATEWAY in self.gateways


def heading_of(row: ConfigObject) -> Heading:
    """The heading of an object."""
    spec, namespace = row.spec, row.namespace
    rules = [rule for section in SECTIONS for rule in entries(spec.get(section))]
    matches = [match for rule in rules for match in entries(rule.get("match"))]
    sources = (pairs(match.get("sourceLabels")) for match in matches)
    gateways = list(texts(spec.get("gateways"))) or [MESH_GATEWAY]
    return Heading(
        namespace,
        row.name,
        row.created,
        tuple(dict.fromkeys(fqdn(host, namespace) for host in texts(spec.get("hosts")))),
        frozenset(qualified_gateway(name, namespace) for name in gateways),
        tuple(texts(spec.get("exportTo"))),
        frozenset(section for section in SECTIONS if spec.get(section)),
        frozenset(labels for labels in sources if labels),
        any(match.get("sourceNamespace") for match in matches),
        any(rule.get("mirror") or rule.get("mirrors") for rule in rules),
    )


def heading(reader: Reader, key: Key) -> Heading | None:
    """Node: the heading of a virtual service; None: it is not there, or none of Istio's."""
    row = reader.get(key)
    if row is None or row.deletion is not None or not row.api_version.startswith(ISTIO_NETWORKING):
        return None
    return heading_of(row)


def virtual_service_keys(reader: Reader, namespace: str) -> tuple[Key, ...]:
    """Node: keys of the virtual services of a namespace; none if it is not looked at."""
    if not reader.node(is_discovered, namespace):
        return ()
    query = Query("cfg.virtualservices", "namespace", namespace)
    return tuple([entry.key for entry in reader.entries(query)])


def qualified_gateway(name: str, namespace: str) -> str:
    """`NAMESPACE/NAME` of a gateway that an object of `namespace` names."""
    return name if name == MESH_GATEWAY or "/" in name else f"{namespace}/{name}"
