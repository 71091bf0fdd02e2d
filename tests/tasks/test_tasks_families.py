"""Services of one family of addresses, and of both."""

import re
import subprocess
from ipaddress import IPv4Network

import pytest
from standalone import until
from task_mesh import Config, TaskMesh, service

from meshbus.local.addresses import bridge_address

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]


def endpoints(mesh: TaskMesh, client: str, port: int, host: str) -> set[str]:
    """Addresses that a client's Envoy calls for a service."""
    name = re.escape(f"outbound|{port}||{host}.default.svc.cluster.local")
    text = mesh.envoy(client, "/clusters")
    found = re.findall(rf"^{name}::(\S+):{8080}::cx_active", text, re.MULTILINE)
    return {address.strip("[]") for address in found}


@pytest.mark.parametrize(("only", "other"), [("IPv4", 6), ("IPv6", 4)])
def test_a_service_of_one_family(
    started_mesh: TaskMesh, config: Config, only: str, other: int
) -> None:
    mesh, family = started_mesh, int(only[-1])
    made = service("only", ("http", 8000, 8080), ("tcp", 9000, 9000))
    made["spec"] |= {
        "selector": {"app": "httpbin"},
        "ipFamilyPolicy": "SingleStack",
        "ipFamilies": [only],
    }
    config.apply([made])
    until(lambda: mesh.get("http://only:8000/", family=family).status == 200, "it is called")
    assert mesh.say("only", 9000, family=family) in ("v1 hi", "v2 hi")
    called = endpoints(mesh, "default/curl-0", 8000, "only")
    pods = {mesh.address(f"default/httpbin-{v}-0", family) for v in ("v1", "v2")}
    assert called == pods
    with pytest.raises(LookupError):
        mesh.resolve("default/curl-0", "only", other)


def test_an_instance_that_lost_one_family_is_reached_by_the_other(
    started_mesh: TaskMesh, config: Config
) -> None:
    mesh = started_mesh
    config.apply(
        """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: httpbin}
spec:
  host: httpbin
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}
  subsets: [{name: v1, labels: {version: v1}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: httpbin}
spec:
  hosts: [httpbin]
  http: [{route: [{destination: {host: httpbin, subset: v1}}]}]
"""
    )
    url = "http://httpbin:8000/"
    assert mesh.get(url, family=4).version == "v1"
    instance = "default/httpbin-v1-0"
    inside = ["ip", "-n", mesh.namespace(instance)]
    block = subprocess.run(
        [*inside, "-4", "-o", "addr", "show", "dev", "eth0"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[3]
    subprocess.run([*inside, "addr", "del", block, "dev", "eth0"], check=True)
    try:
        for family in (4, 6):
            answer = mesh.get(url, family=family)
            assert (answer.status, answer.version) == (200, "v1"), answer.text
    finally:
        subprocess.run([*inside, "addr", "add", block, "dev", "eth0"], check=True)
        state = mesh.home.state()
        assert state is not None
        bridge = bridge_address(IPv4Network(state.block))
        subprocess.run([*inside, "route", "replace", "default", "via", bridge], check=True)
    until(lambda: mesh.get(url, family=4).status == 200, "it is whole again")
