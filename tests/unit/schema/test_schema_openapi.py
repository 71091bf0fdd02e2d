"""OpenAPI of the kinds: what kubectl reads of it, and that it says what validation does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshbus.api.kinds import all_kinds, groups, kind_of
from meshbus.schema import json_schema_of, openapi_of, schema_name
from meshbus.schema.write import reference_files, stale, write

SERVED = [(group, version) for group, versions in groups().items() for version in versions]


def walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)


@pytest.mark.parametrize(("group", "version"), SERVED)
def test_documents_are_whole(group: str, version: str) -> None:
    document = openapi_of(group, version)
    schemas = document["components"]["schemas"]
    for part in walk(document):
        if isinstance(part.get("$ref"), str):
            assert part["$ref"].removeprefix("#/components/schemas/") in schemas
    kinds = [i for i in all_kinds() if i.group == group and version in i.versions]
    for info in kinds:
        schema = schemas[schema_name(info, version)]
        assert schema["x-kubernetes-group-version-kind"] == [
            {"group": group, "version": version, "kind": info.kind}
        ]
    json.dumps(document)
    assert openapi_of(group, version) == document


def test_a_patch_knows_field_validation() -> None:
    """kubectl asks for it before it leaves validation to the server."""
    document = openapi_of("networking.istio.io", "v1")
    path = "/apis/networking.istio.io/v1/namespaces/{namespace}/virtualservices/{name}"
    patch = document["paths"][path]["patch"]
    assert {"fieldValidation", "dryRun", "fieldManager", "force"} <= {
        p["name"] for p in patch["parameters"]
    }
    assert patch["x-kubernetes-group-version-kind"]["kind"] == "VirtualService"
    assert "application/apply-patch+yaml" in patch["requestBody"]["content"]
    assert "application/strategic-merge-patch+json" not in patch["requestBody"]["content"]
    assert document["paths"]["/apis/networking.istio.io/v1/virtualservices"]["get"]


def test_descriptions_are_the_docstrings() -> None:
    document = openapi_of("networking.istio.io", "v1")
    route = document["components"]["schemas"]["io.istio.networking.v1.VirtualService"]
    spec = route["properties"]["spec"]["properties"]
    assert spec["hosts"]["description"].startswith("Hosts to which the rules apply")
    retries = spec["http"]["items"]["properties"]["retries"]
    assert "0 turns retries off" in retries["properties"]["attempts"]["description"]
    undescribed = [
        name
        for part in walk(route)
        if isinstance(part.get("properties"), dict)
        for name, schema in part["properties"].items()
        if name not in ("items",) and "description" not in schema
    ]
    assert not undescribed


def test_cluster_scoped_kinds_have_no_namespace() -> None:
    paths = openapi_of("mesh.istio.io", "v1alpha1")["paths"]
    assert set(paths) == {
        "/apis/mesh.istio.io/v1alpha1/meshconfigs",
        "/apis/mesh.istio.io/v1alpha1/meshconfigs/{name}",
        "/apis/mesh.istio.io/v1alpha1/meshnetworks",
        "/apis/mesh.istio.io/v1alpha1/meshnetworks/{name}",
    }


def test_kinds_without_spec_have_their_fields_at_the_top() -> None:
    schemas = openapi_of("", "v1")["components"]["schemas"]
    assert {"data", "stringData", "type"} <= schemas["io.k8s.api.core.v1.Secret"][
        "properties"
    ].keys()
    ports = schemas["io.k8s.api.core.v1.Service"]["properties"]["spec"]["properties"]["ports"]
    assert ports["x-kubernetes-list-map-keys"] == ["port", "protocol"]


def test_json_schema_refuses_unknown_fields() -> None:
    info = kind_of("networking.istio.io/v1", "VirtualService")
    assert info is not None
    schema = json_schema_of(info)
    assert schema["properties"]["apiVersion"]["enum"][0] == "networking.istio.io/v1"
    assert schema["properties"]["spec"]["additionalProperties"] is False
    retries = schema["properties"]["spec"]["properties"]["http"]["items"]["properties"]["retries"]
    remote = retries["properties"]["retryRemoteLocalities"]
    assert remote["type"] == ["boolean", "null"]
    assert not any(str(key).startswith("x-kubernetes") for part in walk(schema) for key in part)


def test_reference_files_are_written_once(tmp_path: Path) -> None:
    assert len(stale(tmp_path)) == len(reference_files())
    write(tmp_path)
    assert stale(tmp_path) == []
    (tmp_path / "docs/reference/kinds.md").write_text("old")
    (tmp_path / "docs/reference/schemas" / "core.Gone.json").write_text("{}")
    assert stale(tmp_path) == ["docs/reference/kinds.md", "docs/reference/schemas/core.Gone.json"]
    write(tmp_path)
    assert stale(tmp_path) == []
