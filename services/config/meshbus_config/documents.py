"""Rows to Kubernetes documents and back. Pure.

A document is what JSON of the API is: nested dicts and lists. `content_of` takes from it what its
kind keeps (`spec`, or the fields beside `metadata`), `render` puts an object together again in any
served version: versions of one kind differ in name only, as Istio's do.
"""

import copy
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from meshbus.api.kinds import KindInfo
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, ObjectStatus
from meshbus.model.world import Entry, World
from meshbus_config.secret_box import SecretBox

Document = dict[str, Any]

_NOT_CONTENT = frozenset({"apiVersion", "kind", "metadata", "status"})
BOTH = ("IPv4", "IPv6")
"""Families of addresses where nothing else is said."""
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Stored(NamedTuple):
    """An object with its status, as MODEL holds them."""

    entry: Entry
    status_entry: Entry | None

    @property
    def row(self) -> ConfigObject:
        """The object's own row."""
        row: ConfigObject = self.entry.row
        return row

    @property
    def status(self) -> ObjectStatus | None:
        """Its status, unless that is of an older object of the same name."""
        if self.status_entry is None:
            return None
        status: ObjectStatus = self.status_entry.row
        return status if status.uid == self.row.uid else None

    @property
    def version(self) -> int:
        """`resourceVersion`: the MODEL sequence of the later of its rows."""
        status = self.status_entry.sequence if self.status_entry else 0
        return max(self.entry.sequence, status)


class Space(NamedTuple):
    """Where objects are read: a world, the cluster they belong to, the key of Secrets."""

    world: World
    cluster: str
    box: SecretBox
    root_namespace: str = "istio-system"
    families: tuple[str, ...] = BOTH
    """Families of addresses that the mesh has."""

    def key(self, info: KindInfo, namespace: str, name: str) -> Key:
        """The key of an object's row."""
        return Key(self.cluster, "cfg", info.table, namespace if info.namespaced else "", name)

    def get(self, info: KindInfo, namespace: str, name: str) -> Stored | None:
        """One object."""
        return self.at(self.key(info, namespace, name))

    def at(self, key: Key) -> Stored | None:
        """The object of a row key."""
        entry = self.world.entry(key)
        return None if entry is None else Stored(entry, self.world.entry(status_key(key)))

    def all(self, info: KindInfo) -> list[Stored]:
        """Every object of a kind, ordered by namespace and name."""
        return [
            Stored(entry, self.world.entry(status_key(entry.key)))
            for entry in self.world.all(f"cfg.{info.table}")
            if entry.key.cluster == self.cluster
        ]


def status_key(key: Key) -> Key:
    """The key of the status of the object at `key`."""
    return key._replace(plane="st")


def object_key(key: Key) -> Key:
    """The key of the object whose status is at `key`."""
    return key._replace(plane="cfg")


def content_of(info: KindInfo, document: Mapping[str, Any]) -> Document:
    """What an object of this kind keeps beside its metadata; empty where there is nothing."""
    if info.spec_field:
        spec = document.get("spec")
        return dict(spec) if isinstance(spec, Mapping) else {}
    return {name: value for name, value in document.items() if name not in _NOT_CONTENT}


def open_content(row: ConfigObject, key: Key, box: SecretBox) -> tuple[Document, dict[str, str]]:
    """Content and annotations of a row in the clear (a Secret's are sealed)."""
    if "sealed" not in row.spec or row.kind != "Secret":
        return row.spec, row.annotations
    inside = box.open(str(row.spec["sealed"]), str(key))
    content = {name: value for name, value in row.spec.items() if name != "sealed"}
    content.update(inside["content"])
    return content, {**row.annotations, **inside["annotations"]}


def seal_content(
    row: ConfigObject, key: Key, box: SecretBox, live: ConfigObject | None
) -> ConfigObject:
    """A Secret's row with its data sealed; rows of other kinds as they are.

    kubectl copies the whole object into an annotation, so that is sealed too. Data that did not
    change keeps the bytes it had: an unchanged Secret stays an equal row.
    """
    if row.kind != "Secret":
        return row
    inside = {
        "content": {name: row.spec[name] for name in ("data",) if name in row.spec},
        "annotations": {n: v for n, v in row.annotations.items() if n == LAST_APPLIED},
    }
    sealed = ""
    if live is not None and "sealed" in live.spec:
        before = str(live.spec["sealed"])
        if box.open(before, str(key)) == inside:
            sealed = before
    outside = {name: value for name, value in row.spec.items() if name != "data"}
    outside["sealed"] = sealed or box.seal(inside, str(key))
    return ConfigObject(
        **{
            field: getattr(row, field)
            for field in row.__struct_fields__
            if field not in ("spec", "annotations")
        },
        spec=outside,
        annotations={n: v for n, v in row.annotations.items() if n != LAST_APPLIED},
    )


def render(
    info: KindInfo, stored: Stored, box: SecretBox, version: str = "", *, managed: bool = True
) -> Document:
    """The document of an object as `version` (default: the one it is kept in). A fresh copy.

    `managed` False leaves out `managedFields`.
    """
    row = stored.row
    content, annotations = open_content(row, stored.entry.key, box)
    metadata: Document = {"name": row.name}
    if info.namespaced:
        metadata["namespace"] = row.namespace
    metadata["uid"] = row.uid
    metadata["resourceVersion"] = str(stored.version)
    if info.spec_field:
        metadata["generation"] = row.generation
    metadata["creationTimestamp"] = timestamp(row.created)
    if row.deletion is not None:
        metadata["deletionTimestamp"] = timestamp(row.deletion)
        metadata["deletionGracePeriodSeconds"] = 0
    for field, value in (
        ("labels", row.labels),
        ("annotations", annotations),
        ("ownerReferences", row.owner_references),
        ("finalizers", row.finalizers),
        ("managedFields", row.managed_fields if managed else []),
    ):
        if value:
            metadata[field] = copy.deepcopy(value)
    document: Document = {
        "apiVersion": api_version_of(info, version),
        "kind": info.kind,
        "metadata": metadata,
    }
    content = copy.deepcopy(content)
    if info.spec_field:
        document["spec"] = content
    else:
        document.update(content)
    status = copy.deepcopy(stored.status.status) if stored.status else {}
    if info.kind == "Namespace" and not info.group:
        status = {"phase": "Terminating" if row.deletion else "Active", **status}
    if status:
        document["status"] = status
    return document


def api_version_of(info: KindInfo, version: str = "") -> str:
    """`group/version`, the version alone for core kinds."""
    wanted = version or info.version
    return f"{info.group}/{wanted}" if info.group else wanted


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC, whole seconds, as Kubernetes writes them."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(text: str) -> float | None:
    """Seconds since the epoch of an RFC 3339 time; None if it is not one."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
