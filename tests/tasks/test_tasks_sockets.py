"""Unix sockets of a Sidecar, on real Envoys: what an application calls, and where it is called."""

import http.client
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from standalone import until
from task_mesh import Config, TaskMesh, service

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that proxies may write to: their user is not ours."""
    made = Path(tempfile.mkdtemp(dir="/tmp"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)


def connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(20)
    made.connect(str(path))
    return made


def ask(path: Path, host: str) -> tuple[int, str]:
    """Status, and version that answered, of a request at a socket."""
    connection = http.client.HTTPConnection(host)
    connection.sock = connected(path)
    connection.request("GET", "/", headers={"host": host})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.getheader("x-version") or ""


def test_an_application_calls_services_at_a_socket(
    task_mesh: TaskMesh, config: Config, folder: Path
) -> None:
    config.apply(
        f"""
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: curl}}
spec:
  workloadSelector: {{labels: {{app: curl}}}}
  egress:
  - port: {{number: 0, protocol: HTTP, name: http}}
    bind: unix://{folder}/http.sock
    hosts: ["./echo.default.svc.cluster.local", "./httpbin.default.svc.cluster.local"]
  - port: {{number: 0, protocol: TCP, name: tcp}}
    bind: unix://{folder}/tcp.sock
    hosts: ["./tcp-echo.default.svc.cluster.local"]
  - hosts: ["./pool.default.svc.cluster.local"]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: echo}}
spec: {{host: echo, subsets: [{{name: v2, labels: {{version: v2}}}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: echo}}
spec:
  hosts: [echo]
  http:
  - route: [{{destination: {{host: echo, subset: v2}}}}]
"""
    )
    assert ask(folder / "http.sock", "echo:8000") == (200, "v2")
    status, version = ask(folder / "http.sock", "httpbin:8000")
    assert (status, version[:1]) == (200, "v")
    assert ask(folder / "http.sock", "pool:8000")[0] == 502
    with connected(folder / "tcp.sock") as connection:
        connection.sendall(b"hi\n")
        assert connection.makefile("rb").readline().decode().endswith("hi\n")
    assert task_mesh.get("http://pool:8000").status == 200


class SocketServer(threading.Thread):
    """Answers one request after the other at a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o777)
        self._listener.listen()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(4096)
                answer = "HTTP/1.1 200 OK\r\nx-version: socket\r\nconnection: close\r\n"
                connection.sendall(f"{answer}content-length: 0\r\n\r\n".encode())

    def end(self) -> None:
        """No more requests."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_an_application_is_called_at_a_socket(
    task_mesh: TaskMesh, config: Config, folder: Path
) -> None:
    server = SocketServer(folder / "in.sock")
    server.start()
    try:
        config.apply([service("sleep", ("http", 8000, 8080))])
        config.apply(
            f"""
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: sleep}}
spec:
  workloadSelector: {{labels: {{app: sleep}}}}
  ingress:
  - port: {{number: 8080, protocol: HTTP, name: http}}
    defaultEndpoint: unix://{folder}/in.sock
"""
        )
        answer = task_mesh.get("http://sleep:8000")
        assert (answer.status, answer.version) == (200, "socket")
    finally:
        server.end()


def test_a_gateway_listens_at_a_socket(task_mesh: TaskMesh, config: Config, folder: Path) -> None:
    config.apply(
        f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: socket}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - port: {{number: 0, name: http, protocol: HTTP}}
    bind: unix://{folder}/gw.sock
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: socket}}
spec:
  hosts: [a.example.com]
  gateways: [socket]
  http:
  - route: [{{destination: {{host: httpbin, port: {{number: 8000}}}}}}]
"""
    )
    known = "a.example.com"
    until(lambda: ask(folder / "gw.sock", known)[0] == 200, "the gateway listens")
    assert ask(folder / "gw.sock", known)[1][:1] == "v"
    assert ask(folder / "gw.sock", "b.example.com")[0] == 404
