"""From what a cluster has to rows of MODEL: differences only, what came together as one change.

An object that may not have an effect keeps the last that might: it never takes a good one down.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import structlog

from meshbus.bus.backoff import Backoff
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, MeshConfigRow, ObjectStatus, Row
from meshbus.model.world import Entry
from meshbus_config.documents import Space, Stored, status_key
from meshbus_config.errors import ApiError
from meshbus_config.kubernetes.following import Following
from meshbus_config.kubernetes.objects import Judged
from meshbus_config.kubernetes.tenants import Tenants
from meshbus_config.machine_entries import HEALTH_ANNOTATION, HEALTHY
from meshbus_config.outcomes import CONFIGURED, CREATED, DELETED, Plan, removal
from meshbus_config.store import Store

_PER_CHANGE = 1000
log = structlog.get_logger("kubernetes")


class Authors:
    """Who changed what: the user that admission saw, by uid and generation; bounded."""

    def __init__(self) -> None:
        self._users: dict[tuple[str, int], str] = {}

    def saw(self, uid: str, generation: int, user: str) -> None:
        """A user was let write this generation of an object."""
        if len(self._users) >= 4096:
            self._users.pop(next(iter(self._users)))
        self._users[uid, generation] = user

    def of(self, judged: Judged | None) -> str:
        """Who wrote an object: a user, else the field manager."""
        if judged is None:
            return ""
        return self._users.get((judged.row.uid, judged.row.generation), "") or judged.manager


class Writing:
    """Keeps MODEL what the cluster is, while this replica leads."""

    def __init__(
        self,
        store: Store,
        following: Following,
        *,
        authors: Authors,
        now: Callable[[], float],
        tenants: Tenants,
    ) -> None:
        self._store = store
        self._following = following
        self._authors = authors
        self._now = now
        self._tenants = tenants
        self._inbox = following.inbox()
        self._wake = asyncio.Event()
        self._led = 0
        self.caught_up = False
        """What the cluster had was written, at least once since this replica leads."""

    def wake(self) -> None:
        """Something has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        backoff = Backoff(0.05, 2.0)
        pending: set[Key] | None = None
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._following.synced:
                continue
            self._following.follow_credentials()
            self._tenants.settle()
            fresh = self._inbox.take()
            try:
                await self._store.ready_to_write()
                if pending is None or self._store.fenced_at != self._led:
                    self._led = self._store.fenced_at
                    pending = set(self._everything())
                self._tenants.settle()
                pending |= fresh | self._inbox.take()
                while pending:
                    batch = sorted(pending)[:_PER_CHANGE]
                    await self._write(batch)
                    pending.difference_update(batch)
                    await asyncio.sleep(0)
                self.caught_up = True
                backoff.reset()
            except ApiError as error:
                pending = None
                log.info("objects not written yet", error=error.message)
                await asyncio.sleep(backoff.next_s())
                self._wake.set()

    def _everything(self) -> Iterable[Key]:
        following, world = self._following, self._store.space.world
        yield from following.objects
        yield from following.credentials
        yield from following.mesh_keys()
        for table in world.tables():
            if table.startswith("cfg.") or table == "mesh.config":
                yield from (entry.key for entry in world.all(table))

    async def _write(self, keys: list[Key]) -> None:
        """The differences of these keys, one change for each author."""
        by_author: dict[str, list[Key]] = {}
        for key in keys:
            author = self._authors.of(self._following.objects.get(key))
            by_author.setdefault(author, []).append(key)
        for author, group in by_author.items():
            await self._store.write(
                lambda space, group=group: self._plans(space, group),  # type: ignore[misc]
                user=author,
            )

    def _plans(self, space: Space, keys: Iterable[Key]) -> list[Plan]:
        plans = (
            self._mesh_plan(space, key) if key.plane == "mesh" else self._plan(space, key)
            for key in keys
        )
        return [plan for plan in plans if plan is not None]

    def _plan(self, space: Space, key: Key) -> Plan | None:
        live = space.at(key)
        row = self._wanted(key, live)
        if row is None:
            return None if live is None else Plan(DELETED, live, tuple(removal(live)))
        writes: list[tuple[Key, Row | None]] = []
        if live is None or live.row != row:
            writes.append((key, row))
        health = self._health(key, row)
        said = live.status_entry.row if live is not None and live.status_entry else None
        if health != said:
            writes.append((status_key(key), health))
        if not writes:
            return None
        entry = Entry(key, live.version if live else 0, self._now(), row)
        stored = Stored(entry, live.status_entry if live else None)
        return Plan(CONFIGURED if live else CREATED, stored, tuple(writes))

    def _health(self, key: Key, row: ConfigObject) -> ObjectStatus | None:
        """Whether the machine of an entry is healthy: of all statuses the one that others act on.
        The other conditions are said by us, and stay with the API server."""
        if row.annotations.get(HEALTH_ANNOTATION, "").lower() != "true":
            return None
        judged = self._following.objects.get(key)
        conditions = judged.status.get("conditions") if judged is not None else None
        found = [
            one
            for one in (conditions if isinstance(conditions, list) else ())
            if isinstance(one, dict) and one.get("type") == HEALTHY
        ]
        return ObjectStatus(row.uid, 0, {"conditions": found}) if found else None

    def _wanted(self, key: Key, live: Stored | None) -> ConfigObject | None:
        following = self._following
        last = live.row if live is not None else None
        if key in following.credentials:
            return following.credentials[key].row
        judged = following.objects.get(key)
        if judged is None:
            # Never read since this process began, but there: what it last said stands.
            return last if key in following.malformed else None
        row = following.revisions.in_model(judged.row)
        if row is None or not following.selected(key.namespace):
            return None
        if (
            not judged.problems
            and key not in following.malformed
            and self._tenants.refusal(judged) is None
        ):
            return row
        return last if last is not None and last.uid == judged.row.uid else None

    def _mesh_plan(self, space: Space, key: Key) -> Plan | None:
        following = self._following
        revision = following.mesh_keys().get(key, "")
        mesh = following.meshes.get(revision)
        held: Any = space.world.get(key)
        if mesh is None and revision in following.mesh_problems:
            return None
        if revision and revision not in following.meshes_read:
            return None
        row: Row | None = None if mesh is None else MeshConfigRow(mesh.spec)
        if held == row:
            return None
        shown = ConfigObject(
            api_version="mesh.istio.io/v1alpha1",
            kind="MeshConfig",
            namespace="",
            name=key.name,
            uid="",
            generation=0,
            created=0.0,
        )
        action = DELETED if row is None else CREATED if held is None else CONFIGURED
        place = key._replace(plane="cfg", kind="meshconfigs")
        return Plan(action, Stored(Entry(place, 0, self._now(), shown), None), ((key, row),))
