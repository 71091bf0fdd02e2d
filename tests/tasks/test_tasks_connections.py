"""`connectionSettings` of gateways, on real Envoys: what becomes of clients that take too long,
send what is not wanted, or are too many."""

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from standalone import status_of, until
from task_mesh import Answer, Config, TaskMesh, applied, gateway, service, workload

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]

EDGE = {
    "profile": "EDGE",
    "clusterPerConnectionBufferLimitBytes": 65536,
    "httpIdleTimeout": "1s",
    "httpRequestTimeout": "2s",
    "httpRequestHeadersTimeout": "1s",
    "httpStreamIdleTimeout": "3s",
    "httpMaxConcurrentStreams": 7,
}
BRIEF = {
    "httpMaxConnectionDuration": "1s",
    "httpDrainTimeout": "0.1s",
    "httpMaxStreamDuration": "1s",
    "httpHeadersWithUnderscoresAction": "HEADERS_WITH_UNDERSCORES_DROP_HEADER",
}
NARROW = {"listenerConnectionLimit": 2, "globalDownstreamConnectionLimit": 3}
GATEWAYS = {"edge": EDGE, "brief": BRIEF, "narrow": NARROW}
PORTS = (80, 81)


def entry(name: str) -> str:
    servers = "".join(
        f"  - {{port: {{number: {port}, name: http-{port}, protocol: HTTP}}, hosts: ['*']}}\n"
        for port in PORTS
    )
    return f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec:
  selector: {{istio: {name}}}
  servers:
{servers}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  hosts: ["*"]
  gateways: [{name}]
  http: [{{route: [{{destination: {{host: echo, port: {{number: 8000}}}}}}]}}]
---
"""


class Front:
    """The gateways, called from the machine itself."""

    def __init__(self, mesh: TaskMesh) -> None:
        self.mesh = mesh

    def connect(self, name: str, port: int = 80) -> socket.socket:
        return self.mesh.connect("", self.address(name), port)

    def address(self, name: str) -> str:
        return self.mesh.address(f"istio-system/istio-{name}-0")

    def get(self, name: str, path: str = "/", headers: dict[str, str] | None = None) -> Answer:
        return self.mesh.get(f"http://x{path}", headers, client="", via=(self.address(name), 80))

    def dump(self, name: str) -> Any:
        body = self.mesh.envoy(f"istio-system/istio-{name}-0", "/config_dump")
        return json.loads(body[body.index("{") : body.rindex("}") + 1])["configs"]


@pytest.fixture(scope="module")
def front(started_mesh: TaskMesh) -> Iterator[Front]:
    documents = []
    for name, settings in GATEWAYS.items():
        run, exposed = gateway(f"istio-{name}", [(f"http-{port}", port) for port in PORTS])
        own = json.dumps({"connectionSettings": settings})
        run["metadata"]["annotations"] = {"proxy.istio.io/config": own}
        documents += [run, exposed]
    held = Config(started_mesh)
    try:
        held.apply(documents)
        with applied(started_mesh, "".join(map(entry, GATEWAYS))):
            made = Front(started_mesh)

            def serves(name: str) -> bool:
                found = status_of(started_mesh.home).instances.get(f"istio-system/istio-{name}-0")
                if found is None or not found.ready:
                    return False
                return made.get(name).status == 200

            for name in GATEWAYS:
                until(lambda name=name: serves(name), f"{name} serves")
            yield made
    finally:
        held.clear()


def exchange(connection: socket.socket, text: str) -> bytes:
    """What comes back until the other side closes."""
    connection.sendall(text.encode())
    return rest(connection)


def rest(connection: socket.socket) -> bytes:
    got = b""
    try:
        while part := connection.recv(65536):
            got += part
    except ConnectionResetError:
        pass
    return got


def is_served(connection: socket.socket) -> bool:
    """A request on a connection that stays open is answered."""
    try:
        connection.sendall(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
        got = b""
        while not got.endswith(b"\r\n\r\n"):
            part = connection.recv(65536)
            if not part:
                return False
            got += part
    except ConnectionError:
        return False
    return got.startswith(b"HTTP/1.1 200")


def test_buffers_are_limited(front: Front) -> None:
    configs = front.dump("edge")
    listeners = [
        item["active_state"]["listener"]
        for config in configs
        for item in config.get("dynamic_listeners", ())
    ]
    assert {li["per_connection_buffer_limit_bytes"] for li in listeners} == {32768}
    clusters = {
        item["cluster"]["name"]: item["cluster"].get("per_connection_buffer_limit_bytes")
        for config in configs
        for item in config.get("dynamic_active_clusters", ())
    }
    assert clusters["outbound|8000||echo.default.svc.cluster.local"] == 65536


def test_requests_that_lead_astray_are_refused_or_set_right(front: Front) -> None:
    assert front.get("edge", headers={"x_mark": "1"}).status == 400
    assert front.get("edge", "/a//b").json["path"] == "/a/b"
    moved = front.get("edge", "/a%2Fb")
    assert (moved.status, moved.headers["location"]) == (307, "/a/b")
    kept = front.get("brief", "/a//b%2Fc", headers={"x_mark": "1", "x-other": "2"})
    assert kept.json["path"] == "/a//b%2Fc"
    assert "x_mark" not in kept.seen
    assert kept.seen["x-other"] == "2"


def test_clients_that_take_too_long_are_told_so(front: Front) -> None:
    head = "POST / HTTP/1.1\r\nhost: x\r\n"
    with front.connect("edge") as connection:
        assert exchange(connection, head).startswith(b"HTTP/1.1 408 ")
    with front.connect("edge") as connection:
        late = exchange(connection, f"{head}content-length: 5\r\n\r\n12")
        assert late.startswith(b"HTTP/1.1 408 ")
    with front.connect("edge") as connection:
        # Nothing comes of it for longer than a stream may rest.
        silent = exchange(connection, "GET /delay/600 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert silent.startswith(b"HTTP/1.1 504 ")


def test_connections_without_requests_are_closed(front: Front) -> None:
    with front.connect("edge") as connection:
        assert is_served(connection)
        assert rest(connection) == b""


def test_connections_and_streams_end_in_time(front: Front) -> None:
    with front.connect("brief") as connection:
        assert is_served(connection)
        assert rest(connection) == b""
    with front.connect("brief") as connection:
        cut = exchange(connection, "GET /delay/600 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"downstream duration timeout" in cut, cut


def settings_of(connection: socket.socket) -> tuple[dict[int, int], int]:
    """SETTINGS that a server of HTTP/2 begins with, and the window that it gives the connection.

    Source: RFC 9113, 4.1, 6.5, 6.9.
    """
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    stream = connection.makefile("rb")
    said: dict[int, int] = {}
    while True:
        head = stream.read(9)
        payload = stream.read(int.from_bytes(head[:3]))
        if head[3] == 4 and payload:
            said = dict(struct.iter_unpack(">HI", payload))
        elif head[3] == 8:
            return said, 65535 + int.from_bytes(payload)


def test_a_connection_of_http2_has_bounds(front: Front) -> None:
    with front.connect("edge") as connection:
        said, window = settings_of(connection)
    streams, stream_window = 3, 4
    assert (said[streams], said[stream_window], window) == (7, 65536, 1048576)


def test_a_listener_and_a_proxy_take_so_many_connections(front: Front) -> None:
    held = [front.connect("narrow", 80), front.connect("narrow", 80)]
    try:
        assert all(map(is_served, held))
        with front.connect("narrow", 80) as third:
            assert not is_served(third)
        held.append(front.connect("narrow", 81))
        assert is_served(held[-1])
        # The listener would take it: the proxy does not.
        with front.connect("narrow", 81) as fourth:
            assert not is_served(fourth)
        held.pop(0).close()

        def taken_again() -> bool:
            with front.connect("narrow", 81) as another:
                return is_served(another)

        until(taken_again, "there is room again")
    finally:
        for connection in held:
            connection.close()


def test_a_sidecar_treats_what_comes_to_its_application_so(
    task_mesh: TaskMesh, config: Config
) -> None:
    document = workload("strict", "http:8080", ports=[{"name": "http", "port": 8080}])
    own = {
        "httpMaxStreamDuration": "1s",
        "httpHeadersWithUnderscoresAction": "HEADERS_WITH_UNDERSCORES_REJECT_REQUEST",
        "listenerConnectionLimit": 1000,
    }
    notes = {"proxy.istio.io/config": json.dumps({"connectionSettings": own})}
    document["metadata"]["annotations"] = notes
    config.apply([document, service("strict", ("http", 8000, 8080))])
    url = "http://strict:8000"
    until(lambda: task_mesh.get(url).status == 200, "the workload answers")
    assert task_mesh.get(url, {"x_mark": "1"}).status == 400
    assert task_mesh.get("http://echo:8000", {"x_mark": "1"}).status == 200
    assert task_mesh.get(f"{url}/delay/600").status == 504
    runtime = task_mesh.envoy("default/strict-0", "/runtime")
    assert "envoy.resource_limits.listener.virtualInbound.connection_limit" in runtime
