"""How long compile takes: cold, and after one change, at several sizes of mesh.

    python bench/compile.py [--services 1000] [--scoped] [--profile SCENARIO]

In one process, without bus and streams: rows go to the classes of a gateway that all proxies have
joined. Printed as JSON: seconds of CPU, nodes run, resources encoded, classes touched.
"""

import argparse
import cProfile
import gc
import json
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1] / "services/xds-gateway"))

from meshbus_xds_gateway.classes import Classes, collect_rarely

from meshbus.compile.proxy_keys import proxy_of_instance
from meshbus.model.keys import Key
from meshbus.model.rows import (
    ConfigObject,
    Endpoint,
    EndpointShard,
    Namespace,
    Row,
    Service,
    ServicePort,
    WorkloadInstance,
    WorkloadPort,
)
from meshbus.model.world import Put, World, world_of

CLUSTER = "c"
NETWORKING = "networking.istio.io/v1"
PER_NAMESPACE = 20
REPLICAS = 2


def host_of(number: int) -> str:
    """Host of a service."""
    return f"svc-{number:05}.{namespace_of(number)}.svc.cluster.local"


def namespace_of(number: int) -> str:
    """Namespace of a service."""
    return f"ns-{number // PER_NAMESPACE:03}"


def key(plane: str, kind: str, namespace: str, name: str, shard: str = "") -> Key:
    """Key of a row."""
    return (
        Key(CLUSTER, plane, kind, namespace, name, shard)
        if shard
        else Key(CLUSTER, plane, kind, namespace, name)
    )


def config(kind: str, plural: str, namespace: str, name: str, spec: Any) -> tuple[Key, Row]:
    """One object."""
    row = ConfigObject(NETWORKING, kind, namespace, name, f"{kind}-{name}", 1, 1.0, spec=spec)
    return key("cfg", plural, namespace, name), row


def weights(number: int, first: int) -> tuple[Key, Row]:
    """A virtual service that divides a service's requests between two subsets."""
    host = host_of(number)
    route = [
        {"destination": {"host": host, "subset": s}, "weight": w}
        for s, w in (("v1", first), ("v2", 100 - first))
    ]
    spec = {"hosts": [host], "http": [{"route": route}]}
    return config("VirtualService", "virtualservices", namespace_of(number), f"vs-{number}", spec)


def service_rows(number: int) -> dict[Key, Row]:
    """One service with its endpoints and workloads; each fifth has subsets and routes."""
    namespace, host, name = namespace_of(number), host_of(number), f"svc-{number:05}"
    rows: dict[Key, Row] = {}
    rows[key("reg", "services", namespace, host)] = Service(
        host,
        namespace,
        name,
        "kubernetes",
        [ServicePort("http", 80, "HTTP"), ServicePort("grpc", 9090, "GRPC")],
        addresses=[f"10.{96 + number // 60000}.{number // 250 % 250}.{number % 250 + 1}"],
        selector={"app": name},
        created=1.0,
    )
    endpoints = []
    for replica in range(REPLICAS):
        labels = {"app": name, "version": f"v{replica % 2 + 1}"}
        at = number * REPLICAS + replica
        address = f"10.{128 + at // 62500}.{at // 250 % 250}.{at % 250 + 1}"
        endpoints.append(
            Endpoint(
                [address],
                {"http": 8080, "grpc": 9090},
                labels,
                f"sa-{name}",
                name,
                f"{name}-{replica}",
                namespace,
                tls_mode="istio",
            )
        )
        rows[key("reg", "workloads", namespace, f"{name}-{replica}")] = WorkloadInstance(
            f"{name}-{replica}",
            namespace,
            name,
            f"sa-{name}",
            labels,
            [address],
            ports=[WorkloadPort("http", 8080, "HTTP"), WorkloadPort("grpc", 9090, "GRPC")],
        )
    shard = EndpointShard(host, namespace, "s", endpoints)
    rows[key("reg", "endpoints", namespace, host, "s")] = shard
    if number % 5 == 0:
        rows.update([weights(number, 90)])
        subsets = [{"name": v, "labels": {"version": v}} for v in ("v1", "v2")]
        spec = {"host": host, "subsets": subsets}
        rows.update([config("DestinationRule", "destinationrules", namespace, name, spec)])
    return rows


def mesh_rows(services: int, scoped: bool) -> dict[Key, Row]:
    """A mesh; scoped: each namespace sees itself and the two after it."""
    rows: dict[Key, Row] = {}
    namespaces = sorted({namespace_of(number) for number in range(services)})
    for index, namespace in enumerate(namespaces):
        rows[key("reg", "namespaces", "", namespace)] = Namespace(namespace)
        if scoped:
            others = [namespaces[(index + d) % len(namespaces)] for d in (1, 2)]
            spec = {"egress": [{"hosts": ["./*", "istio-system/*", *(f"{o}/*" for o in others)]}]}
            rows.update([config("Sidecar", "sidecars", namespace, "default", spec)])
    for number in range(services):
        rows.update(service_rows(number))
    return rows


class Bench:
    """A mesh and the classes of its proxies."""

    def __init__(self, services: int, scoped: bool, profile: str) -> None:
        self.services = services
        self.profile = profile
        self.report: dict[str, Any] = {"services": services, "scoped": scoped}
        self.start(world_of(mesh_rows(services, scoped)))

    def start(self, world: World) -> None:
        """Begin with a mesh and no proxies."""
        self.world = world
        self.classes = Classes(lambda what: print("not compiled", what, file=sys.stderr))
        self.classes.update(world, ())

    def measure(self, name: str, act: Callable[[], Any]) -> None:
        """Run something once and note what it cost."""
        counters = self.classes.engine.counters
        before = counters.copy()
        gc.collect()
        profiler = cProfile.Profile()
        if name == self.profile:
            profiler.enable()
        began, cpu = time.perf_counter(), time.process_time()
        result = act()
        took = {"s": round(time.perf_counter() - began, 5), "cpu": time.process_time() - cpu}
        if name == self.profile:
            profiler.disable()
            pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)
        since = counters.since(before)
        took["nodes"] = sum(since.recomputed.values())
        took["encodes"] = dict(since.encodes)
        if isinstance(result, tuple):
            took["classes"] = len(result[0])
        if took["nodes"] < 200:
            took["ran"] = dict(since.recomputed)
        self.report[name] = took

    def change(self, *rows: tuple[Key, Row | None]) -> tuple[set[Any], set[Any]]:
        """One step of the world, down to the classes that it concerns."""
        sequence = self.world.sequence + 1
        puts = [Put(where, sequence, 0.0, row) for where, row in rows]
        self.world, touched = self.world.apply(puts)
        self.classes.update(self.world, touched)
        self.classes.engine.advance()
        return self.classes.changed()

    def run(self) -> dict[str, Any]:
        """All scenarios."""
        instances = [e.row for e in self.world.all("reg.workloads")]
        members = [_Member(proxy_of_instance(row)) for row in instances]
        self.measure("first proxy", lambda: self.classes.join(members[0]) and None)
        self.measure("one more of the namespace", lambda: self.classes.join(members[3]) and None)
        self.measure("all proxies", lambda: [self.classes.join(m) for m in members] and None)
        self.report["proxies"] = len(members)
        self.report["classes"] = len({id(self.classes.class_of(m)) for m in members})
        where = key("reg", "endpoints", namespace_of(7), host_of(7), "s")
        shard = self.world.get(where)
        for _ in range(2):
            first, *rest = shard.endpoints
            flapped = msgspec.structs.replace(first, ready=not first.ready)
            shard = msgspec.structs.replace(shard, endpoints=[flapped, *rest])
            self.measure("endpoint", lambda row=shard: self.change((where, row)))
        self.measure("weight", lambda: self.change(weights(10, 50)))
        new = self.services
        self.measure("service added", lambda: self.change(*service_rows(new).items()))
        self.measure(
            "service removed", lambda: self.change(*((k, None) for k in service_rows(new)))
        )
        policy = ConfigObject(
            "security.istio.io/v1",
            "AuthorizationPolicy",
            "istio-system",
            "deny",
            "u",
            1,
            1.0,
            spec={"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/no"]}}]}]},
        )
        at = key("cfg", "authorizationpolicies", "istio-system", "deny")
        self.measure("policy for all", lambda: self.change((at, policy)))
        self.measure("rewritten", lambda: self.change((at, policy)))
        status = Path("/proc/self/status").read_text()
        self.report["rss_kb"] = int(status.split("VmRSS:")[1].split()[0])
        return self.report


class _Member:
    """A client as classes need it."""

    def __init__(self, keys: Any) -> None:
        self.keys = keys


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--scoped", action="store_true")
    parser.add_argument("--profile", default="", help="print the profile of one scenario")
    given = parser.parse_args()
    collect_rarely()
    report = Bench(given.services, given.scoped, given.profile).run()
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
