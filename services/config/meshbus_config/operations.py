"""What a write does: a request and the world in, the rows to write out. Pure.

Every verb ends in `_finish`, which admits the object, decides who manages its fields, and compares
with what is there: a write that changes nothing writes nothing.
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
from meshbus_config.admission import WARN, admit, check_place, check_removal, namespace_kind
from meshbus_config.documents import (
    LAST_APPLIED,
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
from meshbus_config.errors import (
    Cause,
    already_exists,
    bad_request,
    conflict,
    field_conflict,
    invalid,
    not_found,
)
from meshbus_config.field_sets import (
    APPLY,
    FieldsV1Error,
    Owner,
    Shapes,
    managed_fields_of,
    owners_of,
)

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


class Preconditions(NamedTuple):
    """What a deletion expects; empty: anything."""

    uid: str = ""
    resource_version: str = ""


class _Metadata(msgspec.Struct, kw_only=True):
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


def metadata_of(info: KindInfo, document: Document) -> _Metadata:
    """The metadata of a document.

    Raises:
        ApiError: 400, it is malformed.
    """
    try:
        return msgspec.convert(document.get("metadata") or {}, _Metadata)
    except msgspec.ValidationError as error:
        raise bad_request(f"{info.kind}: metadata: {error}") from error


def create(
    space: Space, info: KindInfo, namespace: str, document: Document, intent: Intent
) -> Plan:
    """A new object.

    Raises:
        ApiError: It may not be made: 400, 404 (its namespace), 409 (it exists), 422.
    """
    document, metadata = _addressed(info, namespace, "", document)
    if not metadata.name:
        if not metadata.generate_name:
            raise invalid(
                info,
                "",
                [Cause("FieldValueRequired", "name or generateName is required", "metadata.name")],
            )
        suffix = intent.new_uid().replace("-", "")[:5]
        document["metadata"]["name"] = metadata.name = f"{metadata.generate_name}{suffix}"
    if space.get(info, namespace, metadata.name) is not None:
        raise already_exists(info, metadata.name)
    owners = owners_of(metadata.managed) if intent.restore and metadata.managed else []
    return _finish(space, info, namespace, document, None, owners, intent, operation="")


def replace(
    space: Space, info: KindInfo, namespace: str, name: str, document: Document, intent: Intent
) -> Plan:
    """The object as the document says, whole.

    Raises:
        ApiError: 400, 404, 409 (resourceVersion or uid differ), 422.
    """
    live = space.get(info, namespace, name)
    if live is None:
        raise not_found(info, name)
    document, metadata = _addressed(info, namespace, name, document)
    _check_version(info, name, live, metadata.resource_version, metadata.uid)
    return _finish(space, info, namespace, document, live, None, intent, operation="")


def patch(
    space: Space,
    info: KindInfo,
    namespace: str,
    name: str,
    edit: Callable[[Document], Document],
    version: str,
    intent: Intent,
) -> Plan:
    """The object after `edit` of its document as `version`.

    Raises:
        ApiError: As `replace`.
    """
    live = space.get(info, namespace, name)
    if live is None:
        raise not_found(info, name)
    document = edit(render(info, live, space.box, version))
    if not isinstance(document, dict):
        raise bad_request("the patch leaves no object")
    return replace(space, info, namespace, name, document, intent)


def apply(
    space: Space, info: KindInfo, namespace: str, name: str, document: Document, intent: Intent
) -> Plan:
    """Server-side apply: the fields of the document, and no longer what the manager applied before.

    Raises:
        ApiError: As `replace`, and 409 with a cause for each field that another manages.
    """
    document, metadata = _addressed(info, namespace, name, document)
    if metadata.managed:
        raise bad_request("metadata.managedFields must be nil")
    live = space.get(info, namespace, name)
    if live is not None:
        _check_version(info, name, live, metadata.resource_version, metadata.uid)
    document.pop("status", None)
    if info.kind == "Secret":
        _fold_string_data(document)
    base = _base(info, live, space)
    owners = owners_of(live.row.managed_fields) if live else []
    by, shapes = _writer(info, document, intent), _shapes(info)
    if live is not None and not intent.force:
        found = [
            one
            for one in apply_merge.conflicts(document, base, owners, by, shapes)
            if not _same_person(intent.manager, one.owner, base)
        ]
        if found:
            raise field_conflict(
                info,
                name,
                [
                    Cause(
                        "FieldManagerConflict",
                        f'conflict with "{c.owner.manager}"'
                        + ("" if c.owner.operation == APPLY else f" using {c.owner.api_version}"),
                        c.path,
                    )
                    for c in found
                ],
            )
    merged, owners = apply_merge.apply(document, base, owners, by, shapes)
    merged["metadata"]["name"] = name
    if intent.restore and metadata.creation:
        merged["metadata"]["creationTimestamp"] = metadata.creation
    return _finish(space, info, namespace, merged, live, owners, intent, operation=APPLY)


def set_status(
    space: Space,
    info: KindInfo,
    namespace: str,
    name: str,
    edit: Callable[[Document], Document],
    version: str,
) -> Plan:
    """The object with the status that `edit` of its document gives; all else stays.

    Raises:
        ApiError: 400, 404, 409.
    """
    live = space.get(info, namespace, name)
    if live is None:
        raise not_found(info, name)
    document, metadata = _addressed(
        info, namespace, name, edit(render(info, live, space.box, version))
    )
    _check_version(info, name, live, metadata.resource_version, metadata.uid)
    status = document.get("status") or {}
    if not isinstance(status, dict):
        raise bad_request("status: expected a map")
    before = live.status.status if live.status else {}
    if status == before:
        return Plan(UNCHANGED, live, ())
    row = ObjectStatus(live.row.uid, live.row.generation, status)
    key = status_key(live.entry.key)
    entry = Entry(key, live.version, live.entry.ts, row)
    return Plan(CONFIGURED, live._replace(status_entry=entry), ((key, row),))


def delete(
    space: Space,
    info: KindInfo,
    namespace: str,
    name: str,
    expect: Preconditions,
    now: float,
) -> Plan:
    """The object gone, or marked while finalizers hold it. A Namespace takes its objects along.

    Raises:
        ApiError: 403, 404, 409.
    """
    live = space.get(info, namespace, name)
    if live is None:
        raise not_found(info, name)
    _check_version(info, name, live, expect.resource_version, expect.uid)
    check_removal(space, info, name)
    if live.row.finalizers:
        if live.row.deletion is not None:
            return Plan(UNCHANGED, live, ())
        row = msgspec.structs.replace(live.row, deletion=now)
        entry = live.entry._replace(row=row)
        return Plan(CONFIGURED, live._replace(entry=entry), ((live.entry.key, row),))
    writes: list[Write] = []
    if info is namespace_kind():
        writes += _contents(space, name)
    writes += _removal(live)
    if info.kind == "MeshConfig":
        writes.append((Key(space.cluster, "mesh", "config", "", "mesh"), None))
    return Plan(DELETED, live, tuple(writes))


def _contents(space: Space, namespace: str) -> list[Write]:
    writes: list[Write] = []
    held: list[str] = []
    for table in space.world.tables():
        if not table.startswith("cfg."):
            continue
        for entry in space.world.all(table):
            if entry.key.cluster != space.cluster or entry.key.namespace != namespace:
                continue
            stored = Stored(entry, space.world.entry(status_key(entry.key)))
            if stored.row.finalizers:
                held.append(f"{stored.row.kind} {stored.row.name}")
            writes += _removal(stored)
    if held:
        raise conflict(
            namespace_kind(),
            namespace,
            f"it holds objects with finalizers, remove these first: {', '.join(held[:10])}",
        )
    return writes


def _removal(live: Stored) -> list[Write]:
    writes: list[Write] = [(live.entry.key, None)]
    if live.status_entry is not None:
        writes.append((live.status_entry.key, None))
    return writes


# --------------------------------------------------------------------------- parts


def _same_person(manager: str, owner: Owner, live: Document) -> bool:
    """Whether `kubectl apply` goes on server-side where it was client-side: no conflict then.

    Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/#upgrading-from-client-side-apply-to-server-side-apply
    """
    annotations = live["metadata"].get("annotations") or {}
    return (
        manager == "kubectl"
        and owner.manager == "kubectl-client-side-apply"
        and LAST_APPLIED in annotations
    )


def _addressed(
    info: KindInfo, namespace: str, name: str, document: Any
) -> tuple[Document, _Metadata]:
    """The document with its kind, name and namespace filled in from where it is written to."""
    if not isinstance(document, dict):
        raise bad_request("the object is not a map")
    api_version, kind = document.get("apiVersion"), document.get("kind")
    known = [api_version_of(info, version) for version in info.versions]
    if kind not in (None, "", info.kind) or api_version not in (None, "", *known):
        raise bad_request(
            f"the object ({api_version}, Kind={kind}) does not match what is served here "
            f"({known[0]}, Kind={info.kind})"
        )
    metadata = metadata_of(info, document)
    if name and metadata.name not in ("", name):
        raise bad_request(
            f"the name of the object ({metadata.name}) does not match the name on the URL ({name})"
        )
    if info.namespaced and metadata.namespace not in ("", namespace):
        raise bad_request(
            f"the namespace of the provided object does not match the namespace sent on the "
            f"request ({metadata.namespace}, {namespace})"
        )
    if not info.namespaced and metadata.namespace:
        raise bad_request(f"{info.kind} is not namespaced: leave out metadata.namespace")
    addressed = {
        "apiVersion": api_version or known[0],
        "kind": info.kind,
        **{n: v for n, v in document.items() if n not in ("apiVersion", "kind")},
    }
    given = document.get("metadata")
    addressed["metadata"] = dict(given) if isinstance(given, dict) else {}
    if name:
        addressed["metadata"]["name"] = metadata.name = name
    if info.namespaced:
        addressed["metadata"]["namespace"] = namespace
    return addressed, metadata


def _check_version(
    info: KindInfo, name: str, live: Stored, resource_version: str, uid: str
) -> None:
    if uid and uid != live.row.uid:
        raise conflict(
            info,
            name,
            f"Precondition failed: UID in precondition: {uid}, UID in object meta: {live.row.uid}",
        )
    if resource_version not in ("", "0", str(live.version)):
        raise conflict(
            info,
            name,
            "the object has been modified; please apply your changes to the latest version and "
            "try again",
        )


def _writer(info: KindInfo, document: Document, intent: Intent) -> apply_merge.Writer:
    version = str(document.get("apiVersion") or api_version_of(info))
    return apply_merge.Writer(intent.manager, version, timestamp(intent.now))


def _shapes(info: KindInfo) -> Shapes:
    return Shapes(info.kind, info.group in ("", "discovery.k8s.io"))


def _base(info: KindInfo, live: Stored | None, space: Space) -> Document:
    """The live object without what nobody manages: status and the server's own metadata."""
    if live is None:
        return {"metadata": {}}
    document = render(info, live, space.box, managed=False)
    document.pop("status", None)
    return document


def _fold_string_data(document: Document) -> None:
    """Write `stringData` of a Secret into `data`, as Kubernetes does."""
    text = document.pop("stringData", None)
    if isinstance(text, dict) and text:
        data = dict(document.get("data") or {})
        for name, value in text.items():
            if not isinstance(value, str):
                raise bad_request(f"Secret: stringData.{name}: expected a string")
            data[name] = base64.b64encode(value.encode()).decode()
        document["data"] = data


def _finish(
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
    document.pop("status", None)
    given = metadata_of(info, document)
    document, warnings = admit(info, document, intent.field_validation)
    if info.kind == "Secret":
        _fold_string_data(document)
    if info is namespace_kind():
        labels = document["metadata"].get("labels") or {}
        document["metadata"]["labels"] = {**labels, NAME_LABEL: given.name}
    if live is None:
        check_place(space, info, namespace, given.name)
    if operation != APPLY:
        owners = _owners_after(space, info, document, live, given, owners, intent)
    key = space.key(info, namespace, given.name)
    row = _row(space, info, key, document, live, owners or [], intent)
    if live is not None and row == live.row:
        return Plan(UNCHANGED, live, (), tuple(warnings))
    if row.deletion is not None and not row.finalizers and live is not None:
        return Plan(DELETED, live, tuple(_removal(live)), tuple(warnings))
    writes: list[Write] = [(key, row)]
    if info.kind == "MeshConfig":
        writes.append((Key(space.cluster, "mesh", "config", "", "mesh"), MeshConfigRow(row.spec)))
    entry = Entry(key, live.version if live else 0, intent.now, row)
    stored = Stored(entry, live.status_entry if live else None)
    return Plan(CONFIGURED if live else CREATED, stored, tuple(writes), tuple(warnings))


def _owners_after(
    space: Space,
    info: KindInfo,
    document: Document,
    live: Stored | None,
    given: _Metadata,
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
    by = _writer(info, document, intent)
    return apply_merge.update(document, _base(info, live, space), owners, by, _shapes(info))


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
