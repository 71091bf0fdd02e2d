"""A small real mesh for tests: nats-server, ca and xds-gateway in this process, real Envoys."""

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from meshbus_ca.service import CaService, CaSettings
from meshbus_xds_gateway.service import XdsGatewayService, XdsGatewaySettings

from meshbus.bus.interface import BusError
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import ModelWriter
from meshbus.inject.ads import (
    ROOTS,
    from_file,
    gateway_cluster,
    over_ads,
    roots_secret,
    token_secret,
)
from meshbus.local.network import host_port
from meshbus.model.keys import Key
from meshbus.model.requests import (
    CONVERGED,
    JOIN_TOKEN,
    PROXIES,
    ConvergedReply,
    ConvergedRequest,
    JoinTokenReply,
    JoinTokenRequest,
    ProxiesReply,
    ProxiesRequest,
    replica_subject,
)
from meshbus.model.rows import (
    ConfigObject,
    Endpoint,
    EndpointShard,
    Row,
    Service,
    ServicePort,
    WorkloadInstance,
    WorkloadPort,
)
from meshbus.runtime.calls import CallError, call
from meshbus.runtime.process import make_context
from meshbus.runtime.sealed import recipient
from meshbus.runtime.settings import ProcessSettings

CLUSTER = "c"
IDENTITIES = ("config", "discovery", "ca", "xds-gateway", "local")
"""Users of the bus that a mesh is made of."""
POD = "xds-gateway-0"
GATEWAY_NAME = "xds-gateway.istio-system.svc"
Rows = dict[Key, Row | None]


def envoy_binary() -> str:
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "_bin" / "envoy"
        if path.is_file():
            return str(path)
    pytest.skip("Envoy is not installed (extra `standalone`)")


def free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def host(name: str) -> str:
    return f"{name}.default.svc.cluster.local"


def service(name: str, port: int, protocol: str = "HTTP") -> Rows:
    row = Service(
        host=host(name),
        namespace="default",
        name=name,
        origin="kubernetes",
        ports=[ServicePort("http", port, protocol)],
        selector={"app": name},
        source=f"cfg.services/default/{name}",
    )
    return {Key(CLUSTER, "reg", "services", "default", row.host): row}


def endpoints(name: str, members: Mapping[str, str], port: int, tls_mode: str = "istio") -> Rows:
    """`members`: instance to address."""
    row = EndpointShard(
        host(name),
        "default",
        "1",
        [
            Endpoint(
                addresses=[address],
                ports={"http": port},
                labels={"app": name},
                service_account=name,
                workload=name,
                instance=instance,
                namespace="default",
                tls_mode=tls_mode,
            )
            for instance, address in members.items()
        ],
    )
    return {Key(CLUSTER, "reg", "endpoints", "default", row.host, "1"): row}


def workload(name: str, address: str, *, app: str = "", port: int = 0, http_proxy: int = 0) -> Rows:
    """A sidecar of capture mode `proxy`; its application at `app`."""
    row = WorkloadInstance(
        name=f"{name}-0",
        namespace="default",
        workload=name,
        service_account=name,
        labels={"app": name},
        addresses=[address],
        app_address=app,
        ports=[WorkloadPort("http", port, "HTTP")] if port else [],
        capture="proxy",
        http_proxy_address=address if http_proxy else "",
        http_proxy_port=http_proxy,
    )
    return {Key(CLUSTER, "reg", "workloads", "default", row.name): row}


def config(kind: str, plural: str, name: str, spec: dict[str, Any], namespace="default") -> Rows:
    row = ConfigObject("networking.istio.io/v1", kind, namespace, name, name, 1, 0.0, spec=spec)
    return {Key(CLUSTER, "cfg", plural, namespace, name): row}


class Loopback:
    """Addresses of this machine's own that tests give to instances: of IPv6 there is one alone, so
    others are added, and taken away again."""

    def __init__(self) -> None:
        self.family = 4
        self._added: list[str] = []

    @property
    def own(self) -> str:
        """Where services of the mesh listen."""
        return "::1" if self.family == 6 else "127.0.0.1"

    @contextlib.contextmanager
    def of(self, family: int) -> Iterator[int]:
        """Addresses of a family (4 or 6) from now on."""
        if family == 6 and (os.geteuid() != 0 or shutil.which("ip") is None):
            pytest.skip("IPv6 addresses are added to the loopback interface by root, with `ip`")
        self.family = family
        try:
            yield family
        finally:
            self.family = 4
            for address in self._added:
                self._ip("del", address)
            self._added.clear()

    def six(self) -> str:
        """One that is there for as long as the family is."""
        address = f"fd6d:6573:ffff:{random.randrange(1, 1 << 16):x}::{len(self._added) + 1:x}"
        self._ip("add", address, "nodad")
        self._added.append(address)
        return address

    def _ip(self, verb: str, address: str, *how: str) -> None:
        command = ["ip", "-6", "addr", verb, f"{address}/128", "dev", "lo", *how]
        subprocess.run(command, check=True, capture_output=True)


LOOPBACK = Loopback()


def loopback() -> str:
    """An address of this machine's own, most likely nobody's, of the family in use."""
    if LOOPBACK.family == 6:
        return LOOPBACK.six()
    return f"127.{random.randint(10, 250)}.{random.randint(1, 250)}.{random.randint(1, 250)}"


def by(*families: int) -> pytest.MarkDecorator:
    """A test that is worth its time by these families alone."""
    ids = [f"ipv{family}" for family in families]
    return pytest.mark.parametrize("family", families, ids=ids, indirect=True)


class Mesh:
    """What a test may do with the mesh."""

    def __init__(self, folder: Path, buses: dict[str, Any], bus_for: Any) -> None:
        self.folder = folder
        self.buses = buses
        self.bus_for = bus_for
        self.process = ProcessSettings(state=str(folder / "state"), cluster=CLUSTER)
        self.writers = {
            name: ModelWriter(buses[name], cluster=CLUSTER, service=name, pod=f"{name}-0")
            for name in ("config", "discovery")
        }
        self.mirror = WorldMirror()
        self.gateway: XdsGatewayService | None = None
        self.transport = "auto"
        self.envoy_options: tuple[str, ...] = ()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        follower = self.mirror.follow(self.buses["config"])
        self._tasks = [asyncio.create_task(w.run()) for w in self.writers.values()]
        self._tasks.append(asyncio.create_task(follower.run()))
        self.start_ca()
        for writer in self.writers.values():
            await writer.wait_leading()
        await self.until(lambda: self.trust is not None, "sec.trust is written")

    @property
    def trust(self) -> Any:
        return self.mirror.world.get(Key(CLUSTER, "sec", "trust", "", "cluster.local"))

    def start_ca(self) -> None:
        context = make_context(CaService, CaSettings(), self.process, self.buses["ca"])
        self._running["ca"] = asyncio.create_task(CaService(context).run())

    async def start_gateway(self, **settings: Any) -> XdsGatewayService:
        settings = {"listen": host_port(LOOPBACK.own, 0), "transport": self.transport, **settings}
        context = make_context(
            XdsGatewayService,
            XdsGatewaySettings(**settings),
            self.process,
            self.buses["xds-gateway"],
        )
        gateway = self.gateway = XdsGatewayService(context)
        task = self._running["xds-gateway"] = asyncio.create_task(gateway.run())
        await self.until(lambda: task.done() or gateway.port is not None, "the gateway listens")
        if task.done():
            await task
        return gateway

    async def stop(self, name: str) -> None:
        """End a service as its process would end: its connection to the bus goes too."""
        task = self._running.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self.buses[name].close()
        self.buses[name] = await self.bus_for(name)

    async def close(self) -> None:
        for name in reversed(list(self._running)):
            await self.stop(name)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def write(self, *parts: Rows) -> int:
        """Rows by those who may write them; gives the id of the last change."""
        rows = {key: row for part in parts for key, row in part.items()}
        last = 0
        for writer, planes in (("discovery", {"reg"}), ("config", {"cfg", "mesh"})):
            mine = [(key, row) for key, row in rows.items() if key.plane in planes]
            if mine:
                last = await self.writers[writer].commit(mine)
        return last

    async def token(self, name: str, ttl_s: int = 3600) -> str:
        """A join token of instance `NAME-0`."""
        mine = recipient()
        request = JoinTokenRequest("default", name, f"{name}-0", name, mine.public_key, ttl_s)
        reply = await call(self.buses["local"], JOIN_TOKEN, request, JoinTokenReply)
        return mine.open(reply.sealed).decode()

    async def converged(self, sequence: int, timeout_s: float = 10.0) -> ConvergedReply:
        return await call(
            self.buses["config"],
            replica_subject(CONVERGED, POD),
            ConvergedRequest(sequence, timeout_s),
            ConvergedReply,
            timeout=timeout_s + 5,
        )

    async def proxies(self) -> dict[str, Any]:
        reply = await call(
            self.buses["config"], replica_subject(PROXIES, POD), ProxiesRequest(), ProxiesReply
        )
        return {proxy.id: proxy for proxy in reply.proxies}

    async def until(self, holds: Any, what: str, timeout_s: float = 15.0) -> Any:
        """Wait for a condition of this process or of the mesh (async or not)."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(httpx.TransportError, CallError, BusError):
                        value = holds()
                        if asyncio.iscoroutine(value):
                            value = await value
                        if value:
                            return value
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"did not come true: {what}") from None

    @contextlib.asynccontextmanager
    async def envoy(
        self, name: str, address: str, api: str = "DELTA_GRPC", kind: str = "sidecar"
    ) -> AsyncIterator["Envoy"]:
        """A sidecar (or `router`) of `NAME-0`, connected over TLS with its join token."""
        assert self.gateway is not None
        folder = self.folder / f"envoy-{name}"
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(await self.token(name))
        (folder / "root.pem").write_text(self.trust.roots_pem)
        bootstrap = bootstrap_of(name, address, folder, self.gateway.port or 0)
        bootstrap["dynamic_resources"]["ads_config"]["api_type"] = api
        bootstrap["node"]["id"] = bootstrap["node"]["id"].replace("sidecar~", f"{kind}~")
        (folder / "bootstrap.json").write_text(json.dumps(bootstrap))
        with (folder / "envoy.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                envoy_binary(),
                *("-c", str(folder / "bootstrap.json"), "-l", "info", "--concurrency", "1"),
                *("--disable-hot-restart", "--admin-address-path", str(folder / "admin")),
                *self.envoy_options,
                stdout=log,
                stderr=log,
            )
        envoy = Envoy(folder, process)
        try:
            yield envoy
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


AnyMesh = TypeVar("AnyMesh", bound=Mesh)


@contextlib.asynccontextmanager
async def mesh_on(
    bus_for: Any, folder: Path, kind: Callable[..., AnyMesh] = Mesh, *more: str
) -> AsyncIterator[AnyMesh]:
    """A mesh that is to be started, with `more` users of the bus; closed in the end."""
    made = kind(folder, {name: await bus_for(name) for name in (*IDENTITIES, *more)}, bus_for)
    try:
        yield made
    finally:
        await made.close()


class Envoy:
    """One running Envoy."""

    def __init__(self, folder: Path, process: Any) -> None:
        self.folder = folder
        self.process = process

    async def admin(self, path: str) -> str:
        address = self.folder / "admin"
        if not address.exists() or not address.read_text():
            return ""
        async with httpx.AsyncClient() as client:
            reply = await client.get(f"http://{address.read_text()}{path}", timeout=5)
        return reply.text

    async def ready(self) -> bool:
        return (await self.admin("/ready")).strip() == "LIVE"

    async def stat(self, name: str) -> int:
        for line in (await self.admin(f"/stats?filter=^{name}$")).splitlines():
            if line.startswith(f"{name}:"):
                return int(line.rpartition(":")[2])
        return -1

    @property
    def log(self) -> str:
        return (self.folder / "envoy.log").read_text()


def bootstrap_of(name: str, address: str, folder: Path, port: int) -> dict[str, Any]:
    """The bootstrap of a sidecar without an agent."""
    token = token_secret(str(folder / "token"), str(folder))
    roots = roots_secret(str(folder / "root.pem"), str(folder), (GATEWAY_NAME,))
    (folder / "token-sds.json").write_text(json.dumps(token))
    (folder / "roots-sds.json").write_text(json.dumps(roots))
    proven = {"name": ROOTS, "sds_config": from_file(str(folder / "roots-sds.json"))}
    cluster = gateway_cluster(
        (LOOPBACK.own, port),
        GATEWAY_NAME,
        roots={"validation_context_sds_secret_config": proven},
        token_sds=str(folder / "token-sds.json"),
        discovery={"type": "STATIC", "connect_timeout": "5s"},
    )
    return {
        "node": {
            "id": f"sidecar~{address}~{name}-0.default~default.svc.cluster.local",
            "cluster": name,
        },
        "admin": {"address": _address("127.0.0.1", 0)},
        "dynamic_resources": over_ads("0.1s", "1s"),
        "static_resources": {"clusters": [cluster]},
    }


def _address(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


@contextlib.asynccontextmanager
async def application(address: str, port: int, text: str) -> AsyncIterator[list[dict[str, str]]]:
    """An HTTP server; gives the headers of the requests that it got."""
    got: list[dict[str, str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                got.append(dict(line.lower().split(": ", 1) for line in head[1:] if line))
                body = text.encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, address, port)
    try:
        yield got
    finally:
        server.close()
