"""Which addresses an Ingress is served at."""

from typing import Any

import pytest

from meshbus.analyze.ingress_addresses import addresses_of, ingress_service, load_balancer_status


@pytest.mark.parametrize(
    ("spec", "balancer", "expected"),
    [
        ({}, [], []),
        ({}, [{"ip": "192.0.2.1", "hostname": "lb.example.com"}], ["192.0.2.1"]),
        ({}, [{"hostname": "lb.example.com"}], ["lb.example.com"]),
        (
            {"externalIPs": ["192.0.2.9", "192.0.2.1"]},
            [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}],
            ["192.0.2.1", "192.0.2.9", "2001:db8::1"],
        ),
        ({"type": "ExternalName", "externalName": "x.example.com"}, [], ["x.example.com"]),
        ({"type": "ExternalName"}, [{"ip": "192.0.2.1"}], []),
    ],
)
def test_addresses(spec: dict[str, Any], balancer: list[Any], expected: list[str]) -> None:
    assert addresses_of(spec, balancer) == expected


def test_status() -> None:
    assert load_balancer_status(["192.0.2.1", "lb.example.com", "2001:db8::1"]) == [
        {"ip": "192.0.2.1"},
        {"hostname": "lb.example.com"},
        {"ip": "2001:db8::1"},
    ]


def test_which_service() -> None:
    assert ingress_service({}) == "istio-ingressgateway"
    assert ingress_service({"ingressService": "edge"}) == "edge"
