"""MeshNetworks: each rule, and that a field which does nothing is told."""

from typing import Any

import pytest

from meshbus.validate import validate_object
from meshbus.validate.support import silent_fields_of


def document(**network: Any) -> dict[str, Any]:
    return {
        "apiVersion": "mesh.istio.io/v1alpha1",
        "kind": "MeshNetworks",
        "metadata": {"name": "mesh"},
        "spec": {"networks": {"east": network}},
    }


@pytest.mark.parametrize(
    ("network", "paths"),
    [
        ({}, []),
        ({"endpoints": [{"fromCidr": "10.0.0.0/8"}, {"fromRegistry": "Kubernetes"}]}, []),
        ({"endpoints": [{"from_cidr": "10.0.0.0/8"}]}, []),
        ({"endpoints": [{"fromCidr": "10.0.0.0/40"}]}, ["endpoints[0].fromCidr"]),
        ({"endpoints": [{"fromRegistry": "not valid"}]}, ["endpoints[0].fromRegistry"]),
        ({"endpoints": [{"fromRegistry": "a.b"}]}, ["endpoints[0].fromRegistry"]),
        ({"endpoints": [{}]}, ["endpoints[0]"]),
        ({"gateways": [{"address": "1.2.3.4", "port": 443}]}, []),
        ({"gateways": [{"address": "fd00::1", "port": 443}]}, []),
        ({"gateways": [{"address": "gw.example.com", "port": 443}]}, []),
        ({"gateways": [{"address": "gw_example", "port": 443}]}, ["gateways[0].address"]),
        ({"gateways": [{"registryServiceName": "gw.x.svc", "port": 443}]}, []),
        (
            {"gateways": [{"registryServiceName": "*", "port": 1}]},
            ["gateways[0].registryServiceName"],
        ),
        ({"gateways": [{"port": 443}]}, ["gateways[0]"]),
        ({"gateways": [{"address": "1.2.3.4"}]}, ["gateways[0].port"]),
        ({"gateways": [{"address": "1.2.3.4", "port": 70000}]}, ["gateways[0].port"]),
    ],
)  # fmt: skip
def test_rules(network: dict[str, Any], paths: list[str]) -> None:
    errors = validate_object(document(**network)).errors
    assert [e.path.removeprefix("spec.networks.east.") for e in errors] == paths


def test_a_gateway_is_one_thing() -> None:
    both = {"address": "1.2.3.4", "registryServiceName": "a.b", "port": 443}
    assert validate_object(document(gateways=[both])).errors


def test_where_a_gateway_is_says_nothing() -> None:
    held = document(gateways=[{"address": "1.2.3.4", "port": 443, "locality": "a/b"}])
    assert [v.path for v in silent_fields_of(held)] == ["spec.networks.east.gateways[0].locality"]
