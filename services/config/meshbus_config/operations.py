"""The verbs: a request and the world in, a plan of rows out. Pure."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from meshbus.api.kinds import KindInfo
from meshbus.model.keys import Key
from meshbus.model.rows import ObjectStatus
from meshbus.model.world import Entry
from meshbus_config import apply_merge
from meshbus_config.admission import check_removal, namespace_kind
from meshbus_config.documents import (
    LAST_APPLIED,
    Document,
    Space,
    Stored,
    api_version_of,
    render,
    status_key,
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
from meshbus_config.field_sets import APPLY, Owner, owners_of
from meshbus_config.outcomes import (
    CONFIGURED,
    DELETED,
    UNCHANGED,
    Intent,
    Metadata,
    Plan,
    Write,
    base_of,
    finish,
    fold_string_data,
    metadata_of,
    removal,
    shapes_of,
    writer_of,
)


class Preconditions(NamedTuple):
    """What a deletion expects; empty: anything."""

    uid: str = ""
    resource_version: str = ""


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
    return finish(space, info, namespace, document, None, owners, intent, operation="")


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
    return finish(space, info, namespace, document, live, None, intent, operation="")


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
    status = document.pop("status", None)
    if info.kind == "Secret":
        fold_string_data(document)
    base = base_of(info, live, space)
    owners = owners_of(live.row.managed_fields) if live else []
    by, shapes = writer_of(info, document, intent), shapes_of(info)
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
    if status is not None:
        merged["status"] = status
    return finish(space, info, namespace, merged, live, owners, intent, operation=APPLY)


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
    writes += removal(live)
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
            writes += removal(stored)
    if held:
        raise conflict(
            namespace_kind(),
            namespace,
            f"it holds objects with finalizers, remove these first: {', '.join(held[:10])}",
        )
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
) -> tuple[Document, Metadata]:
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
