"""Without Kubernetes an Ingress says at which addresses it is served, too."""

import asyncio
from typing import Any

MERGE = {"content-type": "application/merge-patch+json"}
INGRESSES = "/apis/networking.k8s.io/v1/namespaces/default/ingresses"
SERVICES = "/api/v1/namespaces/istio-system/services"


def documents(class_name: str) -> list[dict[str, Any]]:
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IngressClass",
            "metadata": {"name": "mesh"},
            "spec": {"controller": "istio.io/ingress-controller"},
        },
        *(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": "istio-system"},
                "spec": {
                    "type": "LoadBalancer",
                    "externalIPs": [address],
                    "ports": [{"name": "http", "port": 80}],
                },
            }
            for name, address in (
                ("istio-ingressgateway", "198.51.100.9"),
                ("edge", "198.51.100.20"),
            )
        ),
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "ingressClassName": class_name,
                "rules": [{"host": "web.example.com", "http": {"paths": [path]}}],
            },
        },
    ]


async def addresses(api: Any) -> list[dict[str, str]]:
    document = (await api.client.get(f"{INGRESSES}/web")).json()
    found: list[dict[str, str]] = (
        document.get("status", {}).get("loadBalancer", {}).get("ingress", [])
    )
    return found


async def until(api: Any, wanted: list[dict[str, str]]) -> None:
    async with asyncio.timeout(30):
        while await addresses(api) != wanted:
            await asyncio.sleep(0.02)


async def test_an_ingress_says_where_it_is_served(api: Any) -> None:
    assert (await api.apply(*documents("mesh"))).status_code == 200
    outside = {"ip": "198.51.100.9"}
    await until(api, [outside])
    told = {"status": {"loadBalancer": {"ingress": [{"hostname": "lb.example.net"}]}}}
    path = f"{SERVICES}/istio-ingressgateway/status"
    assert (await api.client.patch(path, json=told, headers=MERGE)).status_code == 200
    await until(api, [outside, {"hostname": "lb.example.net"}])
    mesh = {
        "apiVersion": "mesh.istio.io/v1alpha1",
        "kind": "MeshConfig",
        "metadata": {"name": "mesh"},
        "spec": {"ingressService": "edge"},
    }
    assert (await api.apply(mesh)).status_code == 200
    await until(api, [{"ip": "198.51.100.20"}])


async def test_one_of_another_class_says_nothing(api: Any) -> None:
    other = {**documents("nginx")[-1], "metadata": {"name": "theirs", "namespace": "default"}}
    assert (await api.apply(*documents("mesh"), other)).status_code == 200
    await until(api, [{"ip": "198.51.100.9"}])
    theirs = (await api.client.get(f"{INGRESSES}/theirs")).json()
    assert "loadBalancer" not in theirs.get("status", {})
