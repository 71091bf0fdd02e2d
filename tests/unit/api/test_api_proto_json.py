"""Protobuf JSON as JSON alone."""

from typing import Any

import pytest

from meshbus.api.proto_json import document_as_json


def of(kind: str, spec: Any, version: str = "mesh.istio.io/v1alpha1") -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": spec}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"access_log_encoding": 1}, {"accessLogEncoding": "JSON"}),
        (
            {"outboundTrafficPolicy": {"mode": 3}},
            {"outboundTrafficPolicy": {"mode": "ALLOW_ANY_DYNAMIC_DNS"}},
        ),
        (
            {"defaultConfig": {"controlPlaneAuthPolicy": 1000, "concurrency": "2"}},
            {"defaultConfig": {"controlPlaneAuthPolicy": "INHERIT", "concurrency": 2}},
        ),
        (
            {
                "defaultConfig": {
                    "tracing": {"sampling": "1.5", "openCensusAgent": {"context": [4]}}
                }
            },
            {
                "defaultConfig": {
                    "tracing": {"sampling": 1.5, "openCensusAgent": {"context": ["B3"]}}
                }
            },
        ),
        (
            {"defaultTrafficPolicy": {"loadBalancer": {"simple": 4}}},
            {"defaultTrafficPolicy": {"loadBalancer": {"simple": "ROUND_ROBIN"}}},
        ),
        (
            {"defaultConfig": {"proxy_metadata": {"a_b": "1"}}},
            {"defaultConfig": {"proxyMetadata": {"a_b": "1"}}},
        ),
    ],
)
def test_names_and_values_are_those_of_json(written: Any, meant: Any) -> None:
    assert document_as_json(of("MeshConfig", written)) == of("MeshConfig", meant)


@pytest.mark.parametrize(
    "spec",
    [
        {"accessLogEncoding": 2},
        {"accessLogEncoding": True},
        {"proxyListenPort": "0x1"},
        {"defaultConfig": "none"},
        {"defaultConfig": {"tracing": {"sampling": "Infinity"}}},
        {"not_a_field": {"a_b": "1"}},
        ["a"],
    ],
)
def test_what_means_nothing_stays(spec: Any) -> None:
    assert document_as_json(of("MeshConfig", spec)) == of("MeshConfig", spec)


def test_other_kinds_are_the_same() -> None:
    document = of(
        "VirtualService", {"http": [{"retries": {"attempts": "1"}}]}, "networking.istio.io/v1"
    )
    assert document_as_json(document) is document
