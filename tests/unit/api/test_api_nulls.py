"""Fields that are null are left out; what else is null stays."""

from typing import Any

import pytest

from meshbus.api.nulls import without_nulls


def virtual_service(spec: Any) -> dict[str, Any]:
    return {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "spec": spec}


@pytest.mark.parametrize(
    ("spec", "left"),
    [
        ({"hosts": ["a"], "gateways": None}, {"hosts": ["a"]}),
        ({"http": [{"timeout": None, "mirrorPercent": None}]}, {"http": [{}]}),
        ({"http": [{"fault": {"delay": None}}]}, {"http": [{"fault": {}}]}),
        ({"http": [None], "hosts": [None]}, {"http": [None], "hosts": [None]}),
        ({"http": [{"match": [{"headers": {"a": None}}]}]},) * 2,
        ({"unknown": None}, {"unknown": None}),
    ],
)
def test_fields_of_structs_are_left_out(spec: dict[str, Any], left: dict[str, Any]) -> None:
    assert without_nulls(virtual_service(spec)) == virtual_service(left)


def test_a_content_that_is_null_is_left_out() -> None:
    assert "spec" not in without_nulls(virtual_service(None))
    config = {"apiVersion": "v1", "kind": "ConfigMap", "data": None, "binaryData": {}}
    assert without_nulls(config) == {"apiVersion": "v1", "kind": "ConfigMap", "binaryData": {}}


def test_what_is_free_in_form_keeps_its_nulls() -> None:
    patch = {"operation": "MERGE", "value": {"a": None}}
    document = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "spec": {"configPatches": [{"applyTo": "CLUSTER", "match": None, "patch": patch}]},
    }
    left = without_nulls(document)["spec"]["configPatches"]
    assert left == [{"applyTo": "CLUSTER", "patch": patch}]


def test_others_are_the_same() -> None:
    for document in (virtual_service({"hosts": ["a"]}), {"kind": "Nothing", "spec": None}):
        assert without_nulls(document) is document
