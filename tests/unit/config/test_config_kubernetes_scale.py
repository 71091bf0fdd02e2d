"""Work for a cluster's objects follows the change, not how many objects there are."""

from types import SimpleNamespace
from typing import Any

import pytest
from meshbus_config.kubernetes.following import Following
from meshbus_config.kubernetes.held_objects import HeldObjects
from meshbus_config.kubernetes.named_credentials import NamedCredentials
from meshbus_config.kubernetes.objects import Judged
from meshbus_config.kubernetes.statuses import StatusWriting
from meshbus_config.kubernetes.tenants import Tenants
from meshbus_config.references import References
from meshbus_config.status_board import StatusBoard
from prometheus_client import CollectorRegistry

from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, WorkloadInstance
from meshbus.model.status import GatewayReport
from meshbus.model.world import Put, World

N = 300


def key_of(plural: str, name: str, namespace: str = "default") -> Key:
    return Key("c", "cfg", plural, namespace, name)


def judged_of(kind: str, name: str, namespace: str = "default", **spec: Any) -> Judged:
    group = "meshbus.io/v1alpha1" if kind == "Tenant" else "networking.istio.io/v1"
    created = float(name.rpartition("-")[2]) if "-" in name else 0.0
    row = ConfigObject(group, kind, namespace, name, name, 1, created, spec=spec)
    return Judged(row, (), (), "kubectl", "1", {})


class Cluster:
    """Objects that are followed and in force; what is written to them comes back."""

    def __init__(self) -> None:
        kubernetes = SimpleNamespace(client=None, revision="default", namespaces=())
        self.following = Following(kubernetes, "c", lambda: None, CollectorRegistry())  # type: ignore[arg-type]
        self.world = World()
        self.references = References()
        self.board = StatusBoard("c")
        self.lease = SimpleNamespace(held=True)
        self.tenants = Tenants(self.following)
        self.writing = StatusWriting(
            self,  # type: ignore[arg-type]
            self.lease,  # type: ignore[arg-type]
            self.following,
            SimpleNamespace(space=self),  # type: ignore[arg-type]
            self.board,
            self.references,
            SimpleNamespace(),  # type: ignore[arg-type]
            cluster="c",
            now=lambda: 0.0,
            tenants=self.tenants,
        )
        self.written: list[str] = []

    def put(self, key: Key, judged: Judged) -> None:
        self.following.objects.put(key, judged)
        self.following.touch(key)
        self.world, touched = self.world.apply([Put(key, self.world.sequence + 1, 0.0, judged.row)])
        self.references.changed(self.world, touched)
        self.writing.world_changed(touched)

    def report(self, converged: int) -> None:
        self.board.gateways["g"] = GatewayReport(
            pod="g", sequence=converged, proxies=2, converged=converged
        )

    async def send(self, method: str, path: str, body: dict[str, Any], content_type: str) -> None:
        """What the API server would be asked, and what it would tell."""
        name = path.split("/")[-2]
        key = next(key for key in self.following.objects if key.name == name)
        told = self.following.objects[key]._replace(status=body["status"])
        self.following.objects.put(key, told)
        self.following.touch(key)
        self.written.append(name)

    async def settle(self) -> int:
        """Looks until nothing more is written."""
        before = self.writing.looks
        while True:
            count = len(self.written)
            await self.writing.write_all()
            self.writing._led = True
            if len(self.written) == count:
                return self.writing.looks - before


@pytest.fixture
def cluster() -> Cluster:
    held = Cluster()
    for number in range(N):
        key = key_of("virtualservices", f"v-{number}")
        held.put(key, judged_of("VirtualService", key.name, hosts=[f"h{number}.example.com"]))
    held.report(converged=N)
    return held


async def test_a_report_and_a_change_look_at_what_they_concern(cluster: Cluster) -> None:
    await cluster.settle()
    assert len(cluster.written) == N
    cluster.report(converged=N)
    assert await cluster.settle() == 0

    changed = key_of("virtualservices", "v-7")
    cluster.put(changed, judged_of("VirtualService", "v-7", hosts=["other.example.com"]))
    assert await cluster.settle() <= 3
    assert cluster.written[N:] == ["v-7"]
    # Until all proxies have it, it alone is looked at; then it is said, and it is no more.
    assert await cluster.settle() == 1
    cluster.report(converged=cluster.world.sequence)
    assert await cluster.settle() <= 3
    assert cluster.written[N:] == ["v-7", "v-7"]
    assert await cluster.settle() == 0


async def test_who_begins_to_lead_looks_at_everything(cluster: Cluster) -> None:
    await cluster.settle()
    cluster.writing._led = False
    assert await cluster.settle() == N


async def test_what_comes_to_be_there_is_said_of_who_names_it(cluster: Cluster) -> None:
    await cluster.settle()
    route = [{"route": [{"destination": {"host": "late.example.com"}}]}]
    naming = judged_of("VirtualService", "v-9", hosts=["a.example.com"], http=route)
    cluster.put(key_of("virtualservices", "v-9"), naming)
    await cluster.settle()
    key = key_of("virtualservices", "v-9")
    conditions = {c["type"]: c["status"] for c in held_status(cluster, key)}
    assert conditions["ResolvedRefs"] == "False"
    cluster.report(converged=cluster.world.sequence)
    entry = judged_of("ServiceEntry", "late", hosts=["late.example.com"])
    cluster.put(key_of("serviceentries", "late"), entry)
    assert await cluster.settle() <= 8
    conditions = {c["type"]: c["status"] for c in held_status(cluster, key)}
    assert conditions["ResolvedRefs"] == "True"


async def test_a_gateway_without_pods_is_told_until_one_comes(cluster: Cluster) -> None:
    key = key_of("gateways", "g")
    cluster.put(key, judged_of("Gateway", "g", selector={"istio": "front"}))
    await cluster.settle()
    (told,) = (c for c in held_status(cluster, key) if c["type"] == "ResolvedRefs")
    assert (told["status"], told["reason"]) == ("False", "ReferenceNotFound")
    assert "istio=front" in told["message"]
    pod = WorkloadInstance(
        "front-0", "default", "front", "front", {"istio": "front"}, ["10.0.0.1"], gateway=True
    )
    put = Put(Key("c", "reg", "workloads", "default", "front-0"), 9999, 0.0, pod)
    cluster.world, touched = cluster.world.apply([put])
    cluster.references.changed(cluster.world, touched)
    cluster.writing.world_changed(touched)
    assert await cluster.settle() <= 3
    (told,) = (c for c in held_status(cluster, key) if c["type"] == "ResolvedRefs")
    assert told["status"] == "True"


def held_status(cluster: Cluster, key: Key) -> list[dict[str, str]]:
    conditions: list[dict[str, str]] = cluster.following.objects[key].status["conditions"]
    return conditions


def test_a_place_that_becomes_free_touches_who_gets_it() -> None:
    cluster = Cluster()
    quota = judged_of("Tenant", "a", "", namespaces=["team"], quota={"objects": 2})
    cluster.put(key_of("tenants", "a", ""), quota)
    for number in range(4):
        key = key_of("virtualservices", f"v-{number}", "team")
        cluster.put(key, judged_of("VirtualService", key.name, "team", hosts=[f"h{number}"]))
        other = key_of("virtualservices", f"o-{number}", "elsewhere")
        cluster.put(other, judged_of("VirtualService", other.name, "elsewhere", hosts=["x"]))
    inbox = cluster.following.inbox()
    cluster.tenants.settle()
    refused = {
        key.name
        for key, judged in cluster.following.objects.items()
        if cluster.tenants.refusal(judged)
    }
    assert refused == {"v-2", "v-3"}
    inbox.take()

    gone = key_of("virtualservices", "v-0", "team")
    cluster.following.objects.remove(gone)
    cluster.following.touch(gone)
    inbox.take()
    cluster.tenants.settle()
    assert {key.name for key in inbox.take()} == {"v-2"}
    cluster.tenants.settle()
    assert inbox.take() == set()

    # Labels of namespaces and the tenants themselves may concern anybody.
    cluster.following.labels_moved = True
    cluster.tenants.settle()
    assert inbox.take() == set(cluster.following.objects)
    cluster.tenants.settle()
    assert inbox.take() == set()


def test_secrets_are_looked_for_in_what_has_changed() -> None:
    named = NamedCredentials()
    front = {"servers": [{"tls": {"mode": "SIMPLE", "credentialName": "front"}}]}
    for name in ("a", "b"):
        named.put(key_of("gateways", name), judged_of("Gateway", name, **front).row)
    assert named.take_moved() == [("secrets", "front"), ("secrets", "front-cacert")]
    named.put(key_of("virtualservices", "v"), judged_of("VirtualService", "v", hosts=["h"]).row)
    named.put(key_of("gateways", "a"), None)
    assert named.take_moved() is None
    named.put(key_of("gateways", "b"), judged_of("Gateway", "b", servers=[]).row)
    assert named.take_moved() == []


def test_config_maps_are_named_by_their_scheme() -> None:
    named = NamedCredentials()
    tls = {"mode": "SIMPLE", "credentialName": "configmap://default/trust"}
    rule = judged_of("DestinationRule", "r", host="h", trafficPolicy={"tls": tls})
    named.put(key_of("destinationrules", "r"), rule.row)
    server = {"tls": {"caCertCredentialName": "clients-cacert"}}
    named.put(key_of("gateways", "g"), judged_of("Gateway", "g", servers=[server]).row)
    assert named.take_moved() == [
        ("configmaps", "trust"),
        ("secrets", "clients"),
        ("secrets", "clients-cacert"),
        ("secrets", "clients-cacert-cacert"),
    ]


def test_held_objects_forget_what_is_gone() -> None:
    held = HeldObjects()
    key = key_of("gateways", "a")
    held.put(key, judged_of("Gateway", "a"))
    assert list(held.of_table("cfg.gateways")) == list(held.of_namespace("default")) == [key]
    assert held.remove(key)
    assert not held.remove(key)
    assert (len(held), list(held.namespaces()), dict(held.of_table("cfg.gateways"))) == (0, [], {})
