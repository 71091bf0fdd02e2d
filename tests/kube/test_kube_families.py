"""Clusters of each family of addresses: what their API server gives, and traffic by it."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster, Unavailable, running_cluster
from kubelet import can_run
from pods_mesh import EDGE, NAMESPACE, World, pods_mesh, readable_folder
from rows import call, rows_of
from test_kube_chart import helm_program

from meshbus.local.network import host_port

__all__ = ["helm_program"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(bool(can_run()), reason=can_run()),
]
FAMILIES = {"ipv4": ("IPv4",), "ipv6": ("IPv6",), "both": ("IPv4", "IPv6")}
APPS = ("details", "productpage")


def documents_of(source: Path) -> list[dict[str, Any]]:
    """Two services of Bookinfo and a gateway, with Services of all families that there are."""
    found = [d for d in (*yaml.safe_load_all(source.read_text()), *EDGE) if d]
    wanted = {"edge", *(f"{before}{app}" for app in APPS for before in ("", "bookinfo-"))}
    wanted |= {f"{app}-v1" for app in APPS}
    chosen = [document for document in found if document["metadata"]["name"] in wanted]
    return [
        {**one, "spec": {**one["spec"], "ipFamilyPolicy": "PreferDualStack"}}
        if one["kind"] == "Service"
        else one
        for one in chosen
    ]


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def family_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    try:
        with running_cluster(families=request.param) as running:
            yield running
    except Unavailable as error:
        pytest.skip(f"no Kubernetes API server: {error}")


@pytest.fixture(scope="module")
def world(family_cluster: Cluster, helm_program: str, shared_data: Path) -> Iterator[World]:
    source = shared_data / "samples" / "bookinfo" / "platform" / "kube" / "bookinfo.yaml"
    with readable_folder() as folder, pods_mesh(family_cluster, helm_program, folder) as running:
        running.begin(documents_of(source), len(APPS) + 1)
        yield running


def kinds(addresses: list[str]) -> tuple[str, ...]:
    return tuple("IPv6" if ":" in address else "IPv4" for address in addresses)


def get(address: str, port: int, path: str, **headers: str) -> int:
    """The status of a request from outside the mesh; 0: there was no answer."""
    asked = urllib.request.Request(f"http://{host_port(address, port)}{path}", headers=headers)
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


async def test_rows_have_the_addresses_that_the_cluster_gives(world: World) -> None:
    cluster, families = world.cluster, world.cluster.families
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
    label = f"{slices}?labelSelector=kubernetes.io/service-name%3Ddetails"

    def types() -> set[str]:
        return {one["addressType"] for one in cluster.get(label)["items"]}

    await call(cluster.wait, lambda: types() == set(families), 30)
    pod = world.kubelet.of("details")
    async with rows_of(world.nats) as rows:
        await rows.until(lambda: rows.service(NAMESPACE, "details"))
        found = rows.service(NAMESPACE, "details")
        assert found is not None
        assert kinds(found.addresses) == families
        # One pod is one endpoint, in however many slices it is.
        await rows.until(
            lambda: (
                [one.addresses for one in rows.endpoints(NAMESPACE, "details")] == [pod.addresses]
            )
        )
        instance = rows.workload(NAMESPACE, pod.name)
        assert instance is not None
        assert instance.addresses == pod.addresses
        assert instance.dual_stack == (len(families) == 2)


def test_pods_answer_their_kubelet_and_who_reads_metrics(world: World) -> None:
    for app in (*APPS, "edge"):
        pod = world.kubelet.of(app)
        for port, path in (
            (15021, "/healthz/ready"),
            (15020, "/stats/prometheus"),
            (15090, "/stats/prometheus"),
        ):
            assert get(pod.address, port, path) == 200, (app, port)
        assert get(pod.address, 15000, "/ready") != 200, "the admin interface is nobody else's"


def test_services_are_called_by_every_family_and_by_mutual_tls_alone(world: World) -> None:
    page, details = world.kubelet.of("productpage"), world.kubelet.of("details")
    strict = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: details}
spec:
  selector: {matchLabels: {app: details}}
  rules: [{from: [{source: {principals: ["cluster.local/ns/bookinfo/sa/bookinfo-productpage"]}}]}]
"""
    kubectl = world.cluster.kubectl
    for address in details.addresses:
        # Plain text is taken, once the application listens.
        world.cluster.wait(lambda a=address: get(a, 9080, "/details/0") == 200, 60)
        # A pod by its own address, not by its Service.
        assert page.call(f"http://{host_port(address, 9080)}/details/0")[0] == 200, address
    url = "http://details:9080/details/0"
    for family in world.cluster.families:
        world.cluster.wait(lambda f=family: page.call(url, f)[0] == 200, 60)
    kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=strict)
    try:
        for address in details.addresses:
            world.cluster.wait(lambda a=address: get(a, 9080, "/details/0") == 0, 60)
        for family in world.cluster.families:
            status, body = page.call(url, family)
            assert status == 200, (family, body)
    finally:
        kubectl("-n", NAMESPACE, "delete", "-f", "-", stdin=strict)


def test_a_gateway_is_reached_by_every_family(world: World) -> None:
    manifests = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge}
spec:
  hosts: ["*"]
  gateways: [edge]
  http: [{route: [{destination: {host: details, port: {number: 9080}}}]}]
"""
    kubectl, edge = world.cluster.kubectl, world.kubelet.of("edge")
    kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=manifests)
    try:
        for address in edge.addresses:
            world.cluster.wait(lambda a=address: get(a, 8080, "/details/0") == 200, 60)
        page, url = world.kubelet.of("productpage"), "http://edge/details/0"
        for family in world.cluster.families:
            world.cluster.wait(lambda f=family: page.call(url, f)[0] == 200, 60)
    finally:
        kubectl("-n", NAMESPACE, "delete", "-f", "-", stdin=manifests)


def test_the_mesh_heals_after_its_api_server_was_away(world: World) -> None:
    """Reached again by the family of its address."""
    page = world.kubelet.of("productpage")
    world.cluster.wait(lambda: page.call("http://details:9080/details/0")[0] == 200, 60)
    world.cluster.kill("kube-apiserver")
    try:
        assert page.call("http://details:9080/details/0")[0] == 200
    finally:
        world.cluster.start_api_server()
    before = world.kubelet.of("details").name
    world.cluster.kubectl("-n", NAMESPACE, "delete", "pod", before, "--wait=false")
    world.cluster.wait(lambda: before not in world.kubelet.pods, 60)
    world.cluster.wait(lambda: page.call("http://details:9080/details/0")[0] == 200, 60)
