"""A Deployment of many pods is restarted: nodes and pods are kwok's, everything else is real."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from build import Unavailable, program
from cluster import Cluster
from nats_process import NatsServer
from rows import Rows, call, rows_of
from test_kube_discovery import service

from services import Process, serving

pytestmark = pytest.mark.slow
PODS = 200


@pytest.fixture
def node(cluster: Cluster, namespace: str) -> Iterator[str]:
    """A node whose pods run as soon as they are on it."""
    try:
        program("kwok")
    except Unavailable as error:
        pytest.skip(f"no kwok: {error}")
    document = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": f"kwok-{namespace}",
            "labels": {"kwok": namespace, "topology.kubernetes.io/zone": "z1"},
        },
    }
    cluster.apply(document)
    cluster.run(
        "kwok",
        f"--kubeconfig={cluster.kubeconfig}",
        f"--config={Path(__file__).with_name('kwok_stages.yaml')}",
        f"--manage-nodes-with-label-selector=kwok={namespace}",
        "--cidr=10.200.0.0/16",
        "--node-ip=10.199.0.1",
    )
    yield document["metadata"]["name"]  # type: ignore[index]
    cluster.kill("kwok")
    cluster.delete(document)


def deployment(namespace: str, node: str) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {
            "replicas": PODS,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "nodeName": node,
                    "containers": [
                        {
                            "name": "web",
                            "image": "web",
                            "ports": [{"name": "web", "containerPort": 8080}],
                        }
                    ],
                },
            },
        },
    }


def events(process: Process) -> int:
    """What the API server has sent."""
    text = process.admin("/metrics")[1]
    return int(sum(map(float, re.findall(r"^meshbus_kube_events_total\{.*\} (\S+)$", text, re.M))))


def served(rows: Rows, namespace: str) -> set[str]:
    """Pods that get requests."""
    return {e.instance for e in rows.endpoints(namespace, "web") if e.ready}


async def test_a_rolling_restart_is_conflated_and_always_served(
    cluster: Cluster, namespace: str, node: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    with serving(cluster, nats_server, "discovery", tmp_path / "d", root=namespace) as discovery:
        async with rows_of(nats_server) as rows:
            await call(discovery.wait_ready)
            await call(cluster.apply, service(namespace, "web"))
            await call(cluster.apply, deployment(namespace, node))
            await rows.until(lambda: len(served(rows, namespace)) == PODS, 180)
            old = served(rows, namespace)
            assert {e.locality for e in rows.endpoints(namespace, "web")} == {"/z1"}
            least = PODS

            def note(*_: Any) -> None:
                nonlocal least
                least = min(least, len(served(rows, namespace)))

            rows.mirror.subscribe(note)
            before, sequence = events(discovery), rows.mirror.world.sequence
            await call(cluster.kubectl, "-n", namespace, "rollout", "restart", "deployment/web")

            def over() -> bool:
                now = served(rows, namespace)
                return len(now) == PODS and not now & old

            await rows.until(over, 240)
            workloads = {e.row.name for e in rows.mirror.world.all("reg.workloads")}
            await rows.until(
                lambda: not {e.row.name for e in rows.mirror.world.all("reg.workloads")} & old, 60
            )
            assert workloads >= served(rows, namespace)
            got = events(discovery) - before
            wrote = rows.mirror.world.sequence - sequence
            print(f"{got} events, {wrote} rows, never fewer than {least} endpoints")
            assert wrote < got, "several events of an object became one row"
            assert least >= PODS * 0.9, "maxUnavailable is 0: endpoints go when others have come"
