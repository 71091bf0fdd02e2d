"""Istio's ingress tasks: plain, secure, mutual and passed-through, WebSocket and gRPC."""

import base64
import json
import os
import socket
import ssl
import subprocess
import sys

import pytest
from http3_client import http3_get
from standalone import until
from task_mesh import INGRESS, Config, TaskMesh
from task_mesh import gateway as gateway_workload

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]


def gateway(servers: str, **annotations: str) -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: entry, annotations: {json.dumps(annotations)}}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
{servers}
"""


def served(host: str, routes: str, name: str = "entry") -> str:
    return f"""
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  hosts: ["{host}"]
  gateways: [entry]
{routes}
"""


TO_HTTPBIN = "  http: [{route: [{destination: {host: httpbin, port: {number: 8000}}}]}]"
PLAIN = '  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}'


def secret(mesh: TaskMesh, name: str, leaf: str, *, with_root: bool = False) -> dict[str, object]:
    def encoded(file: str) -> str:
        return base64.b64encode((mesh.certificates / file).read_bytes()).decode()

    data = {"tls.crt": encoded(f"{leaf}.pem"), "tls.key": encoded(f"{leaf}.key")}
    if with_root:
        data["ca.crt"] = encoded("root.pem")
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls" if not with_root else "Opaque",
        "metadata": {"name": name, "namespace": "istio-system"},
        "data": data,
    }


def trust(mesh: TaskMesh, *, client: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(mesh.certificates / "root.pem"))
    if client:
        folder = mesh.certificates
        context.load_cert_chain(folder / "client.pem", folder / "client.key")
    return context


def test_plain_ingress_by_host_and_path(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        gateway(
            "  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [httpbin.example.com]}"
        )
        + served(
            "httpbin.example.com",
            """
  http:
  - match: [{uri: {prefix: /status}}, {uri: {prefix: /delay}}]
    route: [{destination: {host: httpbin, port: {number: 8000}}}]
""",
        )
    )
    known = "http://httpbin.example.com"
    until(lambda: task_mesh.ingress(f"{known}/status/200").status == 200, "the gateway listens")
    assert task_mesh.ingress(f"{known}/status/201").status == 201
    assert task_mesh.ingress(f"{known}/headers").status == 404
    assert task_mesh.ingress("http://other.example.com/status/200").status == 404


def test_the_caller_cannot_pretend_to_be_inside(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(gateway(PLAIN) + served("*", TO_HTTPBIN))
    until(lambda: task_mesh.ingress("http://a.example.com/").status == 200, "the gateway listens")
    forged = {
        "x-forwarded-client-cert": "By=spiffe://cluster.local/ns/default/sa/admin",
        "x-envoy-internal": "true",
    }
    seen = task_mesh.ingress("http://a.example.com/", forged).seen
    assert "sa/admin" not in seen.get("x-forwarded-client-cert", "")
    assert "x-envoy-internal" not in seen
    assert seen["x-forwarded-proto"] == "http"
    assert seen["x-request-id"]


def test_http3_beside_https(task_mesh: TaskMesh, config: Config) -> None:
    config.apply([secret(task_mesh, "httpbin-credential", "httpbin")])
    config.apply([secret(task_mesh, "echo-credential", "echo")])
    config.apply(
        gateway(
            """
  - port: {number: 443, name: https-httpbin, protocol: HTTPS}
    tls: {mode: SIMPLE, credentialName: httpbin-credential}
    hosts: [httpbin.example.com]
  - port: {number: 443, name: https-echo, protocol: HTTPS}
    tls: {mode: SIMPLE, credentialName: echo-credential}
    hosts: [echo.example.com]
""",
            **{"traffic.meshbus.io/http3": "true"},
        )
        + served("httpbin.example.com", TO_HTTPBIN)
        + served(
            "echo.example.com",
            "  http: [{route: [{destination: {host: echo, port: {number: 8000}}}]}]",
            "echo-entry",
        )
    )
    url, roots = "https://httpbin.example.com/", trust(task_mesh)
    until(lambda: task_mesh.ingress(url, trust=roots).status == 200, "the gateway listens")
    assert task_mesh.ingress(url, trust=roots).headers["alt-svc"].startswith('h3=":443"')
    address, file = task_mesh.address(INGRESS), str(task_mesh.certificates / "root.pem")
    for host in ("httpbin.example.com", "echo.example.com"):
        answer = http3_get(address, 443, host, "/over/udp", file)
        assert answer.status == 200
        seen = json.loads(answer.body)
        assert seen["path"] == "/over/udp"
        assert (seen["headers"]["host"], seen["headers"]["x-forwarded-proto"]) == (host, "https")
    with pytest.raises(ConnectionError):
        http3_get(address, 443, "other.example.com", "/", file)


def test_secure_ingress_for_several_hosts(task_mesh: TaskMesh, config: Config) -> None:
    config.apply([secret(task_mesh, "httpbin-credential", "httpbin")])
    config.apply([secret(task_mesh, "echo-credential", "echo")])
    config.apply(
        gateway("""
  - port: {number: 443, name: https-httpbin, protocol: HTTPS}
    tls: {mode: SIMPLE, credentialName: httpbin-credential}
    hosts: [httpbin.example.com]
  - port: {number: 443, name: https-echo, protocol: HTTPS}
    tls: {mode: SIMPLE, credentialName: echo-credential}
    hosts: [echo.example.com]
  - port: {number: 80, name: http, protocol: HTTP}
    tls: {httpsRedirect: true}
    hosts: [httpbin.example.com]
""")
        + served("httpbin.example.com", TO_HTTPBIN)
        + served(
            "echo.example.com",
            "  http: [{route: [{destination: {host: echo, port: {number: 8000}}}]}]",
            "echo-entry",
        )
    )
    roots = trust(task_mesh)
    url = "https://httpbin.example.com/"
    until(lambda: task_mesh.ingress(url, trust=roots).status == 200, "the gateway listens")
    answer = task_mesh.ingress(url, trust=roots)
    assert answer.json["instance"].startswith("httpbin-")
    assert answer.seen["x-forwarded-proto"] == "https"
    echo = task_mesh.ingress("https://echo.example.com/", trust=roots)
    assert echo.json["instance"].startswith("echo-")
    assert task_mesh.ingress("https://nobody.example.com/").status == 0, "no chain for this SNI"
    moved = task_mesh.ingress("http://httpbin.example.com/a?b=c")
    assert (moved.status, moved.headers["location"]) == (
        301,
        "https://httpbin.example.com/a?b=c",
    )
    config.apply([secret(task_mesh, "httpbin-credential", "echo")])
    until(
        lambda: "CERTIFICATE_VERIFY_FAILED" in task_mesh.ingress(url, trust=roots).text,
        "a changed Secret is served without anything else",
    )


def test_mutual_ingress(task_mesh: TaskMesh, config: Config) -> None:
    config.apply([secret(task_mesh, "mutual-credential", "httpbin", with_root=True)])
    config.apply(
        gateway("""
  - port: {number: 443, name: https, protocol: HTTPS}
    tls: {mode: MUTUAL, credentialName: mutual-credential}
    hosts: [httpbin.example.com]
""")
        + served("httpbin.example.com", TO_HTTPBIN)
    )
    url = "https://httpbin.example.com/"
    known = trust(task_mesh, client=True)
    until(lambda: task_mesh.ingress(url, trust=known).status == 200, "the gateway listens")
    seen = task_mesh.ingress(url, trust=known).seen
    assert "client.example.com" in seen["x-forwarded-client-cert"]
    assert task_mesh.ingress(url, trust=trust(task_mesh)).status == 0, "no certificate, no answer"


def test_tls_passes_through_by_server_name(task_mesh: TaskMesh, config: Config) -> None:
    outside = task_mesh.address("elsewhere/outside-0")
    config.apply(
        gateway("""
  - port: {number: 443, name: tls, protocol: TLS}
    tls: {mode: PASSTHROUGH}
    hosts: [outside.example.com]
""")
        + served(
            "outside.example.com",
            """
  tls:
  - match: [{port: 443, sniHosts: [outside.example.com]}]
    route: [{destination: {host: outside.example.com, port: {number: 443}}}]
""",
        )
        + f"""
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: outside}}
spec:
  hosts: [outside.example.com]
  ports: [{{number: 443, name: tls, protocol: TLS}}]
  resolution: STATIC
  endpoints: [{{address: {outside}}}]
"""
    )
    roots = trust(task_mesh)
    url = "https://outside.example.com/"
    until(lambda: task_mesh.ingress(url, trust=roots).status == 200, "the gateway listens")
    assert task_mesh.ingress(url, trust=roots).version == "outside"
    assert task_mesh.ingress("https://other.example.com/").status == 0


def echoed(connection: socket.socket, words: list[bytes]) -> list[bytes]:
    """What a WebSocket answers to these words; nothing if it is not let in."""
    lines = [
        "GET /chat HTTP/1.1",
        "host: httpbin:8000",
        "connection: Upgrade",
        "upgrade: websocket",
        f"sec-websocket-key: {base64.b64encode(bytes(16)).decode()}",
        "sec-websocket-version: 13",
    ]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    stream = connection.makefile("rb")
    if b" 101 " not in stream.readline():
        return []
    while stream.readline() != b"\r\n":
        pass
    answers = []
    for word in words:
        connection.sendall(bytes([0x81, 0x80 | len(word)]) + bytes(4) + word)
        answers.append(stream.read(stream.read(2)[1]))
    return answers


def test_a_websocket_through_gateway_and_sidecar(task_mesh: TaskMesh, config: Config) -> None:
    asked = TO_HTTPBIN.replace("route:", "websocketUpgrade: true, route:")
    config.apply(gateway(PLAIN) + served("*", asked))
    for client, host, port in (
        ("", task_mesh.address(INGRESS), 80),
        ("default/curl-0", "httpbin", 8000),
    ):

        def answers(client: str = client, host: str = host, port: int = port) -> list[bytes]:
            with task_mesh.connect(client, host, port) as connection:
                return echoed(connection, [b"one", b"two"])

        # Connections between Envoys may still be on a listener that is drained.
        until(answers, "it is let in")
        found = answers()
        assert found in ([b"v1 one", b"v1 two"], [b"v2 one", b"v2 two"])


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


GRPC = """
import sys, grpc
with grpc.insecure_channel(sys.argv[1], options=[("grpc.default_authority", sys.argv[2])]) as c:
    call = c.unary_unary("/echo.Echo/Say")
    for word in sys.argv[3:]:
        try:
            print(call(word.encode(), timeout=10).decode())
        except grpc.RpcError as error:
            print(error.code().name)
"""


def grpc(mesh: TaskMesh, client: str, target: str, authority: str, *words: str) -> list[str]:
    """What gRPC calls on one connection give, from inside a namespace or from the machine."""
    inside = ["ip", "netns", "exec", mesh.namespace(client)] if client else []
    result = subprocess.run(
        [*inside, sys.executable, "-c", GRPC, target, authority, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={k: v for k, v in os.environ.items() if "proxy" not in k.lower()},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split("\n")[:-1]


def test_grpc_calls_of_one_connection_are_spread_and_shifted(
    task_mesh: TaskMesh, config: Config
) -> None:
    target = f"{bracketed(task_mesh.resolve('default/curl-0', 'echo'))}:7070"
    spread = grpc(task_mesh, "default/curl-0", target, "echo:7070", *["a"] * 30)
    assert set(spread) == {"v1 a", "v2 a", "v3 a"}
    config.apply("""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec:
  host: echo
  subsets: [{name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo]
  http:
  - match: [{headers: {x-none: {exact: x}}}]
    fault: {abort: {percentage: {value: 100}, grpcStatus: NOT_FOUND}}
    route: [{destination: {host: echo}}]
  - match: [{uri: {prefix: /echo.Echo/}}]
    route: [{destination: {host: echo, subset: v2}}]
""")
    words = ["b", "fail", "c"]
    got = grpc(task_mesh, "default/curl-0", target, "echo:7070", *words)
    assert got == ["v2 b", "UNAVAILABLE", "v2 c"]


def test_grpc_through_the_gateway(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        gateway('  - {port: {number: 80, name: grpc, protocol: GRPC}, hosts: ["*"]}')
        + served("*", "  http: [{route: [{destination: {host: echo, port: {number: 7070}}}]}]")
    )
    target = f"{bracketed(task_mesh.address(INGRESS))}:80"
    until(
        lambda: grpc(task_mesh, "", target, "e.example.com", "a")[0].endswith(" a"),
        "the gateway listens",
    )
    assert set(grpc(task_mesh, "", target, "e.example.com", *["a"] * 30)) == {
        "v1 a",
        "v2 a",
        "v3 a",
    }


def test_a_gateway_without_envoys_says_so_until_one_comes(
    task_mesh: TaskMesh, config: Config
) -> None:
    config.apply(gateway(PLAIN).replace("istio: ingressgateway", "istio: late"))
    told = "no gateway has the labels istio=late"
    until(lambda: told in task_mesh.reasons("gateways", "entry"), "its status says so")
    config.apply(gateway_workload("istio-late", [("http", 80)]))
    until(lambda: not task_mesh.reasons("gateways", "entry"), "nothing is wrong any more")
    config.delete("Workload", "istio-late", "istio-system")
    until(lambda: told in task_mesh.reasons("gateways", "entry"), "it is said again")
