"""Families of IP: what proxies with IPv4, IPv6 or both bind, resolve and call from."""

from typing import Any

import msgspec
import pytest
from meshes import (
    Rendered,
    Rows,
    config,
    endpoints,
    host,
    mesh_config,
    router,
    rows,
    service,
    sidecar,
)

from meshbus.compile.families import Families, families_of

V4, V6, BOTH = ("10.0.0.9",), ("fd00::9",), ("10.0.0.9", "fd00::9")
WORLD = rows(
    service("a", ("http", 80, "HTTP"), ("tcp", 5432, "TCP"), addresses=["10.96.0.1", "fd96::1"]),
    endpoints("a", "10.0.0.9", ports={"http": 80, "tcp": 5432}),
    service(
        "out", ("http", 8080, "HTTP"), host="out.example.com", origin="external", external=True,
        resolution="DNS",
    ),
)  # fmt: skip


def of(ips: tuple[str, ...], *more: Rows, **spec: Any) -> Rendered:
    return Rendered(rows(WORLD, mesh_config(**spec), *more), sidecar("a", ips=ips))


def bound(listener: dict[str, Any]) -> list[str]:
    places = [listener["address"], *(a["address"] for a in listener.get("additionalAddresses", []))]
    return [place["socketAddress"]["address"] for place in places]


@pytest.mark.parametrize(
    ("ips", "families"),
    [
        (V4, Families(True, False)),
        (V6, Families(False, True)),
        (BOTH, Families(True, True)),
        ((), Families(True, False)),
    ],
)
def test_families_of_addresses(ips: tuple[str, ...], families: Families) -> None:
    assert families_of(ips) == families


@pytest.mark.parametrize(
    ("ips", "anywhere", "virtual", "lookup"),
    [
        (V4, ["0.0.0.0"], ["10.96.0.1"], "V4_ONLY"),
        (V6, ["::"], ["fd96::1"], "V6_ONLY"),
        (BOTH, ["0.0.0.0", "::"], ["10.96.0.1", "fd96::1"], "ALL"),
    ],
)
def test_what_a_sidecar_binds_and_resolves(
    ips: tuple[str, ...], anywhere: list[str], virtual: list[str], lookup: str
) -> None:
    found = of(ips)
    for name in ("virtualInbound", "virtualOutbound", f"{anywhere[0]}_80"):
        assert bound(found.listeners[name]) == anywhere
    assert bound(found.listeners[f"{virtual[0]}_5432"]) == virtual
    cluster = found.clusters["outbound|8080||out.example.com"]
    assert cluster.get("dnsLookupFamily", "AUTO") == lookup


@pytest.mark.parametrize(
    ("ips", "sources"),
    [(V4, ["127.0.0.6"]), (V6, ["::6"]), (BOTH, ["127.0.0.6", "::6"])],
)
def test_where_an_application_is_called_from(ips: tuple[str, ...], sources: list[str]) -> None:
    config = of(ips).clusters["inbound|80||"]["upstreamBindConfig"]
    extra = [e["address"]["address"] for e in config.get("extraSourceAddresses", [])]
    assert [config["sourceAddress"]["address"], *extra] == sources


@pytest.mark.parametrize(("ips", "local"), [(V4, "127.0.0.1"), (V6, "::1"), (BOTH, "127.0.0.1")])
def test_what_is_local(ips: tuple[str, ...], local: str) -> None:
    found = of(ips, proxyHttpPort=15002, inboundTrafficPolicy={"mode": "LOCALHOST"})
    assert bound(found.listeners[f"{local}_15002"]) == [local]
    (group,) = found.clusters["inbound|80||"]["loadAssignment"]["endpoints"]
    address = group["lbEndpoints"][0]["endpoint"]["address"]["socketAddress"]
    assert address["address"] == local


@pytest.mark.parametrize(
    ("ips", "anywhere"), [(V4, ["0.0.0.0"]), (V6, ["::"]), (BOTH, ["0.0.0.0", "::"])]
)
def test_what_a_gateway_binds(ips: tuple[str, ...], anywhere: list[str]) -> None:
    gateway = config(
        "Gateway",
        "edge",
        {
            "selector": {"istio": "ingressgateway"},
            "servers": [
                {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
            ],
        },
        "istio-system",
    )
    proxy = router(ips=ips)
    found = Rendered(rows(WORLD, mesh_config(), gateway), proxy)
    assert bound(found.listeners[f"{anywhere[0]}_80"]) == anywhere


def test_endpoints_of_both_families_are_tried_in_turn() -> None:
    both = endpoints("a", "10.0.0.9", ports={"http": 80})
    ((key, shard),) = both.items()
    member = msgspec.structs.replace(shard.endpoints[0], addresses=["10.0.0.9", "fd00::9"])
    shard = msgspec.structs.replace(shard, endpoints=[member])
    found = of(V6, {key: shard})
    (lb,) = found.endpoints[f"outbound|80||{host('a')}"]["endpoints"][0]["lbEndpoints"]
    (second,) = lb["endpoint"]["additionalAddresses"]
    assert second["address"]["socketAddress"]["address"] == "fd00::9"
