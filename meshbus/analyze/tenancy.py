"""Whether an object respects the tenants of the mesh: their hosts and its own tenant's quota. Pure.

A host that a tenant owns may be named by objects of its namespaces alone; who is no tenant's may
name the others. A bare `*` names nothing in particular: more specific hosts win over it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from meshbus.api.selectors import matches_selector
from meshbus.model.rows import ConfigObject

Labels = Callable[[str], Mapping[str, str]]
Place = tuple[str, str, str]
"""Kind, namespace and name of an object."""
_HOST_LISTS = {"VirtualService": "hosts", "ServiceEntry": "hosts", "HTTPRoute": "hostnames"}
_HOST_LISTS |= {"GRPCRoute": "hostnames", "TLSRoute": "hostnames"}


class Refusal(NamedTuple):
    """Why an object may not have an effect."""

    reason: str
    """`HostNotOwned` or `QuotaExceeded`."""
    message: str


def place_of(row: ConfigObject) -> Place:
    """Which object it is."""
    return row.kind, row.namespace, row.name


def hosts_named(row: ConfigObject) -> Iterator[str]:
    """Hosts that an object says something about, without `NAMESPACE/` before them."""
    spec = row.spec
    field = _HOST_LISTS.get(row.kind)
    if field:
        yield from _texts(spec.get(field))
    elif row.kind == "DestinationRule" and isinstance(spec.get("host"), str):
        yield spec["host"]
    elif row.kind == "Gateway":
        for server in _records(spec.get("servers")):
            yield from (host.rpartition("/")[2] for host in _texts(server.get("hosts")))
        for listener in _records(spec.get("listeners")):
            yield from _texts([listener.get("hostname")])
    elif row.kind == "Ingress":
        yield from _texts([rule.get("host") for rule in _records(spec.get("rules"))])
        for tls in _records(spec.get("tls")):
            yield from _texts(tls.get("hosts"))


def overlap(host: str, owned: str) -> bool:
    """Whether two hosts, either with a wildcard, may mean the same."""
    if host == "*":
        return False
    if host.startswith("*."):
        return owned.removeprefix("*").endswith(host[1:]) or _covers(owned, host)
    return _covers(owned, host)


def _covers(owned: str, host: str) -> bool:
    if owned.startswith("*."):
        return host.removeprefix("*").endswith(owned[1:])
    return host == owned


class _Holdings(NamedTuple):
    """What a tenant with a quota has."""

    rows: tuple[ConfigObject, ...]
    """Oldest first."""
    over: dict[Place, Refusal]
    """Those that are too many."""


class Tenancy:
    """The tenants of a mesh, and the objects that they have."""

    def __init__(
        self,
        tenants: Iterable[ConfigObject],
        labels_of: Labels,
        namespaces: Callable[[], Iterable[str]],
        objects_in: Callable[[str], Iterable[ConfigObject]],
    ) -> None:
        """
        Args:
            tenants: Objects of kind Tenant.
            labels_of: Labels of a namespace.
            namespaces: Names of all namespaces, for the quotas.
            objects_in: Objects of a namespace that count for them.
        """
        self._tenants = sorted(tenants, key=lambda t: (t.created, t.name))
        self._labels_of = labels_of
        self._namespaces = namespaces
        self._objects_in = objects_in
        self._of: dict[str, str] = {}
        self._quotas = {t.name: t.spec["quota"] for t in self._tenants if t.spec.get("quota")}
        self._held: dict[str, _Holdings] = {}

    @property
    def limited(self) -> Iterable[str]:
        """Names of the tenants that have a quota."""
        return self._quotas.keys()

    def recount(self, tenant: str) -> None:
        """Objects of a tenant have come or gone, or changed."""
        self._held.pop(tenant, None)

    def over_quota(self, tenant: str) -> frozenset[Place]:
        """Objects of a tenant that are too many."""
        return frozenset(self._holdings(tenant).over)

    def _holdings(self, tenant: str) -> _Holdings:
        held = self._held.get(tenant)
        if held is None:
            rows = [
                row
                for namespace in self._namespaces()
                if self.tenant_of(namespace) == tenant
                for row in self._objects_in(namespace)
            ]
            rows.sort(key=lambda row: (row.created, *place_of(row)))
            held = self._held[tenant] = _Holdings(tuple(rows), dict(self._too_many(tenant, rows)))
        return held

    def tenant_of(self, namespace: str) -> str:
        """The tenant that a namespace belongs to, the oldest of several; empty: none."""
        if not namespace:
            return ""
        found = self._of.get(namespace)
        if found is None:
            found = self._of[namespace] = next(
                (t.name for t in self._tenants if self._has(t, namespace)), ""
            )
        return found

    def _has(self, tenant: ConfigObject, namespace: str) -> bool:
        if namespace in _texts(tenant.spec.get("namespaces")):
            return True
        selector = tenant.spec.get("namespaceSelector")
        if not isinstance(selector, dict) or not any(selector.values()):
            return False
        return matches_selector(selector, self._labels_of(namespace))

    def _too_many(
        self, tenant: str, rows: Iterable[ConfigObject]
    ) -> Iterator[tuple[Place, Refusal]]:
        kinds: dict[str, int] = {}
        total = 0
        for row in rows:
            refusal = self._exceeded(tenant, row.kind, total, kinds.get(row.kind, 0))
            if refusal is not None:
                yield place_of(row), refusal
                continue
            total += 1
            kinds[row.kind] = kinds.get(row.kind, 0) + 1

    def _exceeded(self, tenant: str, kind: str, total: int, of_kind: int) -> Refusal | None:
        quota = self._quotas[tenant]
        most, of_its_kind = quota.get("objects"), (quota.get("byKind") or {}).get(kind)
        if isinstance(most, int) and total >= most:
            return Refusal("QuotaExceeded", f"tenant {tenant} may have {most} objects, and has")
        if isinstance(of_its_kind, int) and of_kind >= of_its_kind:
            return Refusal(
                "QuotaExceeded",
                f"tenant {tenant} may have {of_its_kind} objects of kind {kind}, and has",
            )
        return None

    def refusal(self, row: ConfigObject) -> Refusal | None:
        """Why an object that is there may not have an effect; None: it may."""
        found = self._host_refusal(row)
        tenant = self.tenant_of(row.namespace)
        if found is not None or tenant not in self._quotas:
            return found
        return self._holdings(tenant).over.get(place_of(row))

    def refusal_of_new(self, row: ConfigObject) -> Refusal | None:
        """Why an object may not be written; None: it may."""
        found = self._host_refusal(row)
        tenant = self.tenant_of(row.namespace)
        if found is not None or tenant not in self._quotas:
            return found
        held, place = self._holdings(tenant).rows, place_of(row)
        if any(place_of(one) == place for one in held):
            return None
        return self._exceeded(
            tenant, row.kind, len(held), sum(1 for one in held if one.kind == row.kind)
        )

    def _host_refusal(self, row: ConfigObject) -> Refusal | None:
        if row.kind == "Tenant":
            return None
        mine = self.tenant_of(row.namespace)
        for host in hosts_named(row):
            for tenant in self._tenants:
                if tenant.name == mine:
                    continue
                for owned in _texts(tenant.spec.get("hosts")):
                    if overlap(host, owned) and not self._owns(mine, host):
                        return Refusal(
                            "HostNotOwned", f"host {host!r} belongs to tenant {tenant.name}"
                        )
        return None

    def _owns(self, name: str, host: str) -> bool:
        """A tenant may have a host within, or beside, those of another: both said so."""
        return any(
            _covers(owned, host)
            for tenant in self._tenants
            if tenant.name == name
            for owned in _texts(tenant.spec.get("hosts"))
        )


def _records(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
