"""What a name of the mesh means, to whom. Pure: the rows of the registry in, addresses out.

- `reviews.default.svc.cluster.local`, `reviews.default.svc`, `reviews.default`: the addresses of
  the service; of a headless one those of its ready endpoints.
- `pod-0.db.default.svc.cluster.local`: one endpoint of a headless service.
- A host of a ServiceEntry: its addresses, else those that were allocated for it; without
  resolution those of the workloads that it selects.
- What is below `*.example.com` of a ServiceEntry: the addresses of the entry, when it has some.

A name means what it means to the proxy of the caller: the same function chooses among the services
of a host (`visible_service`). Who is outside the mesh, and Envoys themselves, reach no virtual
address: they are given endpoints of services, and hosts of ServiceEntries are none of the mesh's
business. So it is with what a proxy is not sent: that a Kubernetes service is there everybody
knows, and calls to it go where the proxy lets unknown traffic go.
Of several control planes that of the caller's proxy counts, whichever is asked: its pod says since
its injection whose it is.
Source: Istio, "DNS proxying"; Kubernetes, "DNS for Services and Pods".
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from meshbus.compile.engine import Engine, Reader
from meshbus.compile.families import Families, families_of
from meshbus.compile.names import CLUSTER_DOMAIN
from meshbus.compile.scope import visible_service
from meshbus.compile.sidecars import Labels, sidecar_of, viewer_of
from meshbus.compile.visibility import Ref
from meshbus.model.revisions import REVISION_LABEL, RevisionView, WorldOfRevision
from meshbus.model.rows import EndpointShard, Service, WorkloadInstance
from meshbus.model.world import Query, World

SERVICES_DOMAIN = f"svc.{CLUSTER_DOMAIN}"
MAX_ALIASES = 8
_KEPT = 4096
"""Answers that are kept up to date, the last ones that were asked for."""
_REVISIONS = 8
"""Control planes that answers are kept of, those that were asked for last."""
_TABLES = ("cfg.sidecars", "reg.services")
"""What has rows of one control plane or another, of all that the meaning of a host is read from."""


class Caller(NamedTuple):
    """Who asks."""

    namespace: str = ""
    """Of its workload; empty: unknown, it sees what is for everybody."""
    virtual: bool = True
    """It reaches virtual addresses, because an Envoy carries its traffic."""
    labels: Labels = ()
    """Of its workload: Sidecars choose by them."""
    families: Families = Families(v4=True, v6=True)
    """Those that its Envoy listens on."""
    revision: str = ""
    """The control plane of its proxy; empty: the one that is asked."""


class Answer(NamedTuple):
    """What a name means."""

    addresses: tuple[str, ...] = ()
    alias: str = ""
    """The name stands for another one (ExternalName)."""
    exists: bool = True


NO_SUCH_NAME = Answer(exists=False)


class Names:
    """What hosts mean to callers, each by what its own control plane acts on."""

    def __init__(self, world: World, everything: RevisionView | None = None) -> None:
        """
        Args:
            world: The rows of all control planes.
            everything: What they are read through; None: there is one control plane alone.
        """
        self.world = world
        """All rows."""
        self._everything = everything
        self._meanings: OrderedDict[str, _Meanings] = OrderedDict()

    def update(self, world: World, touched: Iterable[Query]) -> None:
        """The next world, and what of it moves."""
        self.world = world
        for meanings in self._meanings.values():
            meanings.update(world, touched)

    def seen(self, host: str, caller: Caller) -> Service | None:
        """The service of a host that the caller's proxy has, as compile chooses it."""
        if not self.world.keys(Query("reg.services", "host", host)):
            return None
        revision = "" if self._everything is None else caller.revision or self._everything.revision
        meanings = self._meanings.get(revision)
        if meanings is None:
            meanings = self._meanings[revision] = _Meanings(self._part(revision), self.world)
            if len(self._meanings) > _REVISIONS:
                self._meanings.popitem(last=False)
        self._meanings.move_to_end(revision)
        return meanings.seen(caller.namespace, caller.labels, host)

    def _part(self, revision: str) -> WorldOfRevision | None:
        if self._everything is None:
            return None
        return WorldOfRevision(revision, self._everything, _TABLES, self.world)

    def in_cluster(self, host: str) -> Service | None:
        """The Kubernetes service of a host, whoever sees it."""
        rows: list[Service] = [
            entry.row for entry in self.world.entries(Query("reg.services", "host", host))
        ]
        return next((row for row in rows if row.origin == "kubernetes"), None)


class _Meanings:
    """What hosts mean under one control plane."""

    def __init__(self, part: WorldOfRevision | None, world: World) -> None:
        self._part = part
        self._engine = Engine(world if part is None else part.world)
        self._kept: OrderedDict[tuple[str, Labels, str], None] = OrderedDict()

    def update(self, world: World, touched: Iterable[Query]) -> None:
        if self._part is not None:
            touched = self._part.update(world, touched)
            world = self._part.world
        self._engine.update(world, touched)

    def seen(self, namespace: str, labels: Labels, host: str) -> Service | None:
        asked = (namespace, labels, host)
        found = self._engine.get(service_of, *asked)
        self._kept[asked] = None
        self._kept.move_to_end(asked)
        if len(self._kept) > _KEPT:
            oldest, _ = self._kept.popitem(last=False)
            self._engine.release(service_of, *oldest)
        self._engine.take_changed()  # nobody asks which; they would be held
        return None if found is None else found.row


def service_of(reader: Reader, namespace: str, labels: Labels, host: str) -> Ref | None:
    """Node: the service that a host means to workloads of a namespace that have these labels."""
    sidecar = sidecar_of(reader, namespace, labels) if namespace else None
    return reader.node(visible_service, viewer_of(reader, sidecar, namespace), host)


def caller_at(world: World, address: str) -> Caller:
    """Who asks from an address."""
    found = world.entries(Query("reg.workloads", "address", address))
    if not found:
        return Caller()
    row: WorkloadInstance = found[0].row
    return Caller(
        row.namespace,
        row.sidecar and not row.gateway and row.capture == "redirect",
        tuple(sorted(row.labels.items())),
        families_of(row.addresses),
        row.annotations.get(REVISION_LABEL, ""),
    )


def find(names: Names, name: str, caller: Caller) -> Answer | None:
    """What a name means; None: it is not the mesh's, others may know it.

    Args:
        name: In lower case, without a dot at the end.
    """
    world = names.world
    for host in _full_names(name, caller):
        answer = _meaning(names, host, caller)
        if answer is not None:
            return answer
    first, _, rest = name.partition(".")
    for host in _full_names(rest, caller):
        row = names.in_cluster(host)
        if row is not None and row.headless:
            member = _endpoints(world, row, first)
            return Answer(member) if member else NO_SUCH_NAME
    wildcard = _below_wildcard(names, name, caller)
    if wildcard is not None:
        return wildcard
    if name == CLUSTER_DOMAIN or name.endswith((f".{CLUSTER_DOMAIN}", ".svc")):
        return Answer() if _is_above_names(world, name) else NO_SUCH_NAME
    return None


def _meaning(names: Names, host: str, caller: Caller) -> Answer | None:
    row = names.seen(host, caller) if caller.virtual else None
    answer = None if row is None else _answer(names.world, row, caller)
    if answer is not None:
        return answer
    hidden = names.in_cluster(host)
    return None if hidden is None else _answer(names.world, hidden, caller._replace(virtual=False))


def _full_names(name: str, caller: Caller) -> Iterable[str]:
    """Hosts that a name may stand for, most likely first."""
    yield name
    if name.endswith(".svc"):
        yield f"{name}.{CLUSTER_DOMAIN}"
    elif name.count(".") == 1:
        yield f"{name}.{SERVICES_DOMAIN}"
    elif name and "." not in name and caller.namespace:
        yield f"{name}.{caller.namespace}.{SERVICES_DOMAIN}"


def _answer(world: World, row: Service, caller: Caller) -> Answer | None:
    if row.external_name:
        return Answer(alias=row.external_name.rstrip(".").lower())
    if row.origin == "kubernetes":
        if row.headless or not caller.virtual or not row.addresses:
            return Answer(_endpoints(world, row))
        return Answer(_listened(row.addresses, caller))
    if not caller.virtual:
        return None
    single = [address for address in row.addresses if "/" not in address] or row.auto_addresses
    if single:
        return Answer(_listened(single, caller))
    own = _endpoints(world, row) if row.headless else ()
    return Answer(own) if own else None


def _listened(addresses: Iterable[str], caller: Caller) -> tuple[str, ...]:
    """Virtual addresses of families that the caller's Envoy has listeners for."""
    return tuple(address for address in addresses if caller.families.has(address))


def _endpoints(world: World, row: Service, instance: str = "") -> tuple[str, ...]:
    """Addresses of ready endpoints, of one instance or of all. A name is given also to one that is
    not ready yet: members of a StatefulSet find each other by it."""
    found: dict[str, None] = {}
    query = Query("reg.endpoints", "service", (row.namespace, row.host))
    for entry in world.entries(query):
        shard: EndpointShard = entry.row
        for endpoint in shard.endpoints:
            if endpoint.instance == instance if instance else endpoint.ready:
                found.update(dict.fromkeys(endpoint.addresses))
    return tuple(found)


def _below_wildcard(names: Names, name: str, caller: Caller) -> Answer | None:
    if not caller.virtual:
        return None
    rest = name
    while "." in rest:
        rest = rest.partition(".")[2]
        row = names.seen(f"*.{rest}", caller)
        if row is not None:
            return _answer(names.world, row, caller)
    return None


def _is_above_names(world: World, name: str) -> bool:
    """A name with names below it exists, though it has no records."""
    if name in (CLUSTER_DOMAIN, SERVICES_DOMAIN):
        return True
    namespace = name.removesuffix(f".{SERVICES_DOMAIN}")
    if namespace == name or "." in namespace:
        return False
    return bool(world.entries(Query("reg.services", "namespace", namespace)))
