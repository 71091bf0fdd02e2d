"""Who called whom: the two ends of one report, and the service that was meant.

The proxy that reports is known by its certificate and its node id; the other end by its
certificate, its address, or the cluster that was called.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar, cast

from meshbus.mixer.workloads import Peer, find_peer
from meshbus.model.rows import Endpoint, EndpointShard, Service, WorkloadInstance
from meshbus.model.world import Query, World

UNKNOWN = "unknown"
MAX_REMEMBERED = 20_000
_CANONICAL_NAME = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_CANONICAL_REVISION = (
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
)


class Party(NamedTuple):
    """One end, as metrics label it; `unknown` what is not known."""

    workload: str = UNKNOWN
    namespace: str = UNKNOWN
    principal: str = UNKNOWN
    app: str = UNKNOWN
    version: str = UNKNOWN
    canonical_service: str = UNKNOWN
    canonical_revision: str = UNKNOWN
    cluster: str = UNKNOWN


class Target(NamedTuple):
    """The service that was called."""

    host: str = UNKNOWN
    name: str = UNKNOWN
    namespace: str = UNKNOWN
    external: bool = False
    """Outside the mesh."""


_A = TypeVar("_A", Party, Target)
NOBODY = Party()
NOWHERE = Target()


def party_of(
    workload: str, namespace: str, labels: Mapping[str, str], cluster: str, principal: str
) -> Party:
    """An end whose workload is known.

    Source: Istio, standard metrics; canonical names as in its pkg/model labels.
    """

    def first(names: tuple[str, ...], default: str) -> str:
        return next((labels[name] for name in names if labels.get(name)), default)

    return Party(
        workload or UNKNOWN,
        namespace or UNKNOWN,
        principal or UNKNOWN,
        labels.get("app") or UNKNOWN,
        labels.get("version") or UNKNOWN,
        first(_CANONICAL_NAME, workload or UNKNOWN),
        first(_CANONICAL_REVISION, "latest"),
        cluster or UNKNOWN,
    )


def party_of_instance(row: WorkloadInstance, cluster: str, principal: str = "") -> Party:
    """The end that an instance is; `cluster` is that of rows that do not say."""
    return party_of(row.workload, row.namespace, row.labels, row.cluster or cluster, principal)


def service_name(row: WorkloadInstance) -> str:
    """How spans name the service of an instance: `CANONICAL_NAME.NAMESPACE`, as Istio's do."""
    return f"{party_of_instance(row, '').canonical_service}.{row.namespace}"


class Directory:
    """Answers who is who in the world, and remembers its answers until the registry changes."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        """Name of the cluster that workloads are in unless they say otherwise."""
        self.world = World()
        self._known: dict[tuple[object, ...], Party | Target] = {}

    def moved(self, world: World, touched: frozenset[Query]) -> None:
        """The world is another one."""
        self.world = world
        if any(query.table.startswith("reg.") for query in touched):
            self._known.clear()

    def peer(self, peer: Peer) -> Party:
        """The end that a connection came from."""
        return self._remembered(("peer", peer), lambda: _party_of_peer(self, peer))

    def endpoint(self, host: str, address: str) -> Party:
        """The end that a call to a service went to.

        Args:
            host: Of the service.
            address: Of the endpoint, without port.
        """
        return self._remembered(("endpoint", host, address), lambda: _party_at(self, host, address))

    def called(self, cluster: str, authority: str) -> Target:
        """The service that an outbound cluster stands for: `outbound|PORT|SUBSET|HOST`."""
        return self._remembered(
            ("called", cluster, authority),
            lambda: _target_of_cluster(self.world, cluster, authority),
        )

    def serving(self, row: WorkloadInstance, cluster: str, authority: str) -> Target:
        """The service that a call to an instance meant.

        Args:
            cluster: `inbound|PORT||`.
            authority: Of the request; decides between several services of the port.
        """
        return self._remembered(
            ("serving", row.namespace, row.name, cluster, authority),
            lambda: _target_of_instance(self.world, row, cluster, authority),
        )

    def _remembered(self, question: tuple[object, ...], find: Callable[[], _A]) -> _A:
        known = self._known.get(question)
        if known is None:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            known = self._known[question] = find()
        return cast(_A, known)


def _party_of_peer(directory: Directory, peer: Peer) -> Party:
    row = find_peer(directory.world, peer)
    if row is not None:
        return party_of_instance(row, directory.cluster, peer.uri)
    account = peer.account
    if account is None:
        return NOBODY._replace(principal=peer.uri or UNKNOWN)
    return NOBODY._replace(namespace=account[0], principal=peer.uri)


def _party_at(directory: Directory, host: str, address: str) -> Party:
    world = directory.world
    rows = [e.row for e in world.entries(Query("reg.workloads", "address", address))]
    if len(rows) == 1:
        return party_of_instance(rows[0], directory.cluster)
    for service in world.entries(Query("reg.services", "host", host)):
        of_service = (service.row.namespace, host)
        for entry in world.entries(Query("reg.endpoints", "service", of_service)):
            shard: EndpointShard = entry.row
            for endpoint in shard.endpoints:
                if address in endpoint.addresses:
                    return _party_of_endpoint(endpoint, directory.cluster)
    return NOBODY


def _party_of_endpoint(endpoint: Endpoint, cluster: str) -> Party:
    return party_of(
        endpoint.workload, endpoint.namespace, endpoint.labels, endpoint.cluster or cluster, ""
    )


def _target_of_cluster(world: World, cluster: str, authority: str) -> Target:
    direction, _, rest = cluster.partition("|")
    if direction != "outbound" or rest.count("|") != 2:
        host = authority if direction in {"PassthroughCluster", "http_proxy"} else ""
        return Target(host or UNKNOWN, cluster or UNKNOWN, UNKNOWN)
    host = rest.rpartition("|")[2]
    for entry in world.entries(Query("reg.services", "host", host)):
        row: Service = entry.row
        return Target(host, row.name or host, row.namespace, row.external)
    return Target(host, host, UNKNOWN)


def _target_of_instance(
    world: World, row: WorkloadInstance, cluster: str, authority: str
) -> Target:
    services: list[Service] = [
        entry.row
        for entry in world.entries(Query("reg.services", "namespace", row.namespace))
        if entry.row.selector and entry.row.selector.items() <= row.labels.items()
    ]
    if not services:
        return NOWHERE
    called = authority.partition(":")[0]
    port = cluster.split("|")[1] if cluster.count("|") == 3 else ""

    def fit(service: Service) -> tuple[bool, bool]:
        names = {service.host, service.name, f"{service.name}.{service.namespace}"}
        numbers = {str(p.target_port or p.number) for p in service.ports}
        return called in names, port in numbers

    best = max(services, key=fit)
    return Target(best.host, best.name, best.namespace)
