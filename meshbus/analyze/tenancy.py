"""Whether an object respects the tenants of the mesh: their hosts and its own tenant's quota. Pure.

A host that a tenant owns may be named by objects of its namespaces alone; who is no tenant's may
name the others. A bare `*` names nothing in particular: more specific hosts win over it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from meshbus.api.selectors import matches_selector
from meshbus.model.rows import ConfigObject

Labels = Callable[[str], Mapping[str, str]]
_HOST_LISTS = {"VirtualService": "hosts", "ServiceEntry": "hosts", "HTTPRoute": "hostnames"}
_HOST_LISTS |= {"GRPCRoute": "hostnames", "TLSRoute": "hostnames"}


class Refusal(NamedTuple):
    """Why an object may not have an effect."""

    reason: str
    """`HostNotOwned` or `QuotaExceeded`."""
    message: str


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


class Tenancy:
    """The tenants of a mesh, and the objects that they have."""

    def __init__(
        self,
        tenants: Iterable[ConfigObject],
        labels_of: Labels,
        objects: Iterable[ConfigObject],
    ) -> None:
        """
        Args:
            tenants: Objects of kind Tenant.
            labels_of: Labels of a namespace.
            objects: All objects of the mesh, for the quotas.
        """
        self._tenants = sorted(tenants, key=lambda t: (t.created, t.name))
        self._labels_of = labels_of
        self._of: dict[str, str] = {}
        self._quotas = {t.name: t.spec["quota"] for t in self._tenants if t.spec.get("quota")}
        self._ranked: dict[str, list[ConfigObject]] = {}
        if self._quotas:
            for row in objects:
                name = self.tenant_of(row.namespace)
                if name in self._quotas and row.kind != "Tenant":
                    self._ranked.setdefault(name, []).append(row)
            for rows in self._ranked.values():
                rows.sort(key=lambda row: (row.created, row.kind, row.namespace, row.name))
        self._over = dict(self._over_quota())

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

    def _over_quota(self) -> Iterator[tuple[tuple[str, str, str], Refusal]]:
        for name, rows in self._ranked.items():
            kinds: dict[str, int] = {}
            total = 0
            for row in rows:
                refusal = self._exceeded(name, row.kind, total, kinds.get(row.kind, 0))
                if refusal is not None:
                    yield (row.kind, row.namespace, row.name), refusal
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
        return self._host_refusal(row) or self._over.get((row.kind, row.namespace, row.name))

    def refusal_of_new(self, row: ConfigObject) -> Refusal | None:
        """Why an object may not be written; None: it may."""
        found = self._host_refusal(row)
        tenant = self.tenant_of(row.namespace)
        if found is not None or tenant not in self._quotas:
            return found
        held = self._ranked.get(tenant, [])
        place = (row.kind, row.namespace, row.name)
        if any((one.kind, one.namespace, one.name) == place for one in held):
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
