"""Compile without a server: Kubernetes documents in, one proxy's Envoy resources out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from meshbus.api.kinds import kind_of, table_of
from meshbus.api.mesh.mesh_config import MeshConfig
from meshbus.api.proto_json import as_json, document_as_json
from meshbus.api.yaml_text import NotReadableError, read_yaml
from meshbus.compile.engine import Engine
from meshbus.compile.proxy import compile_proxy
from meshbus.compile.proxy_keys import (
    SELF_DISCOVERY,
    ProxyKeys,
    proxy_of_instance,
    proxy_of_json,
)
from meshbus.compile.registry import rows_of_objects
from meshbus.compile.render import render_findings, render_snapshot
from meshbus.compile.written import entries
from meshbus.model.keys import Key
from meshbus.model.module_sources import needed_modules
from meshbus.model.rows import ConfigObject, MeshConfigRow, Row, WasmModule, WorkloadInstance
from meshbus.model.world import World, world_of

CLUSTER = "Kubernetes"
"""The cluster token of offline worlds."""
_MESH_MAP = ("istio-system", "istio")
"""Namespace and name of the ConfigMap in which Istio keeps its mesh config."""
_DATA_KINDS = frozenset({"Pod", "Node", "Service"})
"""Kinds whose status says what they are: addresses and readiness."""
_NOT_CONTENT = frozenset({"apiVersion", "kind", "metadata", "status", "spec"})


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a proxy would get."""

    document: dict[str, Any]
    """`{"listeners", "routes", "clusters", "endpoints", "extensions", "secrets"}` as proto JSON."""
    findings: list[dict[str, str]]
    """What has no effect: `object`, `path`, `message`."""


def object_of_document(document: Mapping[str, Any], namespace: str = "default") -> ConfigObject:
    """The row of one Kubernetes document.

    Raises:
        ValueError: It has no kind, apiVersion or name.
    """
    metadata = document.get("metadata") or {}
    kind, api_version = document.get("kind"), document.get("apiVersion")
    name = metadata.get("name")
    if not (isinstance(kind, str) and isinstance(api_version, str) and isinstance(name, str)):
        raise ValueError("apiVersion, kind and metadata.name are needed")
    info = kind_of(api_version, kind)
    cluster_scoped = info is not None and not info.namespaced
    own = "" if cluster_scoped else str(metadata.get("namespace") or namespace)
    spec = document_as_json(dict(document)).get("spec")
    content = (
        spec
        if isinstance(spec, dict)
        else {field: value for field, value in document.items() if field not in _NOT_CONTENT}
    )
    if kind in _DATA_KINDS and isinstance(document.get("status"), dict):
        content = {**content, "status": document["status"]}
    return ConfigObject(
        api_version=api_version,
        kind=kind,
        namespace=own,
        name=name,
        uid=str(metadata.get("uid") or f"{kind}/{own}/{name}"),
        generation=int(metadata.get("generation") or 1),
        created=_seconds(metadata.get("creationTimestamp")),
        labels=_texts(metadata.get("labels")),
        annotations=_texts(metadata.get("annotations")),
        spec=content,
        owner_references=[o for o in metadata.get("ownerReferences") or [] if isinstance(o, dict)],
    )


def _texts(value: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _seconds(value: Any) -> float:
    if isinstance(value, datetime):
        return value.timestamp()
    if not isinstance(value, str):
        return 0.0
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        return 0.0


def world_of_documents(
    documents: Iterable[Mapping[str, Any]], mesh_config: Mapping[str, Any] | None = None
) -> World:
    """The world that these documents make: config rows, and what discovery derives from them.

    A document of kind `List` stands for its items. The mesh config is `mesh_config` (its fields),
    else the document of kind MeshConfig, else key `mesh` of ConfigMap `istio-system/istio`.

    Raises:
        ValueError: A document is not a Kubernetes object.
    """
    objects: dict[Key, ConfigObject] = {}
    settings, mapped = as_json(mesh_config, MeshConfig), None
    for document in flat_documents(documents):
        row = object_of_document(document)
        if row.kind == "MeshConfig":
            settings = settings if mesh_config is not None else row.spec
            continue
        key = Key(CLUSTER, "cfg", table_of(row.api_version, row.kind), row.namespace, row.name)
        objects[key] = row
        if (row.kind, row.namespace, row.name) == ("ConfigMap", *_MESH_MAP):
            mapped = _mapped_settings(row)
    settings = settings if settings is not None else mapped
    rows: dict[Key, Row] = dict(objects)
    if settings is not None:
        rows[Key(CLUSTER, "mesh", "config", "", "mesh")] = MeshConfigRow(dict(settings))
    selectors = entries((settings or {}).get("discoverySelectors"))
    rows.update(rows_of_objects(objects, selectors))
    world = world_of(rows)
    for key, need in needed_modules(world).items():
        # Nothing is fetched: the proxy is shown where its module would come from.
        rows[key] = WasmModule(need.source.url, elsewhere=True)
    return world_of(rows)


def _mapped_settings(row: ConfigObject) -> dict[str, Any] | None:
    """The mesh config of Istio's ConfigMap; None: it has none, or it cannot be read."""
    text = (row.spec.get("data") or {}).get("mesh")
    try:
        held = read_yaml(text) if isinstance(text, str) else None
    except NotReadableError:
        return None
    return as_json(held, MeshConfig) if isinstance(held, dict) else None


def flat_documents(documents: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Documents, the items of lists in their places; empty ones are left out."""
    for document in documents:
        if not document:
            continue
        if str(document.get("kind", "")).endswith("List") and isinstance(
            document.get("items"), list
        ):
            yield from flat_documents(document["items"])
        else:
            yield document


def find_instance(world: World, name: str) -> ProxyKeys:
    """The proxy of `NAMESPACE/NAME`: an instance, or the first one of a workload.

    Raises:
        LookupError: There is none.
    """
    namespace, slash, short = name.rpartition("/")
    namespace = namespace if slash else "default"
    instances: list[WorkloadInstance] = [
        e.row for e in world.all("reg.workloads") if e.row.namespace == namespace
    ]
    for row in instances:
        if row.name == short:
            return proxy_of_instance(row)
    for row in instances:
        if row.workload == short:
            return proxy_of_instance(row)
    there = sorted({f"{e.row.namespace}/{e.row.workload}" for e in world.all("reg.workloads")})
    known = f"there is {', '.join(there[:10])}" if there else "the manifests have none"
    raise LookupError(f"no workload {namespace}/{short}: {known}")


def _as_started(keys: ProxyKeys) -> ProxyKeys:
    """A proxy with what every bootstrap of ours says, unless it says otherwise."""
    said = {SELF_DISCOVERY: "true", **dict(keys.metadata)}
    return replace(keys, metadata=tuple(sorted(said.items())))


def compile_documents(
    documents: Iterable[Mapping[str, Any]],
    *,
    workload: str | None = None,
    proxy: dict[str, Any] | None = None,
    mesh_config: Mapping[str, Any] | None = None,
) -> Compiled:
    """What one proxy gets of these documents: a workload among them (`NAMESPACE/NAME`), or a proxy
    described by a P.json (DESIGN §8.1).

    Raises:
        ValueError: A document or the proxy is not what it should be.
        LookupError: The workload is not among the documents.
    """
    world = world_of_documents(documents, mesh_config)
    if proxy is not None:
        keys = proxy_of_json(proxy)
    elif workload is not None:
        keys = find_instance(world, workload)
    else:
        raise ValueError("a workload or a proxy is needed")
    snapshot = Engine(world).get(compile_proxy, _as_started(keys))
    return Compiled(render_snapshot(snapshot), render_findings(snapshot.findings))
