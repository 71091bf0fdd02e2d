"""Tenants of a cluster: asked at admission, and before an object comes into force."""

from meshbus.analyze.tenancy import Place, Tenancy
from meshbus.api.kinds import all_kinds
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus_config.kubernetes.following import PLATFORM_GROUP, Following
from meshbus_config.kubernetes.objects import Judged

TENANTS = "cfg.tenants"
PLATFORM_KINDS = frozenset(info.kind for info in all_kinds() if info.group == PLATFORM_GROUP)
"""Kinds of Kubernetes: they do not count for quotas."""


class Tenants:
    """What tenants allow, as of the objects that are followed now."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._inbox = following.inbox()
        self._tenancy = self._counted()
        self._over: dict[str, frozenset[Place]] = {}
        self._some = False

    def _counted(self) -> Tenancy:
        following = self._following
        return Tenancy(
            (
                judged.row
                for judged in following.objects.of_table(TENANTS).values()
                if not judged.problems
            ),
            following.labels_of,
            following.objects.namespaces,
            self._objects_in,
        )

    def _objects_in(self, namespace: str) -> list[ConfigObject]:
        return [
            judged.row
            for judged in self._following.objects.of_namespace(namespace).values()
            if judged.row.kind not in PLATFORM_KINDS
        ]

    def settle(self) -> None:
        """Take in what has changed. Objects of which something else is to be thought now, though
        they are as they were, are touched."""
        following, keys = self._following, self._inbox.take()
        if following.labels_moved or any(key.table == TENANTS for key in keys):
            following.labels_moved = False
            self._tenancy = self._counted()
            self._over = {name: self._tenancy.over_quota(name) for name in self._tenancy.limited}
            had_some, self._some = self._some, bool(following.objects.of_table(TENANTS))
            if had_some or self._some:
                for key in following.objects:
                    following.touch(key)
                self._inbox.take()  # Of our own doing.
            return
        concerned = {self._tenancy.tenant_of(key.namespace) for key in keys}
        for tenant in sorted(concerned & self._over.keys()):
            self._tenancy.recount(tenant)
            before, over = self._over[tenant], self._tenancy.over_quota(tenant)
            self._over[tenant] = over
            for key in self._keys(before ^ over):
                following.touch(key)
        if concerned & self._over.keys():
            self._inbox.take()

    def _keys(self, places: frozenset[Place]) -> list[Key]:
        return [
            key
            for namespace in sorted({namespace for _, namespace, _ in places})
            for key, judged in self._following.objects.of_namespace(namespace).items()
            if (judged.row.kind, namespace, judged.row.name) in places
        ]

    def refusal(self, judged: Judged) -> str | None:
        """Why an object may not have an effect; None: it may. Of what was settled."""
        found = self._tenancy.refusal(judged.row)
        return found.message if found is not None else None

    def refusal_of_new(self, judged: Judged) -> str | None:
        """Why an object may not be written; None: it may."""
        self.settle()
        found = self._tenancy.refusal_of_new(judged.row)
        return found.message if found is not None else None
