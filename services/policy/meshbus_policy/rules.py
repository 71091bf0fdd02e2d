"""The rules in force, read out of the world."""

from dataclasses import dataclass, field

from meshbus.mixer.checks import CheckConfig, load_checks
from meshbus.mixer.objects import Problem
from meshbus.mixer.quota import QuotaConfig
from meshbus.mixer.quota_objects import TABLES, load_quotas
from meshbus.model.world import Query, World

_TABLES = frozenset(f"cfg.{plural}" for plural in TABLES) | {"mesh.config"}


@dataclass(frozen=True)
class Rules:
    """Everything that answers are made from."""

    quotas: QuotaConfig = field(default_factory=QuotaConfig)
    checks: CheckConfig = field(default_factory=CheckConfig)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What has no effect, each once."""
        return tuple(dict.fromkeys((*self.quotas.problems, *self.checks.problems)))


def concerned(touched: frozenset[Query]) -> bool:
    """Whether rules may differ after a change."""
    return any(query.table in _TABLES for query in touched)


def load_rules(world: World, root_namespace: str) -> Rules:
    """The rules of a world.

    Args:
        root_namespace: Where mesh-wide rules are, unless the mesh config says otherwise.
    """
    rows = {plural: [e.row for e in world.all(f"cfg.{plural}")] for plural in TABLES}
    for entry in world.all("mesh.config"):
        root_namespace = str(entry.row.spec.get("rootNamespace") or root_namespace)
    return Rules(load_quotas(rows, root_namespace), load_checks(rows, root_namespace))
