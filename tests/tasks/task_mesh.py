"""The mesh of the task tests, and clients that call from inside it.

A request is made by the test itself, on a socket that lives in the network namespace of a client's
workload: captured and carried as that workload's own.
"""

import asyncio
import http.client
import json
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import yaml
from dns_client import AAAA, A, Zone, ask
from standalone import meshbus, status_of
from task_certificates import write_certificates

from meshbus.local.addresses import AddressBook
from meshbus.local.api import MeshApi
from meshbus.local.bootstrap import ADMIN_SOCKET
from meshbus.local.end import end_mesh
from meshbus.local.home import Home
from meshbus.local.netns import namespace_name, socket_in
from meshbus.local.network import network_of
from meshbus.local.probe import ask_envoy

APP = Path(__file__).with_name("echo_app.py")
INGRESS = "istio-system/istio-ingressgateway-0"
EGRESS = "istio-system/istio-egressgateway-0"
OUTSIDE = {
    "outside.example.com": "outside",
    "a.wild.example.com": "outside",
    "b.wild.example.com": "outside",
    "mutual.example.com": "outside-mutual",
    "unlisted.example.org": "outside",
}
"""Workloads by names that the world outside knows them by."""
ALL_PORTS = (
    {"name": "http", "port": 8080},
    {"name": "tcp", "port": 9000},
    {"name": "tcp-other", "port": 9001},
    {"name": "grpc", "port": 7070},
)


class Answer(NamedTuple):
    """What one request got."""

    status: int
    """0: the connection ended without an answer."""
    headers: Mapping[str, str]
    text: str
    seconds: float

    @property
    def json(self) -> Any:
        """The body, from JSON."""
        return json.loads(self.text)

    @property
    def version(self) -> str:
        """Which version answered; empty when none did."""
        return self.headers.get("x-version", "")

    @property
    def seen(self) -> dict[str, str]:
        """Headers that the application saw."""
        found: dict[str, str] = self.json["headers"]
        return found


def workload(
    name: str, *arguments: str, namespace: str = "default", ports: Iterable[Any] = (), **spec: Any
) -> dict[str, Any]:
    """A Workload that runs the application."""
    labels = spec.pop("labels", {"app": name})
    env = spec.pop("env", {})
    return {
        "apiVersion": "standalone.meshbus.io/v1alpha1",
        "kind": "Workload",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "serviceAccount": name,
            "command": [sys.executable, str(APP), *arguments],
            "env": env,
            "ports": list(ports),
            **spec,
        },
    }


def echo(app: str, version: str, **spec: Any) -> dict[str, Any]:
    """One version of a service with all kinds of ports."""
    arguments = ("http:8080", "tcp:9000", "tcp:9001", "grpc:7070")
    return workload(
        f"{app}-{version}",
        *arguments,
        ports=ALL_PORTS,
        labels={"app": app, "version": version},
        env={"VERSION": version},
        serviceAccount=app,
        **spec,
    )


def service(
    name: str, *ports: tuple[str, int, int], namespace: str = "default", **spec: Any
) -> dict[str, Any]:
    """A Service; ports as (name, port, targetPort)."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"app": name},
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"name": n, "port": p, "targetPort": t} for n, p, t in ports],
            **spec,
        },
    }


def gateway(name: str, ports: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    """An Envoy at the edge, and its Service."""
    labels = {"app": name, "istio": name.removeprefix("istio-")}
    run = workload(name, namespace="istio-system", labels=labels, gateway=True)
    del run["spec"]["command"]
    run["spec"]["ports"] = [{"name": n, "port": p} for n, p in ports]
    return [run, service(name, *((n, p, p) for n, p in ports), namespace="istio-system")]


def with_udp(documents: list[dict[str, Any]], port: int) -> list[dict[str, Any]]:
    """The Service of a gateway exposes a port for UDP too."""
    spec = documents[-1]["spec"]
    spec["ports"] = [*spec["ports"], {"name": "http3", "port": port, "protocol": "UDP"}]
    return documents


def manifests(certificates: Path) -> list[dict[str, Any]]:
    """Everything that runs all the time."""
    tls = {"CERT": str(certificates / "outside.pem"), "KEY": str(certificates / "outside.key")}
    mutual = tls | {"CLIENT_CA": str(certificates / "root.pem")}
    http = ("http", 8000, 8080)
    echo_ports = (http, ("tcp", 9000, 9000), ("tcp-other", 9001, 9001), ("grpc", 7070, 7070))
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "elsewhere"}},
        *with_udp(
            gateway("istio-ingressgateway", [("http", 80), ("https", 443), ("tcp", 31400)]), 443
        ),
        *gateway("istio-egressgateway", [("http", 80), ("https", 443), ("tls", 15443)]),
        workload("curl", labels={"app": "curl", "env": "prod"}, locality="region1/zone1/a"),
        workload("sleep", labels={"app": "sleep", "env": "test"}),
        echo("echo", "v1", locality="region1/zone1/a"),
        echo("echo", "v2", locality="region1/zone2/b"),
        echo("echo", "v3", locality="region2/zone3/c"),
        service("echo", *echo_ports),
        echo("tcp-echo", "v1"),
        echo("tcp-echo", "v2"),
        service("tcp-echo", ("tcp", 9000, 9000), ("tcp-other", 9001, 9001)),
        echo("httpbin", "v1"),
        echo("httpbin", "v2"),
        service("httpbin", http),
        echo("pool", "v1", replicas=3),
        service("pool", http, ("tcp", 9000, 9000)),
        service("pool-pods", http, clusterIP="None", selector={"app": "pool"}),
        workload(
            "outside",
            *("http:80", "https:443", "tcp:9000"),
            ports=[{"name": "http", "port": 80}],
            sidecar=False,
            env={"VERSION": "outside", **tls},
            namespace="elsewhere",
        ),
        workload(
            "outside-mutual",
            "https:443",
            ports=[{"name": "https", "port": 443}],
            sidecar=False,
            env={"VERSION": "outside-mutual", **mutual},
            namespace="elsewhere",
        ),
    ]


class ZoneThread:
    """The name server of the world outside."""

    def __init__(self) -> None:
        self.zone = Zone({})
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self.zone.start())
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self.zone.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


class TaskMesh:
    """The running mesh. Use as a context manager."""

    def __init__(self, folder: Path, families: tuple[str, ...] = ("IPv4", "IPv6")) -> None:
        """Args:
        families: Of its addresses, as `ipFamilies` of a home has them.
        """
        self.folder = folder
        self.families = families
        self.numbers = tuple(int(family[-1]) for family in families)
        """The same as numbers."""
        self.home = Home(folder / "h")
        self.certificates = folder / "certificates"
        self.family = self.numbers[0]
        """Addresses that clients call, unless a call says otherwise."""
        self._stack = ExitStack()

    def __enter__(self) -> "TaskMesh":
        try:
            return self._begin()
        except BaseException:
            self._stack.close()  # what was started must not outlive the test
            raise

    def _begin(self) -> "TaskMesh":
        write_certificates(self.certificates)
        self.home.create()
        self.zone = ZoneThread()
        self._stack.callback(self.zone.close)
        settings = self.settings()
        self.home.settings_file.write_text(yaml.safe_dump(settings))
        file = self.folder / "mesh.yaml"
        file.write_text(yaml.safe_dump_all(manifests(self.certificates)))
        self._stack.callback(end_mesh, self.home)
        arguments = ("up", "--home", str(self.home.path), "-d", "-f", str(file))
        result = meshbus(*arguments, "--capture", "netns")
        assert result.returncode == 0, result.stderr
        self.api = self._stack.enter_context(MeshApi(self.home))
        addresses = status_of(self.home).instances
        for host, instance in OUTSIDE.items():
            self.zone.zone.names[host] = addresses[f"elsewhere/{instance}-0"].addresses
        return self

    def settings(self) -> dict[str, Any]:
        """Settings of the home."""
        return {
            "ipFamilies": list(self.families),
            "services": {
                "processes": "one",
                "environment": {"MESHBUS_POLICY_MODULES_ALLOW": "127.0.0.0/8"},
            },
            "dns": {"upstream": ["{}:{}".format(*self.zone.zone.address)]},
        }

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ------------------------------------------------------------------ configuration

    def apply(self, documents: list[dict[str, Any]]) -> None:
        """Apply, and wait until every proxy has it."""
        change, _ = self.api.apply(documents)
        self.settled(change)

    def delete(self, documents: list[dict[str, Any]]) -> None:
        """Delete, and wait until every proxy has let go."""
        change = self.api.delete(documents)
        if change:
            self.settled(change)

    def settled(self, change: int) -> None:
        """Every proxy is where a change is."""
        receipt = self.api.receipt(change)
        assert receipt.state == "converged", receipt

    def reasons(self, plural: str, name: str) -> str:
        """What the status of an object says is wrong; empty: nothing."""
        path = f"/apis/networking.istio.io/v1/namespaces/default/{plural}/{name}"
        conditions = self.api.get(path).get("status", {}).get("conditions", [])
        return " ".join(c["message"] for c in conditions if c["status"] == "False")

    # ------------------------------------------------------------------ addresses

    def address(self, instance: str, family: int = 0) -> str:
        """Where an instance (`NAMESPACE/NAME`) is."""
        family = family or self.family
        found = status_of(self.home).instances[instance].addresses
        return next(a for a in found if (":" in a) == (family == 6))

    @property
    def bridge(self) -> str:
        """Where workloads reach the machine itself."""
        state = self.home.state()
        assert state is not None
        return next(a for a in network_of(state).bridges if (":" in a) == (self.family == 6))

    def namespace(self, instance: str) -> str:
        """The network namespace of an instance."""
        book = msgspec.json.decode(
            (self.home.path / "addresses.json").read_bytes(), type=AddressBook
        )
        state = self.home.state()
        assert state is not None
        return namespace_name(state.id, book.taken[instance])

    def envoy(self, instance: str, path: str) -> str:
        """An answer of the admin interface of an instance's Envoy."""
        folder = self.home.instances / instance.replace("/", ".") / "proxy"
        _, body = asyncio.run(ask_envoy(folder, ADMIN_SOCKET, path))
        return body

    def resolve(self, client: str, host: str, family: int = 0) -> str:
        """What a client's resolver says of a name."""
        family = family or self.family
        literal = host.strip("[]")
        if literal.replace(".", "").isdigit() or ":" in literal:
            return literal
        folder = self.home.instances / client.replace("/", ".")
        lines = [line.split() for line in (folder / "app.resolv.conf").read_text().splitlines()]
        server = next(words[1] for words in lines if words[0] == "nameserver")
        domains = next(words[1:] for words in lines if words[0] == "search")
        for name in [f"{host}.{domain}" for domain in domains] + [host]:
            kind = socket.AF_INET6 if ":" in server else socket.AF_INET
            sock = socket_in(self.namespace(client), kind, socket.SOCK_DGRAM)
            reply = ask((server, 53), name, AAAA if family == 6 else A, sock=sock)
            if reply.addresses:
                return reply.addresses[0]
        raise LookupError(f"{client} does not know {host} (IPv{family})")

    # ------------------------------------------------------------------ requests

    def connect(
        self, client: str, host: str, port: int, family: int = 0, timeout_s: float = 20
    ) -> socket.socket:
        """A connection of a client's to a name; no client: from the machine itself."""
        family = family or self.family
        kind = socket.AF_INET6 if family == 6 else socket.AF_INET
        if not client:
            return socket.create_connection((host, port), timeout=timeout_s)
        made = socket_in(self.namespace(client), kind)
        made.settimeout(timeout_s)
        made.connect((self.resolve(client, host, family), port))
        return made

    def get(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        client: str = "default/curl-0",
        method: str = "GET",
        body: bytes | None = None,
        family: int = 0,
        via: tuple[str, int] | None = None,
        trust: ssl.SSLContext | None = None,
        timeout_s: float = 20,
    ) -> Answer:
        """One request on a connection of its own.

        Args:
            via: Connect there instead of where the URL says.
            trust: How to speak TLS, for an `https` URL.
        """
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        begun = time.monotonic()
        try:
            connection = http.client.HTTPConnection(host, port, timeout=20)
            where = via or (host, port)
            connection.sock = self.connect(client, *where, family, timeout_s)
            if parts.scheme == "https":
                context = trust or ssl._create_unverified_context()
                connection.sock = context.wrap_socket(connection.sock, server_hostname=host)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            name = host if port in (80, 443) else f"{host}:{port}"
            sent = {"host": name, **(headers or {})}
            connection.request(method, target, body=body, headers=sent)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, {}, f"{type(error).__name__}: {error}", time.monotonic() - begun)
        finally:
            connection.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, text, time.monotonic() - begun)

    def many(self, count: int, url: str, *args: Any, **kwargs: Any) -> Counter[str]:
        """Versions (or statuses, of refusals) that requests got."""
        answers = (self.get(url, *args, **kwargs) for _ in range(count))
        return Counter(a.version if a.status == 200 else str(a.status) for a in answers)

    def say(
        self,
        host: str,
        port: int,
        text: str = "hi",
        *,
        client: str = "default/curl-0",
        **kwargs: Any,
    ) -> str:
        """What a TCP server answers to a line; empty: nothing."""
        try:
            with self.connect(client, host, port, **kwargs) as connection:
                connection.sendall(text.encode() + b"\n")
                answer = connection.makefile("rb").readline()
        except OSError:
            return ""
        return answer.decode().rstrip("\n")

    def ingress(self, url: str, *args: Any, **kwargs: Any) -> Answer:
        """A request from outside to the ingress gateway, at the port that the URL says."""
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        via = (self.address(INGRESS, kwargs.get("family", 0)), port)
        return self.get(url, *args, client="", via=via, **kwargs)


class Config:
    """Objects of one test."""

    def __init__(self, mesh: TaskMesh) -> None:
        self._mesh = mesh
        self._held: dict[tuple[str, str, str], dict[str, Any]] = {}

    def apply(self, source: str | Path | Iterable[dict[str, Any]]) -> None:
        """Documents, their YAML, or the file that holds it; those of Deployments are left out."""
        if isinstance(source, Path):
            source = source.read_text()
        found = yaml.safe_load_all(source) if isinstance(source, str) else source
        left = {"Deployment", "ServiceAccount", "Service"} if isinstance(source, str) else set()
        documents = [d for d in found if d and d["kind"] not in left]
        for document in documents:
            meta = document["metadata"]
            name = (document["kind"], meta.get("namespace", "default"), meta["name"])
            self._held[name] = document
        self._mesh.apply(documents)

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """Delete one that was applied."""
        self._mesh.delete([self._held.pop((kind, namespace, name))])

    def clear(self) -> None:
        """Delete everything."""
        documents, self._held = list(self._held.values()), {}
        self._mesh.delete(documents)


@contextmanager
def applied(mesh: TaskMesh, source: str) -> Any:
    """Objects while a block runs."""
    held = Config(mesh)
    held.apply(source)
    try:
        yield held
    finally:
        held.clear()
