"""Objects of the mesh as the API server has them, read and judged one by one. Pure."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import structlog
import yaml

from meshbus.api.kinds import KindInfo, kind_of
from meshbus.api.proto_json import document_as_json
from meshbus.compile.credential_names import (
    AUTHORITY_KEYS,
    SECRETS,
    credential_of,
    roots_secret_of,
    without_suffix,
)
from meshbus.model.rows import ConfigObject
from meshbus.validate import validate_object
from meshbus.validate.report import Violation
from meshbus.validate.support import silent_fields_of, unsupported_fields
from meshbus_config.documents import LAST_APPLIED

log = structlog.get_logger("kubernetes")
MESH_KEY, NETWORKS_KEY = "mesh", "meshNetworks"
_MESH_VERSION = "mesh.istio.io/v1alpha1"
_CREDENTIAL_FIELDS = frozenset({"credentialName", "caCertCredentialName"})
_CREDENTIAL_LISTS = frozenset({"credentialNames"})
_REFERENCE_LISTS = frozenset({"certificateRefs", "caCertificateRefs"})


class Judged(NamedTuple):
    """An object as it is, and what is wrong with it."""

    row: ConfigObject
    problems: tuple[Violation, ...]
    """Why it may not have an effect; none: it may."""
    warnings: tuple[Violation, ...]
    manager: str
    """Who wrote its content last, by the field manager's name."""
    version: str
    """resourceVersion."""
    status: dict[str, Any]


class _Managed(msgspec.Struct):
    manager: str = ""
    time: str = ""
    subresource: str = ""


class _Meta(msgspec.Struct):
    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    version: str = msgspec.field(name="resourceVersion", default="")
    created: str | None = msgspec.field(name="creationTimestamp", default=None)
    deleted: str | None = msgspec.field(name="deletionTimestamp", default=None)
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    managed: list[_Managed] | None = msgspec.field(name="managedFields", default=None)


class _Object(msgspec.Struct):
    """Definitions of others may let anything in: `spec` and `status` need not be objects."""

    metadata: _Meta
    spec: Any = None
    status: Any = None


_objects = msgspec.json.Decoder(_Object)


def read_object(info: KindInfo, body: bytes) -> Judged:
    """An object of a kind of the mesh.

    Raises:
        msgspec.MsgspecError, ValueError: It cannot be read at all.
    """
    read = _objects.decode(body)
    meta = read.metadata
    spec = read.spec if isinstance(read.spec, dict) else {}
    document: dict[str, Any] = {
        "apiVersion": info.api_version,
        "kind": info.kind,
        "metadata": {
            "name": meta.name,
            **({"namespace": meta.namespace} if meta.namespace else {}),
            "labels": meta.labels or {},
        },
        "spec": spec,
    }
    problems, warnings = _judge(document)
    if read.spec is not None and not isinstance(read.spec, dict):
        problems = (Violation("spec", "Type", "must be an object"),)
    row = ConfigObject(
        api_version=info.api_version,
        kind=info.kind,
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        generation=meta.generation,
        created=_seconds(meta.created),
        labels=meta.labels or {},
        annotations={k: v for k, v in (meta.annotations or {}).items() if k != LAST_APPLIED},
        spec=spec,
        deletion=_seconds(meta.deleted) if meta.deleted else None,
    )
    status = read.status if isinstance(read.status, dict) else {}
    return Judged(row, problems, warnings, _author(meta), meta.version, status)


def _judge(document: dict[str, Any]) -> tuple[tuple[Violation, ...], tuple[Violation, ...]]:
    """Errors and warnings. An object at which our own rules fail is not in force, and the others
    are."""
    try:
        report = validate_object(document)
        problems = tuple(report.errors) or tuple(unsupported_fields(document, injects=True))
    except Exception as error:
        log.exception("an object cannot be judged", kind=document["kind"], **document["metadata"])
        return (Violation("", "Invalid", f"it cannot be judged: {error!r}"),), ()
    return problems, tuple(report.warnings)


def _author(meta: _Meta) -> str:
    """Who wrote the content last; statuses are not content."""
    content = [one for one in meta.managed or () if one.subresource != "status"]
    return max(content, key=lambda one: one.time).manager if content else ""


def _seconds(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


# --------------------------------------------------------------------------- the mesh config


class _ConfigMap(msgspec.Struct):
    metadata: _Meta
    data: dict[str, str] | None = None


_config_maps = msgspec.json.Decoder(_ConfigMap)


class JudgedMesh(NamedTuple):
    """The mesh config of a ConfigMap."""

    spec: dict[str, Any]
    problems: tuple[Violation, ...]
    warnings: tuple[Violation, ...]
    """What of it has no effect."""
    manager: str
    networks: Judged | None
    """Its key `meshNetworks`, as an object; None: it has none."""


def read_mesh_config(body: bytes) -> JudgedMesh:
    """The mesh config of ConfigMap `istio`: keys `mesh` and `meshNetworks`, YAML.

    Raises:
        msgspec.MsgspecError, ValueError: It cannot be read.
    """
    read = _config_maps.decode(body)
    spec = _part(read, MESH_KEY)
    document = _mesh_document("MeshConfig", spec)
    report = validate_object(document)
    document = document_as_json(document)
    lost = (*unsupported_fields(document, injects=True), *silent_fields_of(document))
    return JudgedMesh(
        document["spec"],
        tuple(report.errors),
        (*report.warnings, *lost),
        _author(read.metadata),
        _networks(read) if (read.data or {}).get(NETWORKS_KEY) else None,
    )


def _networks(read: _ConfigMap) -> Judged:
    spec, meta = _part(read, NETWORKS_KEY), read.metadata
    document = _mesh_document("MeshNetworks", spec)
    report = validate_object(document)
    row = ConfigObject(
        api_version=_MESH_VERSION,
        kind="MeshNetworks",
        namespace="",
        name="mesh",
        uid=meta.uid,
        generation=meta.generation,
        created=_seconds(meta.created),
        spec=document_as_json(document)["spec"],
    )
    errors, warnings = tuple(report.errors), tuple(report.warnings)
    return Judged(row, errors, warnings, _author(meta), meta.version, {})


def _part(read: _ConfigMap, key: str) -> dict[str, Any]:
    try:
        spec = yaml.load((read.data or {}).get(key, ""), Loader=yaml.CSafeLoader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{key}: {error}") from None
    if not isinstance(spec, dict):
        raise ValueError(f"{key}: a mapping is needed")
    return spec


def _mesh_document(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": _MESH_VERSION,
        "kind": kind,
        "metadata": {"name": "mesh"},
        "spec": spec,
    }


# --------------------------------------------------------------------------- credentials


class _Secret(msgspec.Struct):
    metadata: _Meta
    type: str = "Opaque"
    data: dict[str, str] | None = None


_secrets = msgspec.json.Decoder(_Secret)


class HeldCredential(NamedTuple):
    """A Secret or ConfigMap that an object names. The row of a Secret says that it is there and
    when it is another one; that of a ConfigMap has its authorities, and nothing else of it."""

    row: ConfigObject
    data: dict[str, str]
    """Of a Secret, which stays here; base64, as Kubernetes has it."""


def read_secret(body: bytes) -> HeldCredential:
    """A Secret.

    Raises:
        msgspec.MsgspecError, ValueError: It cannot be read.
    """
    read = _secrets.decode(body)
    spec = {"type": read.type, "version": read.metadata.version}
    return HeldCredential(_credential_row("Secret", read.metadata, spec), read.data or {})


def read_authorities(body: bytes) -> HeldCredential:
    """A ConfigMap with authorities.

    Raises:
        msgspec.MsgspecError, ValueError: It cannot be read.
    """
    read = _config_maps.decode(body)
    held = read.data or {}
    spec = {"data": {key: held[key] for key in AUTHORITY_KEYS if key in held}}
    return HeldCredential(_credential_row("ConfigMap", read.metadata, spec), {})


def _credential_row(kind: str, meta: _Meta, spec: dict[str, Any]) -> ConfigObject:
    return ConfigObject(
        api_version="v1",
        kind=kind,
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        generation=meta.generation,
        created=_seconds(meta.created),
        spec=spec,
    )


class CredentialName(NamedTuple):
    """What an object names, whatever its namespace."""

    table: str
    """`secrets` or `configmaps`."""
    name: str


def credentials_of(rows: Iterator[ConfigObject]) -> frozenset[CredentialName]:
    """Secrets and ConfigMaps that objects name."""
    found: set[CredentialName] = set()
    for row in rows:
        for written in (*_credentials(row.spec), *_of_ingress(row)):
            try:
                credential = credential_of(written, "")
            except Exception:  # noqa: BLE001, S112 - what is no name names nothing
                continue
            names = [credential]
            if credential.table == SECRETS:
                names += [roots_secret_of(credential), without_suffix(credential)]
            found |= {CredentialName(credential.table, one.name) for one in names}
    return frozenset(found)


def _of_ingress(row: ConfigObject) -> Iterator[str]:
    for tls in (row.spec.get("tls") or ()) if row.kind == "Ingress" else ():
        if isinstance(tls, Mapping) and isinstance(tls.get("secretName"), str):
            yield tls["secretName"]


def _credentials(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name in _CREDENTIAL_FIELDS and isinstance(inner, str) and inner:
                yield inner
            elif name in _CREDENTIAL_LISTS and isinstance(inner, list):
                yield from (one for one in inner if isinstance(one, str) and one)
            elif name in _REFERENCE_LISTS and isinstance(inner, list):
                for reference in inner:
                    if isinstance(reference, Mapping) and isinstance(reference.get("name"), str):
                        yield str(reference["name"])
            else:
                yield from _credentials(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _credentials(inner)


def secret_kind() -> KindInfo:
    """The kind Secret."""
    info = kind_of("v1", "Secret")
    assert info is not None
    return info
