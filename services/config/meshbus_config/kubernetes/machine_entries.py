"""Entries of machines in a cluster: WorkloadEntries that any replica applies, differences only.

The holder of the Lease removes those of machines that are gone. Entries that somebody else made,
Istio's own registration among them, are left alone: ours say by an annotation whose they are.
"""

from collections.abc import Callable, Mapping
from typing import Any

from meshbus.kube.client import (
    MERGE_PATCH,
    Conflict,
    KubeClient,
    KubeError,
    KubeRefused,
    NotFound,
    object_path,
)
from meshbus.kube.lease import KubeLease
from meshbus.model.keys import Key
from meshbus.model.revisions import REVISION_LABEL
from meshbus.model.rows import ConfigObject
from meshbus.model.world import World
from meshbus_config.errors import ApiError, conflict, unavailable
from meshbus_config.kubernetes.following import Following
from meshbus_config.kubernetes.objects import Judged, read_object
from meshbus_config.machine_entries import (
    GROUP_ANNOTATION,
    MANAGER,
    Beat,
    entry_document,
    entry_kind,
    group_kind,
    is_probed,
    with_health,
)
from meshbus_config.machine_users import Machine

REGISTERED_BY = "meshbus.io/registered-by"
"""Annotation: the revision of the control plane that made an entry."""
_APPLY = "application/apply-patch+yaml"
_TRIES = 3


class ClusterEntries:
    """Entries by way of the API server."""

    def __init__(
        self,
        client: KubeClient,
        following: Following,
        lease: KubeLease,
        world: Callable[[], World],
        *,
        cluster: str,
        revision: str,
        now: Callable[[], float],
    ) -> None:
        self._client = client
        self._following = following
        self._lease = lease
        self._world = world
        self._cluster = cluster
        self._revision = revision
        self._now = now

    @property
    def writes(self) -> bool:
        """What the cluster has is known."""
        return self._following.synced

    @property
    def sweeps(self) -> bool:
        """This replica holds the Lease."""
        return self._lease.held and self._following.synced

    def group(self, namespace: str, name: str) -> ConfigObject | None:
        """A WorkloadGroup that is in force: valid, and ours to act on."""
        key = Key(self._cluster, "cfg", group_kind().table, namespace, name)
        judged = self._following.objects.get(key)
        if judged is None or judged.problems or not self._following.selected(namespace):
            return None
        return judged.row if self._following.revisions.is_ours(judged.row.labels) else None

    def present(self) -> dict[Key, str]:
        """Entries that machines have by this control plane, and the names of their groups."""
        return {
            entry.key: entry.row.annotations.get(GROUP_ANNOTATION, "")
            for entry in self._world().all(f"cfg.{entry_kind().table}")
            if self._is_ours(entry.row)
        }

    def _is_ours(self, row: ConfigObject) -> bool:
        return row.annotations.get(REGISTERED_BY) == self._revision

    # ------------------------------------------------------------------ writing

    async def put(self, machine: Machine, group: ConfigObject, beat: Beat) -> int:
        """Bring a machine's entry up to date. Its change is numbered when it comes back from the
        API server, so none is said.

        Raises:
            ApiError: The name is somebody else's, or the API server refuses, or is away.
        """
        document = entry_document(machine, group, beat)
        metadata = document["metadata"]
        metadata["annotations"][REGISTERED_BY] = self._revision
        if revision := group.labels.get(REVISION_LABEL):
            metadata["labels"] = {**metadata["labels"], REVISION_LABEL: revision}
        key = Key(self._cluster, "cfg", entry_kind().table, machine.namespace, machine.instance)
        try:
            held = self._following.objects.get(key) or await self._read(key)
            if held is not None and not self._is_ours(held.row):
                raise conflict(entry_kind(), key.name, "it exists, and no machine made it")
            if held is None or not _says(held, document):
                query = {"fieldManager": MANAGER, "force": "true"}
                path = self._path(key)
                answer = await self._client.send(
                    "PATCH", path, document, content_type=_APPLY, query=query
                )
                held = read_object(entry_kind(), answer)
            if is_probed(group):
                await self._put_health(key, held, beat)
        except KubeRefused as error:
            raise ApiError(error.code, error.reason or "Refused", str(error)) from error
        except KubeError as error:
            raise unavailable(f"the API server: {error}") from error
        return 0

    async def _put_health(self, key: Key, held: Judged, beat: Beat) -> None:
        for _ in range(_TRIES):
            status = with_health(held.status, beat, held.row.generation, self._now())
            if status is None:
                return
            body = {"metadata": {"resourceVersion": held.version}, "status": status}
            try:
                await self._client.send(
                    "PATCH", self._path(key, "status"), body, content_type=MERGE_PATCH
                )
            except Conflict:  # its other conditions have changed meanwhile
                again = await self._read(key)
                if again is None:
                    return
                held = again
            else:
                return

    async def _read(self, key: Key) -> Judged | None:
        try:
            return read_object(entry_kind(), await self._client.get(self._path(key)))
        except NotFound:
            return None

    async def remove(self, key: Key) -> None:
        """Remove an entry, if it is there and the one that was seen.

        Raises:
            ApiError: The API server refuses, or is away.
        """
        held = self._following.objects.get(key)
        if held is None or not self._is_ours(held.row):
            return
        seen = {"uid": held.row.uid}
        try:
            await self._client.send("DELETE", self._path(key), {"preconditions": seen})
        except (NotFound, Conflict):
            return
        except KubeRefused as error:
            raise ApiError(error.code, error.reason or "Refused", str(error)) from error
        except KubeError as error:
            raise unavailable(f"the API server: {error}") from error

    def _path(self, key: Key, sub: str = "") -> str:
        info = entry_kind()
        version = self._following.version_of(key) or info.version
        return object_path(info.group, version, info.plural, key.namespace, key.name, sub)


def _says(held: Judged, document: Mapping[str, Any]) -> bool:
    """An entry is what it should be already."""
    row, metadata = held.row, document["metadata"]
    same = (row.spec, row.labels) == (document["spec"], metadata["labels"])
    return same and bool(metadata["annotations"].items() <= row.annotations.items())
