"""How discovery follows a large cluster: a real API server, 10,000 pods and 1,000 services.

    python bench/kube_sync.py [--pods 10000] [--services 1000]

Prints one JSON object: seconds from the start of the process until every row is on the bus, memory
of the process, milliseconds from the API server's answer to the row of a changed EndpointSlice, and
how many rows a rolling restart of 1,000 pods became.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(_TESTS), str(_TESTS / "kube")]

from cluster import Cluster, running_cluster
from nats_process import NatsServer
from rows import Rows, rows_of

from meshbus.kube.access import from_kubeconfig
from meshbus.kube.client import MERGE_PATCH, KubeClient, object_path
from services import serving

NAMESPACES = 20
ROOT = "istio-system"


class Filler(KubeClient):
    """Writes as fast as the API server takes it."""

    async def _pace(self) -> None:
        """Not here."""


def service_name(number: int) -> tuple[str, str]:
    return f"ns-{number % NAMESPACES}", f"svc-{number}"


def address_of(pod: int, restart: int = 0) -> str:
    return f"10.{64 + restart}.{pod // 250}.{pod % 250 + 1}"


def pod_document(pod: int, service: int) -> dict[str, Any]:
    namespace, name = service_name(service)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-6b9f7d5c4d-{pod:05}",
            "namespace": namespace,
            "labels": {"app": name, "version": "v1", "pod-template-hash": "6b9f7d5c4d"},
            "annotations": {"sidecar.istio.io/status": "x" * 300},
        },
        "spec": {
            "nodeName": f"node-{pod % 50}",
            "automountServiceAccountToken": False,
            "containers": [
                {"name": "app", "image": "app", "ports": [{"name": "http", "containerPort": 8080}]},
                {
                    "name": "istio-proxy",
                    "image": "proxy",
                    "env": [{"name": "X", "value": "y" * 500}],
                },
            ],
        },
    }


def slice_document(service: int, pods: list[int], restart: int = 0) -> dict[str, Any]:
    namespace, name = service_name(service)
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-1",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": [address_of(pod, restart)],
                "conditions": {"ready": True},
                "targetRef": {
                    "kind": "Pod",
                    "name": f"{name}-6b9f7d5c4d-{pod:05}",
                    "namespace": namespace,
                },
            }
            for pod in pods
        ],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


async def fill(client: Filler, pods: int, services: int) -> None:
    """Make everything."""

    async def make(group: str, version: str, plural: str, document: dict[str, Any]) -> None:
        namespace = document["metadata"].get("namespace", "")
        await client.send("POST", object_path(group, version, plural, namespace), document)

    for name in [ROOT, *(f"ns-{n}" for n in range(NAMESPACES))]:
        kind = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        await make("", "v1", "namespaces", kind)
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": name},
        }
        await make("", "v1", "serviceaccounts", account)
    for number in range(50):
        labels = {
            "topology.kubernetes.io/region": "r",
            "topology.kubernetes.io/zone": f"z{number % 3}",
        }
        metadata = {"name": f"node-{number}", "labels": labels}
        await make("", "v1", "nodes", {"apiVersion": "v1", "kind": "Node", "metadata": metadata})

    async def one_service(number: int) -> None:
        namespace, name = service_name(number)
        await make(
            "",
            "v1",
            "services",
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "selector": {"app": name},
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
                },
            },
        )
        mine = list(range(number, pods, services))
        await make("discovery.k8s.io", "v1", "endpointslices", slice_document(number, mine))

    async def one_pod(number: int) -> None:
        document = pod_document(number, number % services)
        await make("", "v1", "pods", document)
        metadata = document["metadata"]
        path = object_path("", "v1", "pods", metadata["namespace"], metadata["name"], "status")
        status = {
            "phase": "Running",
            "podIP": address_of(number),
            "podIPs": [{"ip": address_of(number)}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        await client.send("PATCH", path, {"status": status}, content_type=MERGE_PATCH)

    await in_parallel([one_service(n) for n in range(services)])
    await in_parallel([one_pod(n) for n in range(pods)])


async def in_parallel(jobs: list[Any], width: int = 32) -> None:
    gate = asyncio.Semaphore(width)

    async def run(job: Any) -> None:
        async with gate:
            await job

    await asyncio.gather(*(run(job) for job in jobs))


def memory_mb(pid: int, field: str = "VmRSS") -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


async def measure(
    cluster: Cluster, nats: NatsServer, folder: Path, pods: int, services: int
) -> dict[str, Any]:
    client = Filler(await from_kubeconfig(str(cluster.kubeconfig)))
    began = time.monotonic()
    await fill(client, pods, services)
    found: dict[str, Any] = {
        "pods": pods,
        "services": services,
        "filled_s": time.monotonic() - began,
    }
    async with rows_of(nats) as rows:
        began = time.monotonic()
        with serving(cluster, nats, "discovery", folder, root=ROOT) as process:
            world = rows.mirror
            await rows.until(
                lambda: (
                    len(world.world.all("reg.workloads")) >= pods
                    and len(world.world.all("reg.services")) >= services
                    and len(world.world.all("reg.endpoints")) >= services
                ),
                limit_s=300,
            )
            found["sync_s"] = time.monotonic() - began
            found["rss_mb"] = memory_mb(process.pid)
            found["peak_mb"] = memory_mb(process.pid, "VmHWM")
            found |= await events(client, rows, pods, services)
            found |= await storm(client, rows, pods, services)
            found["rss_after_mb"] = memory_mb(process.pid)
    await client.close()
    return found


async def events(client: Filler, rows: Rows, pods: int, services: int) -> dict[str, Any]:
    """One slice changes, fifty times."""
    namespace, name = service_name(0)
    path = object_path("discovery.k8s.io", "v1", "endpointslices", namespace, f"{name}-1")
    mine = list(range(0, pods, services))
    taken = []
    for turn in range(50):
        wanted = len(mine) - 1 - turn % 2
        document = slice_document(0, mine[:wanted])
        await client.send("PUT", path, document)
        began = time.monotonic()
        while len(rows.endpoints_of_shard(namespace, name, f"{name}-1")) != wanted:
            rows.changed.clear()
            await rows.changed.wait()
        taken.append((time.monotonic() - began) * 1000)
    taken.sort()
    return {
        "event_ms_median": round(statistics.median(taken), 2),
        "event_ms_p90": round(taken[44], 2),
    }


async def storm(client: Filler, rows: Rows, pods: int, services: int) -> dict[str, Any]:
    """A rolling restart: 1,000 endpoints get other addresses, each in an update of its own."""
    count = min(100, services)
    sequence = rows.mirror.world.sequence

    async def restart(service: int) -> None:
        namespace, name = service_name(service)
        path = object_path("discovery.k8s.io", "v1", "endpointslices", namespace, f"{name}-1")
        mine = list(range(service, pods, services))
        document = slice_document(service, mine)
        for index, pod in enumerate(mine):
            document["endpoints"][index]["addresses"] = [address_of(pod, restart=1)]
            await client.send("PUT", path, document)

    began = time.monotonic()
    await in_parallel([restart(number) for number in range(count)])
    sent = time.monotonic() - began

    def moved(service: int) -> bool:
        namespace, name = service_name(service)
        endpoints = rows.endpoints_of_shard(namespace, name, f"{name}-1")
        return all(one.addresses[0].startswith("10.65.") for one in endpoints)

    def done() -> bool:
        return all(moved(number) for number in range(count))

    await rows.until(done, limit_s=120)
    return {
        "storm_updates": count * len(range(0, pods, services)),
        "storm_sent_s": round(sent, 2),
        "storm_behind_s": round(time.monotonic() - began - sent, 3),
        "storm_rows": rows.mirror.world.sequence - sequence,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--services", type=int, default=1_000)
    arguments = parser.parse_args()
    os.environ.setdefault("PYTHONHASHSEED", "0")
    with tempfile.TemporaryDirectory() as folder, running_cluster(controllers=False) as cluster:
        nats = NatsServer(Path(folder) / "nats")
        nats.start()
        try:
            found = asyncio.run(
                measure(cluster, nats, Path(folder) / "d", arguments.pods, arguments.services)
            )
        finally:
            nats.kill()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
