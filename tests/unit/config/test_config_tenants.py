"""Tenants at the API of a mesh without Kubernetes."""

from typing import Any

from config_harness import Api


def tenant(name: str, hosts: list[str], **quota: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"namespaces": [name], "hosts": hosts}
    if quota:
        spec["quota"] = quota
    return {
        "apiVersion": "meshbus.io/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": name},
        "spec": spec,
    }


def virtual_service(namespace: str, name: str, host: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": "a"}}]}]},
    }


def namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


async def test_hosts_and_quotas_of_tenants(api: Api) -> None:
    made = await api.apply(
        namespace("shop"),
        namespace("blog"),
        tenant("shop", ["*.shop.example.com"]),
        tenant("blog", ["blog.example.com"], objects=2),
    )
    assert made.status_code == 200, made.text
    stolen = await api.apply(virtual_service("blog", "stolen", "a.shop.example.com"))
    assert stolen.status_code == 422
    assert "belongs to tenant shop" in stolen.text
    own = await api.apply(virtual_service("shop", "own", "a.shop.example.com"))
    assert own.status_code == 200, own.text
    for number in range(2):
        assert (
            await api.apply(virtual_service("blog", f"vs-{number}", "blog.example.com"))
        ).status_code == 200
    third = await api.apply(virtual_service("blog", "vs-2", "blog.example.com"))
    assert third.status_code == 422
    assert "may have 2 objects" in third.text
    # What is there may be changed, and one gone makes room.
    again = await api.apply(virtual_service("blog", "vs-0", "www.blog.example"))
    assert again.status_code == 200


async def test_one_change_does_not_pass_the_quota(api: Api) -> None:
    await api.apply(namespace("blog"), tenant("blog", [], byKind={"VirtualService": 2}))
    several = [virtual_service("blog", f"vs-{n}", f"h{n}") for n in range(3)]
    answer = await api.apply(*several)
    assert answer.status_code == 422
