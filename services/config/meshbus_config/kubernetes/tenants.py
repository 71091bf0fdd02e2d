"""Tenants of a cluster: asked at admission, and before an object comes into force."""

from meshbus.analyze.tenancy import Tenancy
from meshbus_config.kubernetes.following import Following
from meshbus_config.kubernetes.objects import Judged

TENANTS = "tenants"
PLATFORM_TABLES = frozenset({"cfg.ingresses", "cfg.ingressclasses"})
"""Kinds of Kubernetes: they do not count for quotas."""


class Tenants:
    """What tenants allow, as of the objects that are followed now."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._tenancy: Tenancy | None = None

    def stale(self) -> None:
        """Objects or namespaces have changed."""
        self._tenancy = None

    def _now(self) -> Tenancy:
        if self._tenancy is None:
            objects = self._following.objects
            self._tenancy = Tenancy(
                (
                    judged.row
                    for key, judged in objects.items()
                    if key.kind == TENANTS and not judged.problems
                ),
                self._following.labels_of,
                (judged.row for key, judged in objects.items() if key.table not in PLATFORM_TABLES),
            )
        return self._tenancy

    def refusal(self, judged: Judged) -> str | None:
        """Why an object may not have an effect; None: it may."""
        found = self._now().refusal(judged.row)
        return found.message if found is not None else None

    def refusal_of_new(self, judged: Judged) -> str | None:
        """Why an object may not be written; None: it may."""
        found = self._now().refusal_of_new(judged.row)
        return found.message if found is not None else None
