"""Bookinfo on a real API server: applied by kubectl, carried by real Envoys as injected: by the
chart's webhooks when the API server makes the pods, one of them by `meshbus kube-inject` before."""

import base64
import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster
from kubelet import RunningPod, can_run, second_address
from pods_mesh import (
    EDGE,
    NAMESPACE,
    ROOT,
    World,
    injects,
    pods_mesh,
    readable_folder,
)
from test_kube_chart import helm_program, sets
from webhooks import injection_values, injector_webhooks, webhook_of

from meshbus.cli.cluster_keys import authority, leaf
from services import Process, serving

__all__ = ["helm_program"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(bool(can_run()), reason=can_run()),
]


def injected(document: dict[str, Any], values: Path) -> dict[str, Any]:
    """The document with sidecars in its pods, by the command."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "meshbus.cli.main", "kube-inject"),
            *("-f", "-", "--values", str(values)),
        ],
        input=yaml.safe_dump(document),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = next(yaml.safe_load_all(done.stdout))
    return found


def documents_of(source: Path, values: Path) -> list[dict[str, Any]]:
    """Bookinfo, one of its workloads injected by hand, and a gateway."""
    documents = [d for d in yaml.safe_load_all(source.read_text()) if d]
    return [
        injected(d, values) if d["metadata"]["name"] == "ratings-v1" else d
        for d in (*documents, *EDGE)
    ]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with readable_folder() as made:
        yield made


@pytest.fixture(scope="module")
def world(cluster: Cluster, helm_program: str, shared_data: Path, folder: Path) -> Iterator[World]:
    with pods_mesh(cluster, helm_program, folder) as running:
        source = shared_data / "samples" / "bookinfo" / "platform" / "kube" / "bookinfo.yaml"
        running.begin(documents_of(source, folder / "values.yaml"), 7)
        yield running


def restart(cluster: Cluster, deployment: str) -> None:
    """As `kubectl rollout restart`, which refuses a second one within a second."""
    notes = {"kubectl.kubernetes.io/restartedAt": str(time.time_ns())}
    patch = {"spec": {"template": {"metadata": {"annotations": notes}}}}
    cluster.kubectl("-n", NAMESPACE, "patch", "deployment", deployment, "-p", json.dumps(patch))


def versions(pod: RunningPod, count: int = 20) -> set[str]:
    """Which versions of reviews answer."""
    found = set()
    for _ in range(count):
        status, body = pod.call("http://reviews:9080/reviews/0")
        found.add(json.loads(body)["version"] if status == 200 else f"{status}: {body[:200]}")
    return found


def test_pods_are_injected_as_the_api_server_makes_them(world: World) -> None:
    """Deployments say nothing of a proxy, but the one that was injected by hand: its pod is as that
    says."""
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
    templates = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in world.cluster.get(path)["items"]
    }
    for name in ("details", "productpage", "reviews"):
        assert "initContainers" not in templates[f"{name}-v1"]
        spec = world.kubelet.of(name).pod["spec"]
        assert [one["name"] for one in spec["initContainers"]] == ["istio-init", "istio-proxy"]
    # What was injected is not injected again beside it.
    by_hand = [one["name"] for one in templates["ratings-v1"]["initContainers"]]
    pod = world.kubelet.of("ratings").pod["spec"]
    assert [one["name"] for one in pod["initContainers"]] == by_hand
    assert [one["name"] for one in pod["containers"]] == ["ratings"]
    gateway = world.kubelet.of("edge").pod["spec"]
    assert "initContainers" not in gateway
    assert gateway["containers"][0]["image"] != "auto"


def test_traffic_goes_through_sidecars(world: World) -> None:
    page = world.kubelet.of("productpage")
    world.cluster.wait(lambda: versions(page, 12) == {"v1", "v2", "v3"}, 60)
    status, body = page.call("http://localhost:9080/productpage?u=normal")
    assert status == 200, body
    assert "An extremely entertaining play by Shakespeare" in body


def test_an_ingress_with_its_certificate_is_carried_by_an_injected_gateway(
    world: World, folder: Path
) -> None:
    cluster, edge = world.cluster, world.kubelet.of("edge")
    root, key = authority()
    certificate, own = leaf(root, key, ["books.example.com"])
    (folder / "books.pem").write_text(root)
    data = {"tls.crt": certificate, "tls.key": own}
    backend = {"service": {"name": "productpage", "port": {"number": 9080}}}
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IngressClass",
            "metadata": {"name": "mesh"},
            "spec": {"controller": "istio.io/ingress-controller"},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "books-cert", "namespace": NAMESPACE},
            "type": "kubernetes.io/tls",
            "data": {name: base64.b64encode(text.encode()).decode() for name, text in data.items()},
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": "books", "namespace": NAMESPACE},
            "spec": {
                "ingressClassName": "mesh",
                "tls": [{"hosts": ["books.example.com"], "secretName": "books-cert"}],
                "rules": [
                    {
                        "host": "books.example.com",
                        "http": {
                            "paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]
                        },
                    }
                ],
            },
        },
    ]
    trust = ssl.create_default_context(cafile=str(folder / "books.pem"))

    def get(path: str) -> tuple[int, str]:
        with (
            socket.create_connection((edge.address, 8443), timeout=5) as plain,
            trust.wrap_socket(plain, server_hostname="books.example.com") as channel,
        ):
            request = f"GET {path} HTTP/1.1\r\nHost: books.example.com\r\nConnection: close\r\n\r\n"
            channel.sendall(request.encode())
            answer = http.client.HTTPResponse(channel)
            answer.begin()
            return answer.status, answer.read().decode()

    try:
        for document in documents:
            cluster.apply(document)
        cluster.wait(lambda: get("/productpage?u=normal")[0] == 200, 60)
        assert "The Comedy of Errors" in get("/productpage?u=normal")[1]
        # A renewed certificate is shown without a new listener, and without a restart.
        root, key = authority()
        certificate, own = leaf(root, key, ["books.example.com"])
        data = {"tls.crt": certificate, "tls.key": own}
        documents[1]["data"] = {n: base64.b64encode(t.encode()).decode() for n, t in data.items()}
        cluster.apply(documents[1])
        (folder / "books.pem").write_text(root)
        trust = ssl.create_default_context(cafile=str(folder / "books.pem"))
        cluster.wait(lambda: get("/productpage?u=normal")[0] == 200, 60)
    finally:
        for document in documents:
            cluster.delete(document)


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

    world.cluster.wait(lambda: programmed() == "7 of 7 proxies have it", 60)
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
        restart(world.cluster, "reviews-v2")
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


def test_a_canary_takes_pods_by_their_label(world: World, helm_program: str, folder: Path) -> None:
    """A second revision beside the first, on its bus: pods of a namespace that is labelled with its
    tag are its own once they start anew. Both talk to each other; each acts on its own objects."""
    cluster, kubelet = world.cluster, world.kubelet
    values = folder / "values-blue.yaml"
    flags = sets("revision=blue", "revisionTags={canary}")
    values.write_text(injection_values(helm_program, ROOT, *flags))
    api = {
        "MESHBUS_CONFIG_API": "127.0.0.1:0",
        "MESHBUS_CONFIG_WEBHOOKS": "127.0.0.1:0",
        "MESHBUS_CONFIG_WEBHOOK_NAMES": "127.0.0.1",
        "MESHBUS_CONFIG_INJECTION": str(values),
    }
    teapot = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings-of-canary, labels: {istio.io/rev: canary}}
spec:
  hosts: [ratings]
  http:
  - fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: ratings}}]
"""

    def label(*labels: str) -> None:
        cluster.kubectl("label", "namespace", NAMESPACE, "--overwrite", *labels)

    def connected(gateway: Process, pod: RunningPod) -> bool:
        return f"{pod.name}.{NAMESPACE}" in gateway.admin("/debug/xds-gateway/proxies")[1]

    def restarted(before: str) -> bool:
        return before not in kubelet.pods and any(
            pod.ready for name, pod in kubelet.pods.items() if name.startswith("details-")
        )

    with contextlib.ExitStack() as stack:
        address = stack.enter_context(second_address())
        kubelet.gateways["-blue"] = address
        listen = {
            "MESHBUS_XDS_GATEWAY_LISTEN": f"{address}:15012",
            "MESHBUS_XDS_GATEWAY_NAMES": "xds-gateway-blue.istio-system.svc",
        }
        serve = {"root": ROOT, "revision": "blue"}
        config = stack.enter_context(
            serving(
                cluster,
                world.nats,
                "config",
                folder / "config-blue",
                env=api,
                pod="blue-0",
                **serve,
            )
        )
        gateway = stack.enter_context(
            serving(
                cluster, world.nats, "xds-gateway", folder / "gateway-blue", env=listen,
                pod="gateway-blue-0", **serve,
            )
        )  # fmt: skip
        config.wait_ready()
        gateway.wait_ready()
        for document in injector_webhooks(
            helm_program, ROOT, webhook_of(folder / "config-blue"), *flags
        ):
            cluster.apply(document)
            stack.callback(cluster.delete, document)
        label("istio-injection-", "istio.io/rev=canary")
        stack.callback(label, "istio-injection=enabled", "istio.io/rev-")
        cluster.wait(lambda: injects(cluster, "blue"), 30)
        before = kubelet.of("details").name
        restart(cluster, "details-v1")
        cluster.wait(lambda: restarted(before), 90)

        page, details = kubelet.of("productpage"), kubelet.of("details")
        assert connected(gateway, details)
        assert not connected(world.gateway, details)
        assert connected(world.gateway, page)
        assert not connected(gateway, page)
        # Sidecars of both revisions talk to each other.
        cluster.wait(lambda: page.call("http://details:9080/details/0")[0] == 200, 60)
        cluster.wait(lambda: details.call("http://ratings:9080/ratings/0")[0] == 200, 60)

        cluster.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=teapot)
        cluster.wait(lambda: details.call("http://ratings:9080/ratings/0")[0] == 418, 60)
        assert page.call("http://ratings:9080/ratings/0")[0] == 200
        # Back, by the label.
        label("istio-injection=enabled", "istio.io/rev-")
        before = details.name
        cluster.wait(lambda: injects(cluster), 30)
        restart(cluster, "details-v1")
        cluster.wait(lambda: restarted(before), 90)
        details = kubelet.of("details")
        assert connected(world.gateway, details)
        cluster.wait(lambda: details.call("http://ratings:9080/ratings/0")[0] == 200, 60)
        cluster.kubectl("-n", NAMESPACE, "delete", "-f", "-", stdin=teapot)
