"""Tenants at admission: whose host an object names, and how much its tenant may have. Pure."""

from functools import cache

from meshbus.analyze.tenancy import Tenancy
from meshbus.api.kinds import KindInfo, all_kinds
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.model.world import Query
from meshbus_config.documents import Space
from meshbus_config.errors import forbidden

_OF_THE_MESH = "meshbus"
_TENANTS = "cfg.tenants"


@cache
def _tables() -> tuple[str, ...]:
    """Tables of the kinds that count for quotas."""
    return tuple(f"cfg.{info.table}" for info in all_kinds() if _OF_THE_MESH in info.categories)


def check_tenants(space: Space, info: KindInfo, row: ConfigObject) -> None:
    """Whether an object may be written, seen with the tenants of the mesh.

    Raises:
        ApiError: 403, it names another tenant's host, or its tenant's quota is used up.
    """
    tenants = space.world.all(_TENANTS)
    counted = _OF_THE_MESH in info.categories
    if not tenants or not (counted or row.kind == "Ingress"):
        return

    tenancy = Tenancy(
        (entry.row for entry in tenants),
        lambda namespace: _labels(space, namespace),
        lambda: {entry.key.name for entry in space.world.all("cfg.namespaces")} | {row.namespace},
        lambda namespace: (
            entry.row
            for table in _tables()
            for entry in space.world.entries(Query(table, "namespace", namespace))
        ),
    )
    refusal = tenancy.refusal_of_new(row) if counted else tenancy.refusal(row)
    if refusal is not None:
        raise forbidden(info, row.name, refusal.message)


def _labels(space: Space, namespace: str) -> dict[str, str]:
    held = space.world.get(Key(space.cluster, "cfg", "namespaces", "", namespace))
    return held.labels if isinstance(held, ConfigObject) else {}
