"""Gateways of networks: addresses, names, services; and what nothing can be sent to."""

from typing import Any

import pytest
from meshes import Rendered, Rows, config, endpoints, host, mesh_config, rows, service, sidecar

from meshbus.compile.engine import Engine
from meshbus.compile.networks import Networks, networks
from meshbus.compile.offline import world_of_documents
from meshbus.model.keys import Key
from meshbus.model.rows import ResolvedName
from meshbus.model.world import world_of


def mesh_networks(**held: Any) -> Rows:
    row = config("MeshNetworks", "mesh", {"networks": held}, "")
    return {Key("Kubernetes", "cfg", "meshnetworks", "", "mesh"): next(iter(row.values()))}


def named(name: str, *addresses: str) -> Rows:
    return {Key("Kubernetes", "reg", "names", "", name): ResolvedName(name, list(addresses))}


def known(*parts: Rows) -> Networks:
    found: Networks = Engine(world_of(rows(mesh_config(), *parts))).get(networks)
    return found


def places(found: Networks, network: str) -> set[tuple[str, int]]:
    return {(g.address, g.port) for g in found.gateways_of(network)}


def told(found: Networks) -> dict[str, str]:
    return {f.path: f.message for f in found.findings}


def test_names_are_looked_up_by_somebody_else() -> None:
    named_one = {"address": "Gw.example.com.", "port": 443}
    held = mesh_networks(east={"gateways": [named_one, {"address": "1.2.3.4", "port": 1}]})
    found = known(held)
    assert found.names == ("gw.example.com",)
    assert places(found, "east") == {("1.2.3.4", 1)}
    path = "spec.networks.east.gateways[0].address"
    assert told(found) == {
        path: "Gw.example.com. has not been looked up yet: nothing is sent there"
    }
    found = known(held, named("gw.example.com", "5.6.7.8", "fd00::1"))
    assert places(found, "east") == {("1.2.3.4", 1), ("5.6.7.8", 443), ("fd00::1", 443)}
    assert told(found) == {}


@pytest.mark.parametrize("spelling", ["registryServiceName", "registry_service_name"])
def test_services_stand_for_where_they_are_reached_from_outside(spelling: str) -> None:
    held = mesh_networks(east={"gateways": [{spelling: host("gw"), "port": 443}]})
    path = "spec.networks.east.gateways[0].registryServiceName"
    assert told(known(held)) == {path: f"service {host('gw')} is not known in its clusters"}
    inside = service("gw", ("tls", 443, "TLS"))
    found = known(held, inside)
    assert told(found) == {path: f"service {host('gw')} has no address outside its cluster"}
    outside = service("gw", ("tls", 443, "TLS"), outside=["9.9.9.9", "lb.example.com"])
    found = known(held, outside, named("lb.example.com", "8.8.8.8"))
    assert places(found, "east") == {("9.9.9.9", 443), ("8.8.8.8", 443)}
    assert told(found) == {}


def test_a_service_counts_in_the_clusters_of_its_network() -> None:
    gateway = [{"registryServiceName": host("gw"), "port": 443}]
    held = mesh_networks(
        east={"endpoints": [{"fromRegistry": "c-east"}], "gateways": gateway},
        west={"endpoints": [{"fromRegistry": "c-west"}], "gateways": gateway},
    )
    world = dict(held)
    for cluster, address in (("c-east", "1.1.1.1"), ("c-west", "2.2.2.2")):
        ((key, row),) = service("gw", ("tls", 443, "TLS"), outside=[address]).items()
        world[key._replace(cluster=cluster)] = row
    found = known(world)
    assert places(found, "east") == {("1.1.1.1", 443)}
    assert places(found, "west") == {("2.2.2.2", 443)}


def test_a_labelled_service_with_a_name_alone() -> None:
    labels = {"topology.istio.io/network": "east"}
    gateway = service("gw", ("tls", 15443, "TLS"), labels=labels, outside=["lb.example.com"])
    found = known(gateway)
    assert found.names == ("lb.example.com",)
    assert list(told(found)) == ["status.loadBalancer"]
    assert places(known(gateway, named("lb.example.com", "7.7.7.7")), "east") == {
        ("7.7.7.7", 15443)
    }


def test_proxies_are_told_and_sent_there() -> None:
    world = rows(
        mesh_config(),
        mesh_networks(east={"gateways": [{"address": "gw.example.com", "port": 443}]}),
        service("a", ("http", 80, "HTTP"), addresses=["10.96.0.1"]),
        endpoints("a", "10.0.0.1", ports={"http": 80}, network="east", tls_mode="istio"),
    )
    proxy = sidecar("b", network="west")
    name = f"outbound|80||{host('a')}"

    def called(found: Rendered) -> list[str]:
        return [
            lb["endpoint"]["address"]["socketAddress"]["address"]
            for group in found.endpoints[name].get("endpoints", [])
            for lb in group["lbEndpoints"]
        ]

    found = Rendered(world, proxy)
    assert [f.path for f in found.snapshot.findings] == ["spec.networks.east.gateways[0].address"]
    found = Rendered(rows(world, named("gw.example.com", "5.6.7.8")), proxy)
    assert called(found) == ["5.6.7.8"]
    assert found.snapshot.findings == ()


def test_where_a_service_is_reached_from_outside() -> None:
    documents = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "gw"},
            "spec": {"ports": [{"port": 443}], "externalIPs": ["1.1.1.1"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}, {"hostname": "lb.x"}]}},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "as-discovery-has-it"},
            "spec": {"ports": [{"port": 443}], "ingress": [{"ip": "3.3.3.3"}]},
        },
    ]
    found = {e.row.name: e.row.outside for e in world_of_documents(documents).all("reg.services")}
    assert found == {"gw": ["1.1.1.1", "2.2.2.2", "lb.x"], "as-discovery-has-it": ["3.3.3.3"]}


def nodes(selector: str | None, *, kind: str = "NodePort", **spec: Any) -> dict[str, Any]:
    """(addresses, ports) outside of a gateway's Service among three nodes, of which two have
    external addresses."""
    annotations = {} if selector is None else {"traffic.istio.io/nodeSelector": selector}

    def node(name: str, edge: bool, *places: tuple[str, str]) -> dict[str, Any]:
        addresses = [{"type": t, "address": a} for t, a in places]
        labels = {"edge": "yes", "zone": name} if edge else {"zone": name}
        meta = {"name": name, "labels": labels}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": meta,
            "status": {"addresses": addresses},
        }

    documents = [
        node("a", True, ("InternalIP", "10.0.0.1"), ("ExternalIP", "192.0.2.1")),
        node("b", True, ("InternalIP", "10.0.0.2")),
        node("c", False, ("ExternalIP", "192.0.2.3"), ("ExternalIP", "2001:db8::3")),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "gw", "annotations": annotations},
            "spec": {
                "type": kind,
                "ports": [{"name": "tls", "port": 15443, "nodePort": 31443}],
                **spec,
            },
        },
    ]
    (entry,) = world_of_documents(documents).all("reg.services")
    return {"outside": entry.row.outside, "outside_ports": entry.row.outside_ports}


def test_a_service_at_nodes() -> None:
    """Source: Istio, annotation `traffic.istio.io/nodeSelector`."""
    at = [(15443, 31443)]
    assert nodes('{"edge": "yes"}') == {"outside": ["192.0.2.1"], "outside_ports": at}
    everywhere = {"outside": ["192.0.2.1", "192.0.2.3"], "outside_ports": at}
    assert nodes("{}") == nodes("") == everywhere
    assert nodes("edge=yes") == nodes('{"edge": true}') == everywhere
    assert nodes('{"edge": "no"}') == {"outside": [], "outside_ports": at}
    # Without the annotation, or of another type, nodes do not count; external addresses come first.
    assert nodes(None) == {"outside": [], "outside_ports": []}
    assert nodes("{}", kind="ClusterIP") == {"outside": [], "outside_ports": []}
    given = nodes("{}", externalIPs=["198.51.100.7"])
    assert given == {"outside": ["198.51.100.7"], "outside_ports": at}


def test_gateways_at_nodes_are_called_at_node_ports() -> None:
    held = mesh_networks(east={"gateways": [{"registryServiceName": host("gw"), "port": 15443}]})
    gateway = {
        "annotations": {"traffic.istio.io/nodeSelector": "{}"},
        "outside": ["192.0.2.1", "192.0.2.3"],
        "outside_ports": [(15443, 31443)],
    }
    found = known(held, service("gw", ("tls", 15443, "TLS"), **gateway))
    assert places(found, "east") == {("192.0.2.1", 31443), ("192.0.2.3", 31443)}
    assert told(found) == {}
    labels = {"topology.istio.io/network": "west"}
    found = known(service("gw", ("tls", 15443, "TLS"), labels=labels, **gateway))
    assert places(found, "west") == {("192.0.2.1", 31443), ("192.0.2.3", 31443)}
    gateway["annotations"] = {"traffic.istio.io/nodeSelector": "edge=yes"}
    found = known(held, service("gw", ("tls", 15443, "TLS"), **gateway))
    assert places(found, "east") == {("192.0.2.1", 31443), ("192.0.2.3", 31443)}
    ((path, message),) = told(found).items()
    assert path == "spec.networks.east.gateways[0].registryServiceName"
    assert "no JSON object of labels: all nodes count" in message
