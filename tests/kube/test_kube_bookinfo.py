"""Bookinfo on a real API server: applied by kubectl, carried by real Envoys as injected."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cluster import Cluster
from kubelet import NODE, Kubelet, RunningPod, bridge, can_run
from nats_process import NatsServer
from test_kube_crds import install_definitions

from services import Process, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(bool(can_run()), reason=can_run()),
]
ROOT = "istio-system"
NAMESPACE = "bookinfo"


class World(NamedTuple):
    """A mesh on a cluster, with Bookinfo."""

    cluster: Cluster
    kubelet: Kubelet
    gateway: Process


def injected(manifests: Path) -> str:
    """The manifests with sidecars in their pods."""
    done = subprocess.run(
        [sys.executable, "-m", "meshbus.cli.main", "kube-inject", "-f", str(manifests)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Envoys run as a user of their own, who may not look into the folders of pytest."""
    with tempfile.TemporaryDirectory(prefix="meshbus-bookinfo-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def world(cluster: Cluster, shared_data: Path, folder: Path) -> Iterator[World]:
    install_definitions(cluster)
    for name in (ROOT, NAMESPACE):
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    nats = NatsServer(folder / "nats")
    nats.start()
    with bridge() as address:
        (folder / "values.yaml").write_text("{}\n")
        api = {
            "MESHBUS_CONFIG_API": "127.0.0.1:0",
            "MESHBUS_CONFIG_INJECTION": str(folder / "values.yaml"),
        }
        listen = {"MESHBUS_XDS_GATEWAY_LISTEN": f"{address}:15012"}
        with (
            serving(cluster, nats, "ca", folder / "ca", root=ROOT),
            serving(cluster, nats, "config", folder / "config", root=ROOT, env=api),
            serving(cluster, nats, "discovery", folder / "discovery", root=ROOT),
            serving(
                cluster, nats, "xds-gateway", folder / "gateway", root=ROOT, env=listen
            ) as gateway,
        ):
            gateway.wait_ready()
            kubelet = Kubelet(cluster, NAMESPACE, folder / "pods")
            (folder / "pods").mkdir(mode=0o755)
            source = shared_data / "samples" / "bookinfo" / "platform" / "kube" / "bookinfo.yaml"
            cluster.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=injected(source))
            kubelet.start()
            try:
                cluster.wait(
                    lambda: len(kubelet.pods) == 6 and all(p.ready for p in kubelet.pods.values()),
                    90,
                )
                yield World(cluster, kubelet, gateway)
            finally:
                print(kubelet.problem)
                for path in sorted(folder.glob("**/*log"))[:40]:
                    tail = path.read_text(errors="replace")[-1500:]
                    print(f"--- {path.relative_to(folder)}\n{tail}")
                kubelet.stop()
    nats.kill()


def versions(pod: RunningPod, count: int = 20) -> set[str]:
    """Which versions of reviews answer."""
    found = set()
    for _ in range(count):
        status, body = pod.call("http://reviews:9080/reviews/0")
        found.add(json.loads(body)["version"] if status == 200 else f"{status}: {body[:200]}")
    return found


def test_traffic_goes_through_sidecars(world: World) -> None:
    page = world.kubelet.of("productpage")
    world.cluster.wait(lambda: versions(page, 12) == {"v1", "v2", "v3"}, 60)
    status, body = page.call("http://localhost:9080/productpage?u=normal")
    assert status == 200, body
    assert "An extremely entertaining play by Shakespeare" in body


def test_a_route_applied_by_kubectl_is_in_force(world: World) -> None:
    manifests = """
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v2}}]}]}
"""
    page = world.kubelet.of("productpage")
    world.cluster.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=manifests)
    world.cluster.wait(lambda: versions(page, 8) == {"v2"}, 60)
    path = f"/apis/networking.istio.io/v1/namespaces/{NAMESPACE}/virtualservices/reviews"

    def programmed() -> str:
        conditions = world.cluster.get(path).get("status", {}).get("conditions", [])
        return next((c["message"] for c in conditions if c["type"] == "Programmed"), "")

    world.cluster.wait(lambda: programmed() == "6 of 6 proxies have it", 60)
    said = world.cluster.kubectl(
        "-n", NAMESPACE, "wait", "--for=condition=Programmed", "vs/reviews", "--timeout=30s"
    )
    assert "condition met" in said


def test_mutual_tls_by_the_accounts_of_pods(world: World) -> None:
    strict = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ratings}
spec:
  selector: {matchLabels: {app: ratings}}
  rules: [{from: [{source: {principals: ["cluster.local/ns/bookinfo/sa/bookinfo-reviews"]}}]}]
"""
    world.cluster.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=strict)
    try:
        page, reviews = world.kubelet.of("productpage"), world.kubelet.of("reviews", "v2")
        world.cluster.wait(lambda: page.call("http://ratings:9080/ratings/0")[0] == 403, 60)
        assert reviews.call("http://ratings:9080/ratings/0")[0] == 200
    finally:
        world.cluster.kubectl("-n", NAMESPACE, "delete", "-f", "-", stdin=strict)


class Traffic:
    """Requests without a pause, and what failed."""

    def __init__(self, pod: RunningPod) -> None:
        self.pod = pod
        self.good = 0
        self.failures: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.is_set():
            status, body = self.pod.call("http://reviews:9080/reviews/0")
            if status == 200:
                self.good += 1
            else:
                self.failures.append(f"{status}: {body[:200]}")

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def test_a_rolling_update_loses_no_request(world: World) -> None:
    page = world.kubelet.of("productpage")
    before = world.kubelet.of("reviews", "v2").name
    with Traffic(page) as traffic:
        world.cluster.kubectl("-n", NAMESPACE, "rollout", "restart", "deployment/reviews-v2")
        world.cluster.wait(lambda: before not in world.kubelet.pods, 90)
        seen = traffic.good
        world.cluster.wait(lambda: traffic.good > seen + 5, 30)
    assert world.kubelet.of("reviews", "v2").name != before
    assert traffic.failures == []


def test_without_the_api_server_the_mesh_goes_on(world: World) -> None:
    """Traffic flows, and a proxy that comes back is let in: its token is checked offline."""
    page = world.kubelet.of("productpage")
    with Traffic(page) as traffic:
        world.cluster.kill("kube-apiserver")
        try:
            details = world.kubelet.of("details")
            details.restart_envoy()
            world.cluster.wait(details.probe, 60)
            seen = traffic.good
            deadline = time.monotonic() + 30
            while traffic.good < seen + 10 and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            world.cluster.start_api_server()
    assert traffic.failures == []
    # Back: what was missed comes, and nothing was withdrawn meanwhile.
    world.cluster.kubectl("-n", NAMESPACE, "delete", "virtualservice", "reviews")
    world.cluster.wait(lambda: versions(page, 12) == {"v1", "v2", "v3"}, 60)


def test_the_token_of_a_pod_that_is_gone_is_good_for_nothing(world: World) -> None:
    details = world.kubelet.of("details")
    name = details.name
    world.cluster.kubectl("-n", NAMESPACE, "delete", "pod", name, "--wait=false")
    world.cluster.wait(lambda: name not in world.kubelet.pods, 60)

    def connected() -> str:
        code, text = world.gateway.admin("/debug/xds-gateway/proxies")
        assert code == 200
        return text

    world.cluster.wait(lambda: f"{name}.{NAMESPACE}" not in connected(), 30)
    assert f".{NAMESPACE}" in connected()
