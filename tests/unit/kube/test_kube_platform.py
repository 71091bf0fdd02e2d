"""Objects of a cluster, trimmed: what stays, and what it costs."""

import json
import tracemalloc

from meshbus.kube.platform import read_node, read_pod, read_service, read_slice


def pod(number: int) -> bytes:
    """As an API server sends it: a Deployment's pod with a sidecar, and what nobody reads."""
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"reviews-v1-6b9f7d5c4d-{number:05}",
            "namespace": "bookinfo",
            "uid": f"0d1f9f0e-7d3c-4f6e-9a55-0000000{number:05}",
            "resourceVersion": str(1000 + number),
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"app": "reviews", "version": "v1", "pod-template-hash": "6b9f7d5c4d"},
            "annotations": {
                "sidecar.istio.io/status": "x" * 400,
                "kubectl.kubernetes.io/restartedAt": "now",
                "proxy.istio.io/config": "concurrency: 1",
            },
            "ownerReferences": [
                {"kind": "ReplicaSet", "name": "reviews-v1-6b9f7d5c4d", "controller": True}
            ],
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"x": "y" * 2000}}}],
        },
        "spec": {
            "nodeName": f"node-{number % 50}",
            "serviceAccountName": "bookinfo-reviews",
            "containers": [
                {
                    "name": "reviews",
                    "image": "r",
                    "ports": [{"containerPort": 9080, "name": "http"}],
                },
                {"name": "istio-proxy", "image": "p", "env": [{"name": "A", "value": "b" * 1000}]},
            ],
        },
        "status": {
            "phase": "Running",
            "podIP": f"10.{number // 65536}.{number // 256 % 256}.{number % 256}",
            "podIPs": [{"ip": f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"}],
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True"},
            ],
        },
    }
    return json.dumps(document).encode()


def test_a_pod_keeps_what_the_mesh_needs() -> None:
    row = read_pod(pod(7))
    assert (row.namespace, row.name) == ("bookinfo", "reviews-v1-6b9f7d5c4d-00007")
    assert row.labels["app"] == "reviews"
    assert row.annotations == {
        "sidecar.istio.io/status": "",
        "proxy.istio.io/config": "concurrency: 1",
    }
    assert row.owner_references == [{"kind": "ReplicaSet", "name": "reviews-v1-6b9f7d5c4d"}]
    assert row.spec["nodeName"] == "node-7"
    assert row.spec["status"]["podIP"] == "10.0.0.7"
    assert row.spec["status"]["conditions"] == [{"type": "Ready", "status": "True"}]
    assert [c["name"] for c in row.spec["containers"]] == ["", "istio-proxy"]


def test_a_pod_costs_less_than_a_kilobyte() -> None:
    bodies = [pod(number) for number in range(2000)]
    read_pod(bodies[0])
    tracemalloc.start()
    rows = [read_pod(body) for body in bodies]
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len({row.name for row in rows}) == 2000
    assert used / len(rows) < 1000


def test_pods_of_a_deployment_share_what_is_alike() -> None:
    first, second = read_pod(pod(1)), read_pod(pod(2))
    assert first.labels is second.labels
    assert first.spec["containers"] is second.spec["containers"]
    assert first.spec["status"]["podIP"] != second.spec["status"]["podIP"]


def test_a_node_is_where_it_is() -> None:
    body = {
        "metadata": {
            "name": "a",
            "generation": 4,
            "labels": {"topology.kubernetes.io/zone": "z", "kubernetes.io/hostname": "a"},
            "annotations": {"x.istio.io/y": "z"},
        },
        "status": {"images": ["x" * 100]},
    }
    row = read_node(json.dumps(body).encode())
    assert row.labels == body["metadata"]["labels"]
    assert (row.annotations, row.spec) == ({}, {})
    places = [("InternalIP", "10.0.0.1"), ("ExternalIP", "192.0.2.1"), ("Hostname", "a")]
    body["status"] = {"addresses": [{"type": t, "address": a} for t, a in places]}
    row = read_node(json.dumps(body).encode())
    assert row.spec == {"status": {"addresses": [{"type": "ExternalIP", "address": "192.0.2.1"}]}}


def test_a_service_says_its_ports_at_nodes() -> None:
    ports = [{"port": 443, "nodePort": 30443}, {"port": 80}]
    body = {"metadata": {"name": "a"}, "spec": {"type": "NodePort", "ports": ports}}
    assert read_service(json.dumps(body).encode()).spec["ports"] == ports


def test_a_service_says_where_its_load_balancer_is() -> None:
    body = {
        "metadata": {"name": "front", "namespace": "default"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "targetPort": "http"}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
    }
    row = read_service(json.dumps(body).encode())
    assert row.spec["ingress"] == [{"ip": "192.0.2.1"}]
    assert row.spec["ports"] == [{"port": 80, "targetPort": "http"}]


def test_a_slice_keeps_the_label_of_its_service() -> None:
    body = {
        "metadata": {
            "name": "a-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "a", "x": "y"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": False}, "zone": "z"}],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
    }
    row = read_slice(json.dumps(body).encode())
    assert row.labels == {"kubernetes.io/service-name": "a"}
    assert row.spec["endpoints"] == [
        {"addresses": ["10.0.0.1"], "conditions": {"ready": False}, "zone": "z"}
    ]
