"""Services of one family of addresses, and of both."""

import re
import socket
import subprocess
from urllib.parse import urlsplit

import pytest
from dns_client import AAAA, A, ask
from standalone import status_of, until
from task_mesh import Config, TaskMesh, service

from meshbus.local.netns import socket_in

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


@pytest.mark.parametrize(("lost", "order"), [(4, ["IPv4", "IPv6"]), (6, ["IPv6", "IPv4"])])
def test_an_instance_that_lost_one_family_is_reached_by_the_other(
    started_mesh: TaskMesh, config: Config, lost: int, order: list[str]
) -> None:
    """The family that is lost is the one that is tried first."""
    mesh = started_mesh
    made = service("only", ("http", 8000, 8080))
    made["spec"] |= {"selector": {"app": "httpbin", "version": "v1"}, "ipFamilies": order}
    config.apply([made])
    config.apply(
        """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: only}
spec:
  host: only
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}
"""
    )
    url = "http://only:8000/"
    until(lambda: mesh.get(url, family=lost).version == "v1", "it is called")
    instance = "default/httpbin-v1-0"
    family = ["ip", "-n", mesh.namespace(instance), f"-{lost}"]
    shown = subprocess.run(
        [*family, "-o", "addr", "show", "dev", "eth0", "scope", "global"],
        capture_output=True,
        text=True,
        check=True,
    )
    block = shown.stdout.split()[3]
    subprocess.run([*family, "addr", "del", block, "dev", "eth0"], check=True)
    try:
        for by in (4, 6):
            answer = mesh.get(url, family=by)
            assert (answer.status, answer.version) == (200, "v1"), answer.text
    finally:
        nodad = ["nodad"] if lost == 6 else []
        subprocess.run([*family, "addr", "add", block, "dev", "eth0", *nodad], check=True)
        mesh.family = lost
        subprocess.run([*family, "route", "replace", "default", "via", mesh.bridge], check=True)
    until(lambda: mesh.get(url, family=lost).status == 200, "it is whole again")


def test_a_mesh_has_the_addresses_of_its_families(task_mesh: TaskMesh) -> None:
    wanted = {number == 6 for number in task_mesh.numbers}
    for name, instance in status_of(task_mesh.home).instances.items():
        assert {":" in address for address in instance.addresses} == wanted, name
    host = urlsplit(task_mesh.api.url).hostname
    assert host == ("127.0.0.1" if 4 in task_mesh.numbers else "::1")
    own = task_mesh.home.instances / "default.curl-0" / "app.resolv.conf"
    server = own.read_text().split()[1]
    kind = socket.AF_INET6 if ":" in server else socket.AF_INET
    for number, question in ((4, A), (6, AAAA)):
        sock = socket_in(task_mesh.namespace("default/curl-0"), kind, socket.SOCK_DGRAM)
        reply = ask((server, 53), "echo.default.svc.cluster.local", question, sock=sock)
        assert reply.code == 0  # of a family that is not there: no address, but no error
        assert len(reply.addresses) == (number in task_mesh.numbers), number


def denied(name: str, selector: str, field: str, blocks: list[str]) -> str:
    """Whoever comes from these blocks is refused."""
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name.rpartition("/")[2]}, namespace: {name.partition("/")[0]}}}
spec:
  selector: {{matchLabels: {{{selector}}}}}
  action: DENY
  rules: [{{from: [{{source: {{{field}: {blocks}}}}}]}}]
"""


def test_blocks_of_policies_are_of_either_family(started_mesh: TaskMesh, config: Config) -> None:
    mesh = started_mesh
    for only in ("IPv4", "IPv6"):
        made = service(f"only-{only[-1]}", ("http", 8000, 8080))
        made["spec"] |= {
            "selector": {"app": "httpbin"},
            "ipFamilyPolicy": "SingleStack",
            "ipFamilies": [only],
        }
        config.apply([made])
    caller = {family: mesh.address("default/curl-0", family) for family in (4, 6)}

    def answers() -> dict[int, int]:
        return {f: mesh.get(f"http://only-{f}:8000/", family=f).status for f in (4, 6)}

    until(lambda: answers() == {4: 200, 6: 200}, "both are called")
    for families in ((4,), (6,), (4, 6)):
        blocks = [f"{caller[f]}/{32 if f == 4 else 128}" for f in families]
        config.apply(denied("default/blocks", "app: httpbin", "ipBlocks", blocks))
        wanted = {f: 403 if f in families else 200 for f in (4, 6)}
        until(lambda: answers() == wanted, f"{blocks} are refused")  # noqa: B023 - called at once


def test_blocks_of_clients_of_a_gateway_are_of_either_family(
    started_mesh: TaskMesh, config: Config
) -> None:
    mesh = started_mesh
    config.apply(
        """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: entry}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: entry}
spec:
  hosts: [httpbin.example.com]
  gateways: [entry]
  http: [{route: [{destination: {host: httpbin, port: {number: 8000}}}]}]
"""
    )
    own = {}
    for family in (4, 6):
        mesh.family = family
        own[family] = mesh.bridge

    def answers() -> dict[int, int]:
        url = "http://httpbin.example.com/"
        return {f: mesh.ingress(url, family=f).status for f in (4, 6)}

    until(lambda: answers() == {4: 200, 6: 200}, "the gateway listens")
    for families in ((4,), (6,), (4, 6)):
        blocks = [f"{own[f]}/{24 if f == 4 else 64}" for f in families]
        name = "istio-system/clients"
        config.apply(denied(name, "istio: ingressgateway", "remoteIpBlocks", blocks))
        wanted = {f: 403 if f in families else 200 for f in (4, 6)}
        until(lambda: answers() == wanted, f"{blocks} are refused")  # noqa: B023 - called at once


def test_tcp_routes_tell_destinations_of_either_family_apart(
    started_mesh: TaskMesh, config: Config
) -> None:
    mesh = started_mesh
    config.apply(
        """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: tcp-echo}
spec:
  host: tcp-echo
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tcp-echo}
spec:
  hosts: [tcp-echo]
  tcp:
  - match: [{port: 9000, destinationSubnets: ["2001:2::/48"]}]
    route: [{destination: {host: tcp-echo, port: {number: 9000}, subset: v2}}]
  - match: [{port: 9000, destinationSubnets: ["240.240.0.0/16"]}]
    route: [{destination: {host: tcp-echo, port: {number: 9000}, subset: v1}}]
"""
    )
    for family, version in ((4, "v1"), (6, "v2")):
        said = {mesh.say("tcp-echo", 9000, family=family) for _ in range(6)}
        assert said == {f"{version} hi"}, family
