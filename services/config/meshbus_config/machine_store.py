"""Entries of machines in the config service's own store."""

from collections.abc import Callable
from uuid import uuid4

from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, ObjectStatus
from meshbus_config import operations
from meshbus_config.documents import Space, status_key
from meshbus_config.machine_entries import (
    GROUP_ANNOTATION,
    MANAGER,
    Beat,
    entry_document,
    entry_kind,
    is_probed,
    with_health,
)
from meshbus_config.machine_users import Machine
from meshbus_config.operations import Preconditions
from meshbus_config.outcomes import Intent, Plan
from meshbus_config.store import Store


class StoredEntries:
    """Only the leader writes, and hears machines."""

    def __init__(self, store: Store, cluster: str, now: Callable[[], float]) -> None:
        self._store = store
        self._cluster = cluster
        self._now = now

    @property
    def writes(self) -> bool:
        """This replica leads."""
        return self._store.leading

    @property
    def sweeps(self) -> bool:
        """This replica leads."""
        return self._store.leading

    def group(self, namespace: str, name: str) -> ConfigObject | None:
        """A WorkloadGroup."""
        key = Key(self._cluster, "cfg", "workloadgroups", namespace, name)
        row = self._store.mirror.world.get(key)
        return row if isinstance(row, ConfigObject) else None

    def present(self) -> dict[Key, str]:
        """Entries that machines have, and the names of their groups."""
        return {
            entry.key: entry.row.annotations[GROUP_ANNOTATION]
            for entry in self._store.mirror.world.all("cfg.workloadentries")
            if entry.row.annotations.get(GROUP_ANNOTATION)
        }

    async def put(self, machine: Machine, group: ConfigObject, beat: Beat) -> int:
        """Bring a machine's entry up to date.

        Raises:
            ApiError: It cannot be written.
        """
        written = await self._store.write(
            lambda space: [self._plan(space, machine, group, beat)], user=MANAGER
        )
        return written.change or 0

    def _plan(self, space: Space, machine: Machine, group: ConfigObject, beat: Beat) -> Plan:
        document = entry_document(machine, group, beat)
        intent = Intent(MANAGER, self._now(), lambda: str(uuid4()), force=True)
        place = (machine.namespace, machine.instance)
        made = operations.apply(space, entry_kind(), *place, document, intent)
        if not is_probed(group):
            return made
        stored = made.stored
        held = space.world.get(status_key(stored.entry.key))
        own = isinstance(held, ObjectStatus) and held.uid == stored.row.uid
        before = dict(held.status) if own else {}
        status = with_health(before, beat, stored.row.generation, self._now())
        if status is None:
            return made
        row = ObjectStatus(stored.row.uid, stored.row.generation, status)
        return made._replace(
            action="configured" if made.action == "unchanged" else made.action,
            writes=(*made.writes, (status_key(stored.entry.key), row)),
        )

    async def remove(self, key: Key) -> None:
        """Remove an entry, if it is there.

        Raises:
            ApiError: It cannot be removed now.
        """
        info = entry_kind()

        def plan(space: Space) -> list[Plan]:
            if space.get(info, key.namespace, key.name) is None:
                return []
            place = (key.namespace, key.name)
            return [operations.delete(space, info, *place, Preconditions(), self._now())]

        await self._store.write(plan, user=MANAGER)
