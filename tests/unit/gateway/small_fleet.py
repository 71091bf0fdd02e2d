"""A gateway without sockets, and model Envoys that refuse what a test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.struct_pb2 import Struct
from meshbus_xds_gateway.carrier import Closed, Opened
from meshbus_xds_gateway.fleet import Fleet
from meshbus_xds_gateway.load import Load, LoadLimits
from meshbus_xds_gateway.metrics import GatewayMetrics
from meshbus_xds_gateway.streams import SERVICE, StreamLimits, XdsServer
from prometheus_client import CollectorRegistry

from meshbus.bus.memory import MemoryBus, MemoryServer
from meshbus.compile.resources import CDS, ECDS, EDS, LDS, RDS
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Endpoint, EndpointShard, Row, Service, ServicePort
from meshbus.model.world import Put, World
from meshbus.runtime.admin import Admin
from meshbus.runtime.clock import SystemClock
from meshbus.runtime.service import Context

METHOD = SERVICE + "DeltaAggregatedResources"
CLUSTER = "c"
ROOT = "istio-system"
HCM = "envoy.filters.network.http_connection_manager"
Rows = dict[Key, Row | None]
Refuses = Callable[[str, str, frozenset[str]], bool]
"""Whether an Envoy refuses a resource: its type, name and marks."""


# --------------------------------------------------------------------------- rows


def service(name: str, port: int = 80) -> Rows:
    host = f"{name}.default.svc.cluster.local"
    row = Service(
        host=host,
        namespace="default",
        name=name,
        origin="kubernetes",
        ports=[ServicePort("http", port, "HTTP")],
        selector={"app": name},
        source=f"cfg.services/default/{name}",
        addresses=[f"10.96.0.{port % 250}"],
    )
    member = Endpoint(
        addresses=["10.0.0.9"],
        ports={"http": port},
        labels={"app": name},
        service_account=name,
        workload=name,
        instance=f"{name}-0",
        namespace="default",
        tls_mode="istio",
    )
    return {
        Key(CLUSTER, "reg", "services", "default", host): row,
        Key(CLUSTER, "reg", "endpoints", "default", host, "1"): EndpointShard(
            host, "default", "1", [member]
        ),
    }


def filter_key(name: str, namespace: str = "default") -> Key:
    return Key(CLUSTER, "cfg", "envoyfilters", namespace, name)


def envoy_filter(
    name: str,
    marks: dict[str, str],
    namespace: str = "default",
    generation: int = 1,
    *,
    app: str = "",
    annotations: dict[str, str] | None = None,
) -> Rows:
    """For one app or all. `marks`: what it puts into every resource of a type (`lds`, `cds`, `rds`)
    of what is called; `cds/NAME`: into that cluster alone."""
    context = {"context": "SIDECAR_OUTBOUND"}
    patches: list[dict[str, Any]] = []
    for kind, mark in marks.items():
        short, _, of = kind.partition("/")
        match: dict[str, Any] = dict(context)
        if of:
            match["cluster"] = {"name": of}
        apply_to, operation, value = {
            "lds": ("LISTENER_FILTER", "ADD", {"name": mark}),
            "cds": ("CLUSTER", "MERGE", {"metadata": {"filter_metadata": {mark: {}}}}),
            "rds": ("ROUTE_CONFIGURATION", "MERGE", {"request_headers_to_remove": [mark]}),
        }[short]
        patches.append(
            {
                "applyTo": apply_to,
                "match": match,
                "patch": {"operation": operation, "value": value},
            }
        )
    spec: dict[str, Any] = {"configPatches": patches}
    if app:
        spec["workloadSelector"] = {"labels": {"app": app}}
    row = ConfigObject(
        "networking.istio.io/v1", "EnvoyFilter", namespace, name, name, generation, 0.0,
        annotations=annotations or {}, spec=spec,
    )  # fmt: skip
    return {filter_key(name, namespace): row}


# --------------------------------------------------------------------------- proxies


def marks_of(type_url: str, body: bytes) -> frozenset[str]:
    """The marks of a resource."""
    if type_url == LDS:
        listener = listener_pb2.Listener.FromString(body)
        found = [f.name for f in listener.listener_filters]
    elif type_url == CDS:
        found = list(cluster_pb2.Cluster.FromString(body).metadata.filter_metadata)
    elif type_url == RDS:
        found = list(route_pb2.RouteConfiguration.FromString(body).request_headers_to_remove)
    else:
        found = []
    return frozenset(name for name in found if name.startswith("mark"))


class ModelEnvoy:
    """Applies what is good of a response and refuses the rest, as Envoy does. Of routes and
    extensions it remembers what came last, and does not look at it again when it comes again."""

    def __init__(self, workload: str, number: int, refuses: Refuses) -> None:
        self.name = f"{workload}-{number}"
        self.workload = workload
        self.refuses = refuses
        self.silent = False
        """It says nothing to what it is sent."""
        self.held: dict[str, dict[str, tuple[str, bytes]]] = {}
        self.nacks: list[str] = []
        self.offered: list[tuple[str, frozenset[str]]] = []
        """Name and marks of every resource that it was sent."""
        self._last: dict[tuple[str, str], bytes] = {}
        self._names: dict[str, set[str]] = {}

    def opens(self) -> list[bytes]:
        """The first requests of a stream."""
        self._names = {}
        node = f"sidecar~10.1.0.1~{self.name}.default~default.svc.cluster.local"
        out = []
        for type_url in (CDS, LDS):
            request = self._request(type_url)
            request.node.id = node
            request.node.metadata.CopyFrom(_struct(self.workload))
            out.append(request.SerializeToString())
        return [*out, *self._asks()]

    def _request(self, type_url: str, names: Sequence[str] = ()) -> Any:
        held = self.held.get(type_url, {})
        first = type_url not in self._names
        known = {n: v for n, (v, _) in held.items() if v} if first else {}
        self._names.setdefault(type_url, set()).update(names)
        return discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url,
            resource_names_subscribe=names,
            initial_resource_versions=known,
        )

    def _asks(self) -> list[bytes]:
        """Requests for what its clusters and listeners lead to."""
        wanted: dict[str, set[str]] = {EDS: set(), RDS: set(), ECDS: set()}
        for name, (_, body) in self.held.get(CDS, {}).items():
            if cluster_pb2.Cluster.FromString(body).type == cluster_pb2.Cluster.EDS:
                wanted[EDS].add(name)
        for _, body in self.held.get(LDS, {}).values():
            listener = listener_pb2.Listener.FromString(body)
            chains = [*listener.filter_chains, listener.default_filter_chain]
            for item in (f for chain in chains for f in chain.filters):
                if item.name == HCM:
                    manager = hcm_pb2.HttpConnectionManager.FromString(item.typed_config.value)
                    if manager.HasField("rds"):
                        wanted[RDS].add(manager.rds.route_config_name)
                    wanted[ECDS] |= {
                        f.name for f in manager.http_filters if f.HasField("config_discovery")
                    }
                elif item.HasField("config_discovery"):
                    wanted[ECDS].add(item.name)
        out = []
        for type_url, names in wanted.items():
            new = sorted(names - self._names.get(type_url, set()))
            if new:
                out.append(self._request(type_url, new).SerializeToString())
        return out

    def answers(self, message: bytes) -> list[bytes]:
        """What it says to a response."""
        response = discovery_pb2.DeltaDiscoveryResponse.FromString(message)
        type_url = response.type_url
        if self.silent:
            return []
        held = self.held.setdefault(type_url, {})
        refused = []
        for resource in response.resources:
            body = resource.resource.value
            again = self._last.get((type_url, resource.name)) == body
            if type_url in (RDS, ECDS):
                self._last[type_url, resource.name] = body
                if again:
                    continue
            marks = marks_of(type_url, body)
            self.offered.append((resource.name, marks))
            if self.refuses(type_url, resource.name, marks):
                refused.append(resource.name)
            else:
                held[resource.name] = (resource.version, body)
        for name in response.removed_resources:
            held.pop(name, None)
        reply = discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url, response_nonce=response.nonce
        )
        if refused:
            self.nacks += refused
            named = ", ".join(refused) if type_url in (CDS, LDS) else "it"
            reply.error_detail.message = f"model: {named} refused"
        return [reply.SerializeToString(), *self._asks()]

    def marks(self) -> dict[tuple[str, str], frozenset[str]]:
        """By type and name of what it has: its marks."""
        return {
            (type_url, name): marks_of(type_url, body)
            for type_url, resources in self.held.items()
            for name, (_, body) in resources.items()
            if type_url in (LDS, CDS, RDS)
        }

    def bodies(self) -> dict[tuple[str, str], bytes]:
        """Everything that it has."""
        return {(t, n): b for t, held in self.held.items() for n, (_, b) in held.items()}


def _struct(workload: str) -> Any:
    made = Struct()
    made.update(
        {
            "NAMESPACE": "default",
            "LABELS": {"app": workload},
            "SERVICE_ACCOUNT": workload,
            "CLUSTER_ID": CLUSTER,
            "INSTANCE_IPS": "10.1.0.1",
            "WORKLOAD_NAME": workload,
        }
    )
    return made


class NoCarrier:
    """Keeps what is sent until the proxies are asked for their answers."""

    name = "none"

    def __init__(self) -> None:
        self.handler: Any = None
        self.sent: list[tuple[bytes, Sequence[int]]] = []

    async def start(self, listen: str, handler: Any, tls: Any, limits: Any) -> int:
        self.handler = handler
        return 0

    def send(self, messages: Sequence[tuple[bytes, Sequence[int]]]) -> None:
        self.sent.extend(messages)

    def close(self, stream: int, status: Any, message: str = "", *, leave: bool = False) -> None:
        raise AssertionError(f"stream {stream} was ended: {status.name} {message}")

    def pause(self, stream: int) -> None: ...

    def resume(self, stream: int) -> None: ...

    def counters(self) -> dict[str, int]:
        return {}

    async def stop(self, grace_s: float) -> None: ...


class SmallGateway:
    """A replica of the gateway, and the proxies that are connected to it."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        clock, registry = SystemClock(), CollectorRegistry()
        context: Context[Any] = Context(
            "xds-gateway",
            "gw",
            CLUSTER,
            ROOT,
            "cluster.local",
            Path(),
            None,
            MemoryBus(MemoryServer(), "xds-gateway"),
            clock,
            structlog.get_logger("xds-gateway"),
            registry,
            Admin(),
        )
        metrics = GatewayMetrics(registry)
        self.fleet = Fleet(context, metrics, tasks, 3600)
        self.carrier: Any = NoCarrier()
        self.told: list[tuple[str, frozenset[str]]] = []
        """Refusals that were announced: the resource, and names of the objects."""
        self.server = XdsServer(
            context,
            self.fleet,
            metrics,
            StreamLimits(2700.0, 100_000),
            self.carrier,
            Load(CLUSTER, "gw", LoadLimits(9.0, 0), clock.monotonic),
            first_uses=None,
            refused=self._tell,
        )
        self.fleet.quarantines.on_verdict(self._tell)
        self.world = World()
        self.proxies: dict[int, ModelEnvoy] = {}
        self._numbers = 0

    def _tell(self, refusal: Any, objects: frozenset[Key]) -> None:
        self.told.append((refusal.resource.name, frozenset(key.name for key in objects)))

    async def start(self, world: World) -> None:
        """Read a mesh."""
        await self.server.start("", None)
        self.world = world
        self.fleet.world_changed(world, frozenset())

    def write(self, *parts: Rows) -> None:
        """The next version of the model."""
        sequence = self.world.sequence + 1
        puts = [Put(k, sequence, 0.0, row) for part in parts for k, row in part.items()]
        self.world, touched = self.world.apply(puts)
        self.fleet.world_changed(self.world, touched)

    def connect(self, proxy: ModelEnvoy) -> int:
        """Serve a proxy from now on; gives the number of its stream."""
        self._numbers += 1
        self.proxies[self._numbers] = proxy
        opened = Opened(METHOD, (), "127.0.0.1:9", None)
        self.carrier.handler(
            [(self._numbers, opened), *((self._numbers, data) for data in proxy.opens())]
        )
        return self._numbers

    def disconnect(self, number: int) -> None:
        """A proxy goes."""
        del self.proxies[number]
        self.carrier.handler([(number, Closed("gone"))])

    async def settle(self, limit: int = 3000) -> None:
        """Until nobody has anything to say any more."""
        quiet = 0
        for _ in range(limit):
            for _ in range(3):
                await asyncio.sleep(0)
            sent, self.carrier.sent = self.carrier.sent, []
            batch = [
                (number, answer)
                for message, streams in sent
                for number in streams
                if number in self.proxies
                for answer in self.proxies[number].answers(message)
            ]
            if batch:
                self.carrier.handler(batch)
            elif not sent:
                self.fleet.look()
            idle = not sent and self.fleet.sequence == self.world.sequence
            quiet = quiet + 1 if idle and not self.server.waiting else 0
            if quiet > 5:
                return
        raise AssertionError("they never stop talking")

    def left_out(self) -> dict[str, set[str]]:
        """By workload: names of the objects that are left out."""
        out: dict[str, set[str]] = {}
        for left in self.fleet.quarantines.left_out():
            out.setdefault(left.place[1], set()).add(left.object.name)
        return out


@contextlib.asynccontextmanager
async def small_gateway(world: World | None = None) -> AsyncIterator[SmallGateway]:
    """A replica that has read a world."""
    tasks = asyncio.TaskGroup()
    async with tasks:
        gateway = SmallGateway(tasks)
        running = tasks.create_task(gateway.fleet.run())
        await gateway.start(world or World())
        yield gateway
        for number in list(gateway.proxies):
            gateway.disconnect(number)
        running.cancel()
