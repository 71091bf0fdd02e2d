"""Mesh DNS as workloads use it, with nothing said to them."""

import socket
import subprocess
import sys

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
    resolver = task_mesh.home.instances / "elsewhere.outside-0" / "app.resolv.conf"
    server = resolver.read_text().split()[1]
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    sock = socket_in(task_mesh.namespace("elsewhere/outside-0"), family, socket.SOCK_DGRAM)
    reply = ask((server, 53), "tcp-echo.default.svc.cluster.local", kind, sock=sock)
    assert set(reply.addresses) == pods


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
