"""Istio's egress tasks: direct, by ServiceEntry, TLS origination, gateways, wildcard hosts."""

import base64
import contextlib
import socket
import ssl
import threading

import pytest
from standalone import meshbus, until
from task_mesh import EGRESS, Config, TaskMesh

from meshbus.local.network import host_port

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]

REGISTRY_ONLY = """
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default}
spec:
  outboundTrafficPolicy: {mode: REGISTRY_ONLY}
"""
ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside}
spec:
  hosts: [outside.example.com]
  ports:
  - {number: 80, name: http, protocol: HTTP}
  - {number: 443, name: https, protocol: HTTPS}
  resolution: DNS
  location: MESH_EXTERNAL
"""
PLAIN, SECURE = "http://outside.example.com/", "https://outside.example.com/"


def roots(mesh: TaskMesh) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(mesh.certificates / "root.pem"))


def egress_stat(mesh: TaskMesh, cluster: str) -> int:
    """Connections and requests that the egress gateway sent there."""
    found = 0
    for kind in ("upstream_rq_total", "upstream_cx_total"):
        lines = mesh.envoy(EGRESS, f"/stats?filter=^cluster.*{cluster}.*{kind}$").splitlines()
        found += sum(int(line.rpartition(":")[2]) for line in lines if line.startswith("cluster."))
    return found


def test_direct_when_everything_is_allowed(task_mesh: TaskMesh) -> None:
    answer = task_mesh.get(PLAIN)
    assert (answer.status, answer.version) == (200, "outside")
    assert task_mesh.get("http://unlisted.example.org/").version == "outside"
    assert task_mesh.get(SECURE, trust=roots(task_mesh)).version == "outside"


def test_only_what_is_registered(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(REGISTRY_ONLY)
    until(lambda: task_mesh.get(PLAIN).status == 502, "it is refused")
    assert task_mesh.get(SECURE).status == 0
    assert task_mesh.get("http://echo:8000/").status == 200
    config.apply(ENTRY)
    until(lambda: task_mesh.get(PLAIN).version == "outside", "it is allowed")
    assert task_mesh.get(SECURE, trust=roots(task_mesh)).version == "outside"
    assert task_mesh.get("http://unlisted.example.org/").status == 502


def test_rules_hold_for_what_is_outside(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        ENTRY
        + """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: outside}
spec:
  hosts: [outside.example.com]
  http:
  - timeout: 0.5s
    route: [{destination: {host: outside.example.com}}]
"""
    )
    assert task_mesh.get(f"{PLAIN}delay/3").status == 504
    assert task_mesh.get(PLAIN).version == "outside"


ORIGINATION = """
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside}
spec:
  hosts: [outside.example.com]
  ports:
  - {number: 80, name: http, protocol: HTTP, targetPort: 443}
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: outside}
spec:
  host: outside.example.com
  trafficPolicy:
    portLevelSettings:
    - port: {number: 80}
      tls: {mode: SIMPLE, sni: outside.example.com, insecureSkipVerify: true}
"""


def test_tls_is_originated(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(ORIGINATION)
    until(lambda: task_mesh.get(PLAIN).version == "outside", "the sidecar speaks TLS")


def test_mutual_tls_is_originated_with_a_secret(task_mesh: TaskMesh, config: Config) -> None:
    def encoded(name: str) -> str:
        return base64.b64encode((task_mesh.certificates / name).read_bytes()).decode()

    data = {
        "tls.crt": encoded("client.pem"),
        "tls.key": encoded("client.key"),
        "ca.crt": encoded("root.pem"),
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data}
    # A Secret of a DestinationRule is read in the namespace of the workload.
    config.apply([{**secret, "metadata": {"name": "outside-client", "namespace": "istio-system"}}])
    config.apply(gateway_to("mutual.example.com", 443))
    config.apply("""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: mutual}
spec:
  hosts: [mutual.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: https, protocol: HTTPS}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: mutual, namespace: istio-system}
spec:
  host: mutual.example.com
  trafficPolicy:
    portLevelSettings:
    - port: {number: 443}
      tls:
        mode: MUTUAL
        credentialName: outside-client
        sni: mutual.example.com
        subjectAltNames: [mutual.example.com]
""")
    url = "http://mutual.example.com/"
    until(lambda: task_mesh.get(url).version == "outside-mutual", "the gateway has the Secret")


def gateway_to(host: str, port: int = 80) -> str:
    """Requests of sidecars to a host go by the egress gateway, which calls it at a port."""
    return f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: way-out}}
spec:
  selector: {{istio: egressgateway}}
  servers:
  - port: {{number: 80, name: http, protocol: HTTP}}
    hosts: [{host}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: by-gateway}}
spec:
  hosts: [{host}]
  gateways: [way-out, mesh]
  http:
  - match: [{{gateways: [mesh], port: 80}}]
    route:
    - destination:
        host: istio-egressgateway.istio-system.svc.cluster.local
        port: {{number: 80}}
  - match: [{{gateways: [way-out], port: 80}}]
    route: [{{destination: {{host: {host}, port: {{number: {port}}}}}}}]
"""


def test_by_the_egress_gateway(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(ENTRY + "---" + gateway_to("outside.example.com"))
    until(lambda: task_mesh.get(PLAIN).version == "outside", "there is a way")
    before = egress_stat(task_mesh, "outside.example.com")
    answers = [task_mesh.get(PLAIN) for _ in range(5)]
    assert {a.version for a in answers} == {"outside"}
    assert egress_stat(task_mesh, "outside.example.com") >= before + 5


def test_tls_by_the_egress_gateway(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        ENTRY
        + """
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: way-out}
spec:
  selector: {istio: egressgateway}
  servers:
  - port: {number: 443, name: tls, protocol: TLS}
    hosts: [outside.example.com]
    tls: {mode: PASSTHROUGH}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: by-gateway}
spec:
  hosts: [outside.example.com]
  gateways: [way-out, mesh]
  tls:
  - match: [{gateways: [mesh], port: 443, sniHosts: [outside.example.com]}]
    route:
    - destination:
        host: istio-egressgateway.istio-system.svc.cluster.local
        port: {number: 443}
  - match: [{gateways: [way-out], port: 443, sniHosts: [outside.example.com]}]
    route: [{destination: {host: outside.example.com, port: {number: 443}}}]
"""
    )
    trust = roots(task_mesh)
    before = egress_stat(task_mesh, "outside.example.com")

    def by_gateway() -> bool:
        answer = task_mesh.get(SECURE, trust=trust)
        return (
            answer.version == "outside" and egress_stat(task_mesh, "outside.example.com") > before
        )

    until(by_gateway, "it goes by the gateway")


WILD = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild}
spec:
  hosts: ["*.wild.example.com"]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]
"""


def test_wildcard_hosts_directly(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(REGISTRY_ONLY + "---" + WILD)
    trust = roots(task_mesh)
    for name in ("a", "b"):
        url = f"https://{name}.wild.example.com/"
        until(lambda url=url: task_mesh.get(url, trust=trust).version == "outside", "it is allowed")
        assert task_mesh.get(f"http://{name}.wild.example.com/").version == "outside"
    assert task_mesh.get("https://outside.example.com/").status == 0


def test_wildcard_hosts_are_looked_up_by_name(task_mesh: TaskMesh, config: Config) -> None:
    """Wherever the application was going: the name in its request decides."""
    config.apply(REGISTRY_ONLY + "---" + WILD + "  resolution: DYNAMIC_DNS\n")
    trust, url = roots(task_mesh), "https://a.wild.example.com/"
    until(lambda: task_mesh.get(url, trust=trust).version == "outside", "it is allowed")
    elsewhere = (task_mesh.address("default/tcp-echo-v1-0"), 443)
    assert task_mesh.get(url, trust=trust, via=elsewhere).version == "outside"
    elsewhere = (elsewhere[0], 80)
    assert task_mesh.get("http://b.wild.example.com/", via=elsewhere).version == "outside"
    assert task_mesh.get("https://outside.example.com/").status == 0


def test_wildcard_hosts_by_the_egress_gateway(task_mesh: TaskMesh, config: Config) -> None:
    """One server behind all of them, as for `*.wikipedia.org`."""
    config.apply(
        WILD
        + """
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: server}
spec:
  hosts: [outside.example.com]
  ports: [{number: 443, name: tls, protocol: TLS}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: way-out}
spec:
  selector: {istio: egressgateway}
  servers:
  - port: {number: 443, name: tls, protocol: TLS}
    hosts: ["*.wild.example.com"]
    tls: {mode: PASSTHROUGH}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: by-gateway}
spec:
  hosts: ["*.wild.example.com"]
  gateways: [way-out, mesh]
  tls:
  - match: [{gateways: [mesh], port: 443, sniHosts: ["*.wild.example.com"]}]
    route:
    - destination:
        host: istio-egressgateway.istio-system.svc.cluster.local
        port: {number: 443}
  - match: [{gateways: [way-out], port: 443, sniHosts: ["*.wild.example.com"]}]
    route: [{destination: {host: outside.example.com, port: {number: 443}}}]
"""
    )
    trust = roots(task_mesh)
    before = egress_stat(task_mesh, "outside.example.com")

    def by_gateway() -> bool:
        answer = task_mesh.get("https://b.wild.example.com/", trust=trust)
        return (
            answer.version == "outside" and egress_stat(task_mesh, "outside.example.com") > before
        )

    until(by_gateway, "it goes by the gateway")


def test_a_report_of_who_reaches_what(task_mesh: TaskMesh, config: Config) -> None:
    def ways(**query: str) -> dict[tuple[str, str, str], dict[str, object]]:
        text = "&".join(f"{k}={v}" for k, v in query.items())
        found = task_mesh.api.get(f"/v1/egress?{text}")["egress"]
        return {(e["source"], e["host"], e["way"]): e for e in found}

    config.apply(ENTRY)
    task_mesh.get(PLAIN, client="default/sleep-0")
    task_mesh.get("http://unlisted.example.org/", client="default/sleep-0")
    address = task_mesh.address("elsewhere/outside-0")
    task_mesh.say(address, 9000, client="default/sleep-0")
    sleep = "default/sleep"
    until(lambda: (sleep, "outside.example.com", "registered") in ways(), "by the entry")
    entry = ways()[sleep, "outside.example.com", "registered"]
    assert (entry["by"], entry["port"]) == ("ServiceEntry default/outside", "80")
    until(lambda: (sleep, "unlisted.example.org", "unregistered") in ways(), "by nobody's leave")
    until(lambda: (sleep, address, "unregistered") in ways(), "TCP, by its address")
    config.apply(REGISTRY_ONLY)
    until(
        lambda: (
            task_mesh.get("http://unlisted.example.org/", client="default/sleep-0").status == 502
        ),
        "it is refused",
    )
    refused = (sleep, "unlisted.example.org", "refused")
    until(lambda: refused in ways(way="refused"), "refusals are seen")
    assert refused not in ways(way="registered")
    assert not ways(namespace="nobody")
    assert not any(host.startswith("echo") for _, host, _ in ways()), "what is inside is not listed"
    result = meshbus("egress", "--home", str(task_mesh.home.path), "--way", "refused")
    assert "unlisted.example.org" in result.stdout, result.stderr


OUTSIDE_TCP = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside-tcp}
spec:
  hosts: [outside.example.com]
  ports: [{number: 9000, name: tcp, protocol: TCP}]
  resolution: DNS
  location: MESH_EXTERNAL
"""


def test_hosts_outside_are_told_who_calls_by_proxy_protocol(
    task_mesh: TaskMesh, config: Config
) -> None:
    config.apply(
        f"""{OUTSIDE_TCP}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: outside}}
spec:
  host: outside.example.com
  trafficPolicy: {{proxyProtocol: {{version: V1}}}}
"""
    )
    caller = task_mesh.address("default/curl-0")
    family = "TCP6" if task_mesh.family == 6 else "TCP4"
    said = task_mesh.say("outside.example.com", 9000)
    assert f"PROXY {family} {caller} " in said


class ConnectProxy(threading.Thread):
    """An HTTP proxy on the machine: it knows CONNECT, and keeps what it was asked for."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        self.asked: list[str] = []

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        target = head.split(b" ", 2)[1].decode()
        self.asked.append(f"{head.split(b' ', 1)[0].decode()} {target}")
        host, _, port = target.rpartition(":")
        upstream = socket.create_connection((host.strip("[]"), int(port)))
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        back = threading.Thread(target=_copy, args=(upstream, connection), daemon=True)
        back.start()
        _copy(connection, upstream)

    def end(self) -> None:
        """No more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_tcp_goes_through_a_tunnel(task_mesh: TaskMesh, config: Config) -> None:
    address = task_mesh.bridge
    proxy = ConnectProxy(address)
    proxy.start()
    target = task_mesh.address("elsewhere/outside-0")
    config.apply(
        f"""{OUTSIDE_TCP}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: forward-proxy}}
spec:
  hosts: [proxy.example.com]
  ports: [{{number: {proxy.port}, name: http-connect, protocol: TCP}}]
  resolution: STATIC
  location: MESH_EXTERNAL
  endpoints: [{{address: "{address}"}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: forward-proxy}}
spec:
  host: proxy.example.com
  subsets:
  - name: outside
    trafficPolicy:
      tunnel: {{protocol: CONNECT, targetHost: "{target}", targetPort: 9000}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: outside}}
spec:
  hosts: [outside.example.com]
  tcp:
  - match: [{{port: 9000}}]
    route:
    - destination: {{host: proxy.example.com, port: {{number: {proxy.port}}}, subset: outside}}
"""
    )
    try:
        assert task_mesh.say("outside.example.com", 9000).endswith("hi")
        assert proxy.asked == [f"CONNECT {host_port(target, 9000)}"]
    finally:
        proxy.end()
