"""What a name of the mesh means, to whom. Pure: the rows of the registry in, addresses out.

- `reviews.default.svc.cluster.local`, `reviews.default.svc`, `reviews.default`: the addresses of
  the service; of a headless one those of its ready endpoints.
- `pod-0.db.default.svc.cluster.local`: one endpoint of a headless service.
- A host of a ServiceEntry: its addresses, else those that were allocated for it; without
  resolution those of the workloads that it selects.
- What is below `*.example.com` of a ServiceEntry: the addresses of the entry, when it has some.

Who is outside the mesh, and Envoys themselves, reach no virtual address: they are given endpoints
of services, and hosts of ServiceEntries are none of the mesh's business.
Source: Istio, "DNS proxying"; Kubernetes, "DNS for Services and Pods".
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from meshbus.api.selectors import NAMESPACE_NAME
from meshbus.compile.names import CLUSTER_DOMAIN
from meshbus.compile.namespaces import capped, visibility_of
from meshbus.compile.written import fields, texts
from meshbus.model.rows import EndpointShard, Service, WorkloadInstance
from meshbus.model.world import Query, World

SERVICES_DOMAIN = f"svc.{CLUSTER_DOMAIN}"
MAX_ALIASES = 8


class Caller(NamedTuple):
    """Who asks."""

    namespace: str = ""
    """Of its workload; empty: unknown, it sees what is for everybody."""
    virtual: bool = True
    """It reaches virtual addresses, because an Envoy carries its traffic."""


class Answer(NamedTuple):
    """What a name means."""

    addresses: tuple[str, ...] = ()
    alias: str = ""
    """The name stands for another one (ExternalName)."""
    exists: bool = True


NO_SUCH_NAME = Answer(exists=False)


def caller_at(world: World, address: str) -> Caller:
    """Who asks from an address."""
    found = world.entries(Query("reg.workloads", "address", address))
    if not found:
        return Caller()
    row: WorkloadInstance = found[0].row
    return Caller(row.namespace, row.sidecar and not row.gateway and row.capture == "redirect")


def find(world: World, name: str, caller: Caller) -> Answer | None:
    """What a name means; None: it is not the mesh's, others may know it.

    Args:
        name: In lower case, without a dot at the end.
    """
    for host in _full_names(name, caller):
        row = _service(world, host, caller)
        if row is not None:
            answer = _answer(world, row, caller)
            if answer is not None:
                return answer
    first, _, rest = name.partition(".")
    for host in _full_names(rest, caller):
        row = _service(world, host, caller)
        if row is not None and row.headless and row.origin == "kubernetes":
            member = _endpoints(world, row, first)
            return Answer(member) if member else NO_SUCH_NAME
    wildcard = _below_wildcard(world, name, caller)
    if wildcard is not None:
        return wildcard
    if name == CLUSTER_DOMAIN or name.endswith((f".{CLUSTER_DOMAIN}", ".svc")):
        return Answer() if _is_above_names(world, name) else NO_SUCH_NAME
    return None


def _full_names(name: str, caller: Caller) -> Iterable[str]:
    """Hosts that a name may stand for, most likely first."""
    yield name
    if name.endswith(".svc"):
        yield f"{name}.{CLUSTER_DOMAIN}"
    elif name.count(".") == 1:
        yield f"{name}.{SERVICES_DOMAIN}"
    elif name and "." not in name and caller.namespace:
        yield f"{name}.{caller.namespace}.{SERVICES_DOMAIN}"


def _service(world: World, host: str, caller: Caller) -> Service | None:
    """The service of a host that the caller sees: of several the one of its own namespace, then a
    Kubernetes service, then the oldest."""
    rows: list[Service] = [
        entry.row
        for entry in world.entries(Query("reg.services", "host", host))
        if _visible(world, entry.row, caller)
    ]
    if not rows:
        return None
    return min(
        rows,
        key=lambda r: (r.namespace != caller.namespace, r.origin != "kubernetes", r.created),
    )


def _visible(world: World, row: Service, caller: Caller) -> bool:
    """The caller's proxy is sent the service. What is hidden is not refused: others may know it."""
    targets: Iterable[str] | None = row.export_to
    for entry in world.all("mesh.config"):
        settings: Mapping[str, Any] = entry.row.spec
        targets = targets or texts(settings.get("defaultServiceExportTo"))
        wish = fields(settings.get("serviceEntryVisibility"))
        if row.origin == "external" and wish.get("applyToSidecars") is True:
            labels = {NAMESPACE_NAME: row.namespace}
            for held in world.all("reg.namespaces"):
                if held.key.name == row.namespace:
                    labels = {**held.row.labels, **labels}
            visibility = visibility_of(wish, labels)
            targets = capped(targets or ("*",), visibility, row.namespace)
    if targets is None:
        return False
    if not targets or "*" in targets:
        return True
    own = caller.namespace
    return bool(own) and (own in targets or ("." in targets and own == row.namespace))


def _answer(world: World, row: Service, caller: Caller) -> Answer | None:
    if row.external_name:
        return Answer(alias=row.external_name.rstrip(".").lower())
    if row.origin == "kubernetes":
        if row.headless or not caller.virtual or not row.addresses:
            return Answer(_endpoints(world, row))
        return Answer(tuple(row.addresses))
    if not caller.virtual:
        return None
    single = tuple(address for address in row.addresses if "/" not in address)
    own = _endpoints(world, row) if row.headless else ()
    addresses = single or tuple(row.auto_addresses) or own
    return Answer(addresses) if addresses else None


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


def _below_wildcard(world: World, name: str, caller: Caller) -> Answer | None:
    rest = name
    while "." in rest:
        rest = rest.partition(".")[2]
        row = _service(world, f"*.{rest}", caller)
        if row is not None:
            return _answer(world, row, caller)
    return None


def _is_above_names(world: World, name: str) -> bool:
    """A name with names below it exists, though it has no records."""
    if name in (CLUSTER_DOMAIN, SERVICES_DOMAIN):
        return True
    namespace = name.removesuffix(f".{SERVICES_DOMAIN}")
    if namespace == name or "." in namespace:
        return False
    return bool(world.entries(Query("reg.services", "namespace", namespace)))
