"""Ingress objects of a real API server: which are ours, their Secrets, their addresses."""

from collections.abc import Iterator
from typing import Any

import pytest
from cluster import Cluster
from rows import call, rows_of
from test_kube_config import Mesh, key_of, mesh, settled, tenant, virtual_service

__all__ = ["mesh"]
pytestmark = pytest.mark.slow


@pytest.fixture
def ingress_class(cluster: Cluster, namespace: str) -> Iterator[str]:
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IngressClass",
        "metadata": {"name": f"class-{namespace}"},
        "spec": {"controller": "istio.io/ingress-controller"},
    }
    cluster.apply(document)
    yield document["metadata"]["name"]  # type: ignore[index]
    cluster.delete(document)


def ingress(
    namespace: str, name: str, class_name: str, host: str = "shop.example.com"
) -> dict[str, Any]:
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "ingressClassName": class_name,
            "tls": [{"hosts": [host], "secretName": f"{name}-cert"}],
            "rules": [
                {
                    "host": host,
                    "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
                }
            ],
        },
    }


def secret(namespace: str, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/tls",
        "data": {"tls.crt": "Zm9v", "tls.key": "YmFy"},
    }


def balancer(namespace: str, name: str = "istio-ingressgateway") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "LoadBalancer",
            "externalIPs": ["198.51.100.9"],
            "selector": {"istio": "ingressgateway"},
            "ports": [{"name": "http", "port": 80}],
        },
    }


def addressed(cluster: Cluster, document: dict[str, Any], *addresses: dict[str, str]) -> None:
    """What a cloud's controller does."""
    cluster.request(
        "PATCH",
        f"{cluster.path_of(document)}/status",
        {"status": {"loadBalancer": {"ingress": list(addresses)}}},
        content_type="application/merge-patch+json",
    )


def addresses(cluster: Cluster, document: dict[str, Any]) -> list[dict[str, str]]:
    status = cluster.get(cluster.path_of(document)).get("status", {})
    found = status.get("loadBalancer", {}).get("ingress", [])
    return [{k: v for k, v in one.items() if k in ("ip", "hostname")} for one in found]


async def test_ingresses_come_into_force_and_say_where(mesh: Mesh, ingress_class: str) -> None:
    cluster, root = mesh.cluster, mesh.root
    front = balancer(root)
    ours, theirs = ingress(root, "ours", ingress_class), ingress(root, "theirs", "someone-else")
    async with rows_of(mesh.nats) as rows:
        for document in (front, ours, theirs, secret(root, "ours-cert"), secret(root, "other")):
            await call(cluster.apply, document)
        await call(addressed, cluster, theirs, {"ip": "192.0.2.77"})
        await rows.until(lambda: rows.mirror.world.get(key_of(root, "ours", "ingresses")))
        await rows.until(lambda: rows.mirror.world.get(key_of("", ingress_class, "ingressclasses")))
        # Its certificate is followed, by its name; contents stay off the bus.
        await rows.until(lambda: rows.mirror.world.get(key_of(root, "ours-cert", "secrets")))
        assert "Zm9v" not in repr(rows.mirror.world.get(key_of(root, "ours-cert", "secrets")))
        assert rows.mirror.world.get(key_of(root, "other", "secrets")) is None

        outside = {"ip": "198.51.100.9"}
        await call(cluster.wait, lambda: addresses(cluster, ours) == [outside], 30)
        name = {"hostname": "lb.example.net"}
        await call(addressed, cluster, front, {"ip": "203.0.113.5"}, name)
        expected = [outside, {"ip": "203.0.113.5"}, name]
        await call(cluster.wait, lambda: addresses(cluster, ours) == expected, 30)
        # A status is not a change, and what another controller said stays.
        sequence = rows.mirror.world.entry(key_of(root, "ours", "ingresses")).sequence
        written = (await call(cluster.get, cluster.path_of(ours)))["metadata"]["resourceVersion"]
        marker = virtual_service(root, "later")
        await call(cluster.apply, marker)
        await settled(rows, cluster, marker, "Accepted")
        assert rows.mirror.world.entry(key_of(root, "ours", "ingresses")).sequence == sequence
        again = (await call(cluster.get, cluster.path_of(ours)))["metadata"]["resourceVersion"]
        assert again == written
        assert await call(addresses, cluster, theirs) == [{"ip": "192.0.2.77"}]

        # Another Service, by the mesh config.
        elsewhere = balancer(root, "edge")
        elsewhere["spec"]["externalIPs"] = ["198.51.100.20"]
        await call(cluster.apply, elsewhere)
        settings = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": root},
            "data": {"mesh": "ingressService: edge"},
        }
        await call(cluster.apply, settings)
        await call(cluster.wait, lambda: addresses(cluster, ours) == [{"ip": "198.51.100.20"}], 30)
        await call(cluster.delete, ours)
        await rows.until(lambda: rows.mirror.world.get(key_of(root, "ours", "ingresses")) is None)
        await rows.until(
            lambda: rows.mirror.world.get(key_of(root, "ours-cert", "secrets")) is None
        )


async def test_an_ingress_takes_no_hosts_of_another_tenant(mesh: Mesh, ingress_class: str) -> None:
    cluster, root = mesh.cluster, mesh.root
    owner = tenant(f"shop-{root}", f"shop-{root}", ["*.example.com"])
    try:
        async with rows_of(mesh.nats) as rows:
            await call(cluster.apply, owner)
            await rows.until(lambda: rows.mirror.world.all("cfg.tenants"))
            await call(cluster.apply, ingress(root, "thief", ingress_class))
            await call(cluster.apply, ingress(root, "own", ingress_class, host="own.example.org"))
            await rows.until(lambda: rows.mirror.world.get(key_of(root, "own", "ingresses")))
            assert rows.mirror.world.get(key_of(root, "thief", "ingresses")) is None
    finally:
        cluster.delete(owner)
