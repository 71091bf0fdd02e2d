"""Tenants: whose hosts, how many objects."""

import pytest

from meshbus.analyze.tenancy import Tenancy, overlap
from meshbus.model.rows import ConfigObject


def tenant(name: str, namespaces: list[str], hosts: list[str], **more: object) -> ConfigObject:
    spec = {"namespaces": namespaces, "hosts": hosts, **more}
    return ConfigObject("meshbus.io/v1alpha1", "Tenant", "", name, name, 1, 0.0, spec=spec)


def virtual_service(namespace: str, name: str, host: str, created: float = 1.0) -> ConfigObject:
    return ConfigObject(
        "networking.istio.io/v1",
        "VirtualService",
        namespace,
        name,
        name,
        1,
        created,
        spec={"hosts": [host]},
    )


@pytest.mark.parametrize(
    ("host", "owned", "both"),
    [
        ("a.example.com", "a.example.com", True),
        ("b.example.com", "a.example.com", False),
        ("a.example.com", "*.example.com", True),
        ("x.a.example.com", "*.example.com", True),
        ("example.com", "*.example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.a.example.com", "*.example.com", True),
        ("*.example.com", "*.a.example.com", True),
        ("*.other.com", "a.example.com", False),
        ("*", "a.example.com", False),
    ],
)
def test_hosts_overlap(host: str, owned: str, both: bool) -> None:
    assert overlap(host, owned) is both


def tenancy(tenants: list[ConfigObject], objects: list[ConfigObject]) -> Tenancy:
    labels = {"team-b": {"tenant": "b"}}
    return Tenancy(
        tenants,
        lambda namespace: labels.get(namespace, {}),
        lambda: sorted({row.namespace for row in objects}),
        lambda namespace: [row for row in objects if row.namespace == namespace],
    )


A = tenant("a", ["team-a"], ["*.a.example.com"])
B = tenant("b", [], ["b.example.com"], namespaceSelector={"matchLabels": {"tenant": "b"}})


def test_hosts_belong_to_their_tenant() -> None:
    rules = tenancy([A, B], [])
    assert rules.refusal(virtual_service("team-a", "x", "shop.a.example.com")) is None
    assert rules.refusal(virtual_service("team-b", "x", "b.example.com")) is None
    stolen = rules.refusal(virtual_service("team-b", "x", "shop.a.example.com"))
    assert stolen is not None
    assert stolen.reason == "HostNotOwned"
    # Who is nobody's tenant may not either, and may name what nobody owns.
    assert rules.refusal(virtual_service("default", "x", "b.example.com")) is not None
    assert rules.refusal(virtual_service("default", "x", "c.example.com")) is None


def test_hosts_of_gateways_are_hosts_too() -> None:
    gateway = ConfigObject(
        "networking.istio.io/v1",
        "Gateway",
        "team-b",
        "front",
        "g",
        1,
        1.0,
        spec={"servers": [{"hosts": ["team-b/x.a.example.com"]}]},
    )
    assert tenancy([A, B], []).refusal(gateway) is not None


def test_the_youngest_are_over_the_quota() -> None:
    limited = tenant("a", ["team-a"], [], quota={"byKind": {"VirtualService": 2}})
    objects = [virtual_service("team-a", f"vs-{n}", f"h{n}", created=float(n)) for n in range(4)]
    rules = tenancy([limited], objects)
    assert [rules.refusal(one) is None for one in objects] == [True, True, False, False]
    new = virtual_service("team-a", "vs-9", "h9")
    refused = rules.refusal_of_new(new)
    assert refused is not None
    assert refused.reason == "QuotaExceeded"
    # One that is there may be changed, and other namespaces are not concerned.
    assert rules.refusal_of_new(objects[0]) is None
    assert rules.refusal_of_new(virtual_service("default", "vs-9", "h9")) is None


def test_objects_that_go_make_room_once_they_are_counted_again() -> None:
    limited = tenant("a", ["team-a"], [], quota={"objects": 1})
    objects = [virtual_service("team-a", f"vs-{n}", f"h{n}", created=float(n)) for n in range(2)]
    rules = tenancy([limited], objects)
    assert rules.over_quota("a") == {("VirtualService", "team-a", "vs-1")}
    del objects[0]
    rules.recount("a")
    assert rules.over_quota("a") == frozenset()
    assert rules.refusal(objects[0]) is None


def test_a_selector_that_says_nothing_chooses_nobody() -> None:
    everyone = tenant("c", [], ["c.example.com"], namespaceSelector={})
    assert tenancy([everyone], []).tenant_of("default") == ""


def test_an_ingress_names_hosts_too() -> None:
    def ingress(spec: dict[str, object]) -> ConfigObject:
        return ConfigObject(
            "networking.k8s.io/v1", "Ingress", "team-b", "x", "x", 1, 1.0, spec=spec
        )

    rules = tenancy([A, B], [])
    assert rules.refusal(ingress({"rules": [{"host": "b.example.com"}, {}]})) is None
    assert rules.refusal(ingress({"rules": [{"host": "shop.a.example.com"}]})) is not None
    assert rules.refusal(ingress({"tls": [{"hosts": ["shop.a.example.com"]}]})) is not None
