"""What a write comes to: an admitted object, who manages its fields, the rows to write. Pure.

A write that changes nothing writes nothing.
"""

import base64
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from meshbus.api.kinds import KindInfo
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, MeshConfigRow, ObjectStatus, Row
from meshbus.model.world import Entry
from meshbus_config import apply_merge
from meshbus_config.admission import WARN, admit, check_place, namespace_kind
from meshbus_config.documents import (
    Document,
    Space,
    Stored,
    api_version_of,
    content_of,
    open_content,
    render,
    seal_content,
    seconds_of,
    status_key,
    timestamp,
)
from meshbus_config.errors import Cause, bad_request, invalid
from meshbus_config.field_sets import (
    APPLY,
    FieldsV1Error,
    Owner,
    Shapes,
    managed_fields_of,
    owners_of,
)
from meshbus_config.service_families import check_families
from meshbus_config.tenants import check_tenants

Write = tuple[Key, Row | None]

CREATED, CONFIGURED, UNCHANGED, DELETED = "created", "configured", "unchanged", "deleted"
NAME_LABEL = "kubernetes.io/metadata.name"


class Intent(NamedTuple):
    """How a write is asked for."""

    manager: str
    """Field manager."""
    now: float
    new_uid: Callable[[], str]
    field_validation: str = WARN
    force: bool = False
    """Take fields over that others manage (server-side apply)."""
    restore: bool = False
    """Keep `creationTimestamp` of the document: of two objects in conflict the older wins, also
    after a restore."""


class Plan(NamedTuple):
    """What a write comes to."""

    action: str
    stored: Stored
    """The object as it will be; as it was, when it is deleted. Its version is known after the
    commit."""
    writes: tuple[Write, ...]
    warnings: tuple[str, ...] = ()


class Metadata(msgspec.Struct, kw_only=True):
    """The metadata that people write."""

    name: str = ""
    generate_name: str = msgspec.field(name="generateName", default="")
    namespace: str = ""
    uid: str = ""
    resource_version: str = msgspec.field(name="resourceVersion", default="")
    creation: str | None = msgspec.field(name="creationTimestamp", default=None)
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owners: list[dict[str, Any]] | None = msgspec.field(name="ownerReferences", default=None)
    finalizers: list[str] | None = None
    managed: list[dict[str, Any]] | None = msgspec.field(name="managedFields", default=None)


def metadata_of(info: KindInfo, document: Document) -> Metadata:
    """The metadata of a document.

    Raises:
        ApiError: 400, it is malformed.
    """
    try:
        return msgspec.convert(document.get("metadata") or {}, Metadata)
    except msgspec.ValidationError as error:
        raise bad_request(f"{info.kind}: metadata: {error}") from error


def removal(live: Stored) -> list[Write]:
    """The writes that remove an object and its status."""
    writes: list[Write] = [(live.entry.key, None)]
    if live.status_entry is not None:
        writes.append((live.status_entry.key, None))
    return writes


def writer_of(info: KindInfo, document: Document, intent: Intent) -> apply_merge.Writer:
    """Who writes, for `managedFields`."""
    version = str(document.get("apiVersion") or api_version_of(info))
    return apply_merge.Writer(intent.manager, version, timestamp(intent.now))


def shapes_of(info: KindInfo) -> Shapes:
    """How lists and maps of a kind merge."""
    return Shapes(info.kind, info.group in ("", "discovery.k8s.io"))


def base_of(info: KindInfo, live: Stored | None, space: Space) -> Document:
    """The live object without what nobody manages: status and the server's own metadata."""
    if live is None:
        return {"metadata": {}}
    document = render(info, live, space.box, managed=False)
    document.pop("status", None)
    return document


def fold_string_data(document: Document) -> None:
    """Write `stringData` of a Secret into `data`, as Kubernetes does."""
    text = document.pop("stringData", None)
    if isinstance(text, dict) and text:
        data = dict(document.get("data") or {})
        for name, value in text.items():
            if not isinstance(value, str):
                raise bad_request(f"Secret: stringData.{name}: expected a string")
            data[name] = base64.b64encode(value.encode()).decode()
        document["data"] = data


def finish(
    space: Space,
    info: KindInfo,
    namespace: str,
    document: Document,
    live: Stored | None,
    owners: list[Owner] | None,
    intent: Intent,
    *,
    operation: str,
) -> Plan:
    """The plan that makes the object what `document` says.

    Args:
        live: The object as it is; None to make it.
        owners: Who manages its fields after an apply, or before another write; None: as it is.
        operation: `Apply` when `owners` are final.
    Raises:
        ApiError: The object may not be written: 400, 404 (its namespace), 409, 422.
    """
    status = document.pop("status", None)
    given = metadata_of(info, document)
    document, warnings = admit(info, document, intent.field_validation)
    check_families(info, document, space.families)
    if info.kind == "Secret":
        fold_string_data(document)
    if info is namespace_kind():
        labels = document["metadata"].get("labels") or {}
        document["metadata"]["labels"] = {**labels, NAME_LABEL: given.name}
    if live is None:
        check_place(space, info, namespace, given.name)
    else:
        _check_immutable(space, info, live, document)
    if operation != APPLY:
        owners = _owners_after(space, info, document, live, given, owners, intent)
    key = space.key(info, namespace, given.name)
    row = _row(space, info, key, document, live, owners or [], intent)
    if row.deletion is None:
        check_tenants(space, info, row)
    told = _status_as_data(info, key, row, live, status)
    if live is not None and row == live.row and not told:
        return Plan(UNCHANGED, live, (), tuple(warnings))
    if row.deletion is not None and not row.finalizers and live is not None:
        return Plan(DELETED, live, tuple(removal(live)), tuple(warnings))
    writes: list[Write] = [(key, row), *told]
    if info.kind == "MeshConfig":
        writes.append((Key(space.cluster, "mesh", "config", "", "mesh"), MeshConfigRow(row.spec)))
    entry = Entry(key, live.version if live else 0, intent.now, row)
    stored = Stored(entry, live.status_entry if live else None)
    return Plan(CONFIGURED if live else CREATED, stored, tuple(writes), tuple(warnings))


def _status_as_data(
    info: KindInfo, key: Key, row: ConfigObject, live: Stored | None, status: object
) -> list[Write]:
    """Pods and Nodes are data here: no kubelet says their addresses and readiness, so the status
    of the document is taken, as an update of the subresource would be elsewhere."""
    if info.group or info.kind not in ("Pod", "Node") or not isinstance(status, dict) or not status:
        return []
    fresh = ObjectStatus(row.uid, row.generation, status)
    held = live.status if live is not None else None
    if held is not None and held.status == status:
        return []
    return [(status_key(key), fresh)]


def _check_immutable(space: Space, info: KindInfo, live: Stored, document: Document) -> None:
    """A ConfigMap or Secret marked `immutable` keeps its content.

    Raises:
        ApiError: 422.
    """
    content, _ = open_content(live.row, live.entry.key, space.box)
    if info.kind not in ("ConfigMap", "Secret") or content.get("immutable") is not True:
        return
    fields = ("data", "binaryData", "immutable")
    changed = [name for name in fields if content.get(name) != document.get(name)]
    if changed:
        message = "may not be changed once `immutable` is true: delete the object and make it anew"
        causes = [Cause("FieldValueForbidden", message, name) for name in changed]
        raise invalid(info, live.row.name, causes)


def _owners_after(
    space: Space,
    info: KindInfo,
    document: Document,
    live: Stored | None,
    given: Metadata,
    owners: list[Owner] | None,
    intent: Intent,
) -> list[Owner]:
    """Who manages what after a write that is not an apply.

    A writer may replace `managedFields` (kubectl does when it moves to server-side apply); leaving
    them out keeps them, an empty list forgets them.
    """
    try:
        if owners is None:
            owners = owners_of(live.row.managed_fields) if live else []
            if given.managed is not None and (
                live is None or given.managed != live.row.managed_fields
            ):
                owners = owners_of(given.managed)
    except FieldsV1Error as error:
        raise bad_request(str(error)) from error
    by = writer_of(info, document, intent)
    return apply_merge.update(document, base_of(info, live, space), owners, by, shapes_of(info))


def _row(
    space: Space,
    info: KindInfo,
    key: Key,
    document: Document,
    live: Stored | None,
    owners: list[Owner],
    intent: Intent,
) -> ConfigObject:
    metadata = metadata_of(info, document)
    content = content_of(info, document)
    if live is None:
        created = intent.now
        if intent.restore and metadata.creation:
            created = min(seconds_of(metadata.creation) or intent.now, intent.now)
        uid, generation, deletion = intent.new_uid(), 1, None
    else:
        uid, created, deletion = live.row.uid, live.row.created, live.row.deletion
        same = open_content(live.row, key, space.box)[0] == content
        generation = live.row.generation + (0 if same else 1)
    row = ConfigObject(
        api_version=api_version_of(info),
        kind=info.kind,
        namespace=key.namespace,
        name=key.name,
        uid=uid,
        generation=generation,
        created=created,
        labels=metadata.labels or {},
        annotations=metadata.annotations or {},
        spec=content,
        managed_fields=managed_fields_of(owners),
        owner_references=metadata.owners or [],
        finalizers=metadata.finalizers or [],
        deletion=deletion,
    )
    return seal_content(row, key, space.box, live.row if live else None)
