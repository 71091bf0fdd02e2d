"""Unix sockets of a Sidecar's egress."""

from typing import Any

import pytest
from meshes import Rendered, Rows, config, endpoints, host, rows, service, sidecar

SOCKET = "unix:///run/mesh/out.sock"


def mesh(protocol: str, *hosts: str, more: tuple[dict[str, Any], ...] = ()) -> Rows:
    egress = {
        "port": {"number": 0, "protocol": protocol, "name": "out"},
        "bind": SOCKET,
        "hosts": list(hosts or ("./*",)),
    }
    return rows(
        service("web", ("http", 80, "HTTP"), ("admin", 81, "HTTP"), addresses=["10.96.0.1"]),
        service("db", ("tcp", 5432, "TCP"), addresses=["10.96.0.2"], created=1.0),
        service("other", ("tcp", 5433, "TCP"), addresses=["10.96.0.3"], created=2.0),
        service("safe", ("tls", 443, "TLS"), addresses=["10.96.0.4"]),
        endpoints("web", "10.0.0.9", ports={"http": 80, "admin": 81}),
        config("Sidecar", "out", {"egress": [egress, *more]}),
    )


def domains(found: Rendered) -> set[str]:
    return {d for vhost in found.routes[SOCKET]["virtualHosts"] for d in vhost["domains"]}


@pytest.mark.parametrize("capture", ["redirect", "proxy"])
def test_http_is_routed_by_name_at_all_ports(capture: str) -> None:
    found = Rendered(mesh("HTTP"), sidecar("a", capture=capture))
    listener = found.listeners[SOCKET]
    assert listener["address"] == {"pipe": {"path": "/run/mesh/out.sock"}}
    (chain,) = listener["filterChains"]
    assert "filterChainMatch" not in chain
    assert chain["filters"][0]["typedConfig"]["rds"]["routeConfigName"] == SOCKET
    assert {"web", f"{host('web')}:80", "web:81"} <= domains(found)
    vhosts = {vhost["name"]: vhost for vhost in found.routes[SOCKET]["virtualHosts"]}
    assert vhosts["block_all"]["routes"][-1]["directResponse"]["status"] == 502
    assert f"outbound|81||{host('web')}" in found.clusters


def test_the_hosts_of_a_socket_are_called_there_alone() -> None:
    found = Rendered(mesh("HTTP"), sidecar("a"))
    assert [n for n in found.listeners if n[0].isdigit()] == []
    more = ({"hosts": ["./db.default.svc.cluster.local"]},)
    both = Rendered(mesh("HTTP", "./web.default.svc.cluster.local", more=more), sidecar("a"))
    assert [n for n in both.listeners if n[0].isdigit()] == ["10.96.0.2_5432"]
    assert "db" not in domains(both)


def test_tcp_goes_to_the_oldest_service_and_tls_by_name() -> None:
    listener = Rendered(mesh("TCP"), sidecar("a")).listeners[SOCKET]
    (named,) = listener["filterChains"]
    assert named["filterChainMatch"]["serverNames"] == [host("safe")]
    rest = listener["defaultFilterChain"]["filters"][-1]["typedConfig"]
    assert rest["cluster"] == f"outbound|5432||{host('db')}"
    assert "80" not in Rendered(mesh("TCP"), sidecar("a")).routes


def test_a_protocol_that_is_not_said_is_found_out() -> None:
    found = Rendered(mesh(""), sidecar("a"))
    listener = found.listeners[SOCKET]
    http, named = listener["filterChains"]
    assert http["filterChainMatch"]["applicationProtocols"] == ["http/1.1", "h2c"]
    assert named["filterChainMatch"]["serverNames"] == [host("safe")]
    assert listener["defaultFilterChain"]["filters"][-1]["typedConfig"]["cluster"].startswith(
        "outbound|5432|"
    )
    assert SOCKET in found.routes


def test_without_a_service_for_it_nothing_gets_through() -> None:
    found = Rendered(mesh("TCP", "./web.default.svc.cluster.local"), sidecar("a"))
    rest = found.listeners[SOCKET]["defaultFilterChain"]["filters"][-1]["typedConfig"]
    assert rest["cluster"] == "BlackHoleCluster"
