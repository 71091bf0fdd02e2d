"""Services of a workload, as the policies of Istio 1.4 name workloads."""

from typing import NamedTuple

from meshbus.compile.engine import Reader
from meshbus.model.rows import EndpointShard, Service
from meshbus.model.world import Query

Labels = tuple[tuple[str, str], ...]


class ServedService(NamedTuple):
    """A service that selects a workload."""

    name: str
    host: str
    ports: tuple[tuple[int, str, tuple[int, ...]], ...]
    """Number and name of each port, and the ports of the workload behind it."""


def selecting_services(reader: Reader, namespace: str) -> tuple[tuple[Labels, ServedService], ...]:
    """Node: services of a namespace with their selectors."""
    out = []
    for entry in reader.entries(Query("reg.services", "namespace", namespace)):
        row: Service = entry.row
        if not row.selector:
            continue
        behind = reader.node(ports_behind, namespace, row.host)
        ports = tuple(
            (p.number, p.name, dict(behind).get(p.name) or (p.target_port or p.number,))
            for p in row.ports
        )
        selector = tuple(sorted(row.selector.items()))
        out.append((selector, ServedService(row.name, row.host, ports)))
    return tuple(out)


def ports_behind(
    reader: Reader, namespace: str, host: str
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Node: ports of the endpoints of a service, by name of its port."""
    found: dict[str, set[int]] = {}
    for entry in reader.entries(Query("reg.endpoints", "service", (namespace, host))):
        shard: EndpointShard = entry.row
        for endpoint in shard.endpoints:
            for name, port in endpoint.ports.items():
                found.setdefault(name, set()).add(port)
    return tuple((name, tuple(sorted(found[name]))) for name in sorted(found))


def services_of(reader: Reader, namespace: str, labels: Labels) -> tuple[ServedService, ...]:
    """The services that select workloads of these labels, by host."""
    held = set(labels)
    return tuple(
        service
        for selector, service in reader.node(selecting_services, namespace)
        if held.issuperset(selector)
    )
