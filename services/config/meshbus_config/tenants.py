"""Tenants at admission: whose host an object names, and how much its tenant may have. Pure."""

from functools import cache

from meshbus.analyze.tenancy import Tenancy
from meshbus.api.kinds import KindInfo, all_kinds
from meshbus.model.rows import ConfigObject
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

    def labels_of(namespace: str) -> dict[str, str]:
        entries = space.world.all("cfg.namespaces")
        return next((e.row.labels for e in entries if e.key.name == namespace), {})

    tenancy = Tenancy(
        (entry.row for entry in tenants),
        labels_of,
        (entry.row for table in _tables() for entry in space.world.all(table)),
    )
    refusal = tenancy.refusal_of_new(row) if counted else tenancy.refusal(row)
    if refusal is not None:
        raise forbidden(info, row.name, refusal.message)
