"""Mesh DNS as workloads use it, with nothing said to them."""

import socket
import subprocess
import sys
from typing import Any

import pytest
from dns_client import AAAA, A, ask
from standalone import pid_of
from task_mesh import Config, TaskMesh

from meshbus.local.netns import socket_in

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]


def looked_up(mesh: TaskMesh, client: str, *names: str) -> list[str]:
    """What the C library of an application says of names: addresses, or an error."""
    script = (
        "import socket, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: found = {i[4][0] for i in socket.getaddrinfo(name, 80, type=1)}\n"
        "    except socket.gaierror as error: found = {str(error.errno)}\n"
        "    print(' '.join(sorted(found)))\n"
    )
    pid = pid_of(mesh.home, f"app/{client}")
    inside = ["nsenter", "-n", "-m", "-t", str(pid), sys.executable, "-c", script, *names]
    result = subprocess.run(inside, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split("\n")[:-1]


def test_names_of_services_pods_and_the_world(task_mesh: TaskMesh) -> None:
    client = "default/curl-0"
    echo = task_mesh.resolve(client, "echo")
    assert echo.startswith("2001:2:" if task_mesh.family == 6 else "240.240.")
    pod = task_mesh.address("default/pool-v1-2")
    outside = task_mesh.address("elsewhere/outside-0")
    found = looked_up(
        task_mesh,
        client,
        "echo.default.svc",
        "istio-ingressgateway.istio-system",
        "pool-v1-2.pool-pods",
        "pool-v1-2.pool-pods.default.svc.cluster.local",
        "outside.example.com",
        "nobody.example.com",
        "nobody.default",
    )
    assert echo in found[0]
    assert found[1].startswith(("240.240.", "2001:2:"))
    assert pod in found[2].split()
    assert found[3] == found[2]
    assert outside in found[4].split()
    assert found[5:] == ["-2", "-2"]


def test_who_is_outside_the_mesh_is_given_pods(task_mesh: TaskMesh) -> None:
    pods = {task_mesh.address(f"default/tcp-echo-{v}-0") for v in ("v1", "v2")}
    kind = AAAA if task_mesh.family == 6 else A
    found = asked(task_mesh, "elsewhere/outside-0", "tcp-echo.default.svc.cluster.local", kind)
    assert set(found) == pods


def test_allocated_addresses_tell_tcp_services_of_one_port_apart(
    task_mesh: TaskMesh, config: Config
) -> None:
    first, second = (task_mesh.address(f"default/tcp-echo-{v}-0") for v in ("v1", "v2"))
    config.apply(f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: first}}
spec:
  hosts: [first.example.net]
  ports: [{{number: 7000, targetPort: 9000, name: tcp, protocol: TCP}}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints: [{{address: "{first}", serviceAccount: tcp-echo}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: second}}
spec:
  hosts: [second.example.net]
  ports: [{{number: 7000, targetPort: 9000, name: tcp, protocol: TCP}}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints: [{{address: "{second}", serviceAccount: tcp-echo}}]
""")
    addresses = {
        (host, family): task_mesh.resolve("default/curl-0", f"{host}.example.net", family)
        for host in ("first", "second")
        for family in task_mesh.numbers
    }
    assert len(set(addresses.values())) == 2 * len(task_mesh.numbers)
    for family in task_mesh.numbers:
        said = [
            task_mesh.say(f"{host}.example.net", 7000, family=family)
            for host in ("first", "second")
        ]
        assert said == ["v1 hi", "v2 hi"], family


def entry_of(namespace: str, address: str, **spec: Any) -> dict[str, Any]:
    """A ServiceEntry of one host, in a namespace, that leads to an address."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": "claimed", "namespace": namespace},
        "spec": {
            "hosts": ["claimed.example.net"],
            "ports": [{"number": 7000, "targetPort": 9000, "name": "tcp", "protocol": "TCP"}],
            "resolution": "STATIC",
            "location": "MESH_INTERNAL",
            "endpoints": [{"address": address, "labels": {"security.istio.io/tlsMode": "istio"}}],
            **spec,
        },
    }


def test_a_name_means_what_it_means_to_the_proxy_of_who_asks(
    task_mesh: TaskMesh, config: Config
) -> None:
    client, name = "default/curl-0", "claimed.example.net"
    first, second = (task_mesh.address(f"default/tcp-echo-{v}-0") for v in ("v1", "v2"))

    def meant() -> set[tuple[int, str]]:
        """By family, what UDP and TCP say, and who answers there."""
        found = set()
        for family in task_mesh.numbers:
            kind = AAAA if family == 6 else A
            said = [asked(task_mesh, client, name, kind, tcp=tcp) for tcp in (False, True)]
            assert said[0] == said[1]
            assert len(said[0]) == 1
            found.add((family, task_mesh.say(said[0][0], 7000, family=family)))
        return found

    def everywhere(answer: str) -> set[tuple[int, str]]:
        return {(family, answer) for family in task_mesh.numbers}

    config.apply([entry_of("elsewhere", first)])
    assert meant() == everywhere("v1 hi")
    config.apply([entry_of("default", second, exportTo=["."])])
    assert meant() == everywhere("v2 hi"), "that of its own namespace, though the other is older"
    config.apply("""
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: elsewhere-alone}
spec:
  workloadSelector: {labels: {app: curl}}
  egress: [{hosts: [elsewhere/*]}]
""")
    assert meant() == everywhere("v1 hi"), "what its Sidecar imports"
    pods = {task_mesh.address(f"default/tcp-echo-{v}-0", task_mesh.family) for v in ("v1", "v2")}
    kind = AAAA if task_mesh.family == 6 else A
    hidden = "tcp-echo.default.svc.cluster.local"
    assert set(asked(task_mesh, client, hidden, kind)) == pods, "no listener, no virtual address"
    assert pods.isdisjoint(asked(task_mesh, "default/sleep-0", hidden, kind))


def asked(mesh: TaskMesh, client: str, name: str, kind: int, *, tcp: bool = False) -> list[str]:
    """What mesh DNS answers to a client."""
    resolver = mesh.home.instances / client.replace("/", ".") / "app.resolv.conf"
    server = resolver.read_text().split()[1]
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    transport = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    sock = socket_in(mesh.namespace(client), family, transport)
    return ask((server, 53), name, kind, sock=sock, tcp=tcp).addresses
