"""Reading from a real API server: lists, watches, what happens when they break."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster import AUDIENCE, Cluster

from meshbus.kube.access import from_kubeconfig, in_cluster
from meshbus.kube.client import KubeClient, KubeRefused, object_path
from meshbus.kube.lease import KubeLease
from meshbus.kube.reflector import Name, Reflector, Source
from meshbus.kube.reviews import Access, Reviews
from meshbus.runtime.clock import SystemClock

pytestmark = pytest.mark.slow


class Held:
    """A sink that keeps what it was given, and how often."""

    def __init__(self) -> None:
        self.values: dict[Name, str] = {}
        self.puts: list[Name] = []
        self.deletions: list[Name] = []
        self.bad: dict[Name, str] = {}

    def put(self, name: Name, value: str) -> None:
        self.values[name] = value
        self.puts.append(name)

    def delete(self, name: Name) -> None:
        del self.values[name]
        self.deletions.append(name)

    def malformed(self, name: Name, error: str) -> None:
        self.bad[name] = error


def text_of(body: bytes) -> str:
    """The value `text` of a ConfigMap; what begins with `!` cannot be read."""
    text = str(json.loads(body).get("data", {}).get("text", ""))
    if text.startswith("!"):
        raise ValueError("not a text")
    return text


def config_map(namespace: str, name: str, text: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {"text": text},
    }


async def until(condition: object) -> None:
    """Wait for a condition on this loop."""
    async with asyncio.timeout(60):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def client_of(cluster: Cluster) -> AsyncIterator[KubeClient]:
    client = KubeClient(await from_kubeconfig(str(cluster.kubeconfig)))
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def running(reflector: Reflector[str]) -> AsyncIterator[None]:
    task = asyncio.create_task(reflector.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("streams", [True, False], ids=["watch-list", "pages"])
async def test_a_collection_is_followed(
    cluster: Cluster, namespace: str, streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshbus.kube.reflector.PAGE", 2)
    for index in range(5):
        cluster.apply(config_map(namespace, f"cm-{index}", str(index)))
    async with client_of(cluster) as client:
        sink = Held()
        source = Source(object_path("", "v1", "configmaps", namespace))
        reflector = Reflector(client, source, text_of, sink)
        reflector._streams_lists = streams
        async with running(reflector):
            await reflector.wait_synced()
            assert {f"cm-{i}" for i in range(5)} <= {name for _, name in sink.values}
            await asyncio.to_thread(cluster.apply, config_map(namespace, "cm-1", "one"))
            await until(lambda: sink.values[namespace, "cm-1"] == "one")
            await asyncio.to_thread(cluster.delete, config_map(namespace, "cm-2", ""))
            await until(lambda: (namespace, "cm-2") not in sink.values)
            # One object that cannot be read keeps its last good value, and stops nobody.
            await asyncio.to_thread(cluster.apply, config_map(namespace, "cm-3", "!"))
            await asyncio.to_thread(cluster.apply, config_map(namespace, "cm-4", "four"))
            await until(lambda: sink.values[namespace, "cm-4"] == "four")
            assert sink.bad == {(namespace, "cm-3"): "not a text"}
            assert sink.values[namespace, "cm-3"] == "3"
            assert reflector.counts.malformed.keys() == {(namespace, "cm-3")}


async def test_selectors_choose(cluster: Cluster, namespace: str) -> None:
    cluster.apply(config_map(namespace, "one", "1"))
    cluster.apply(config_map(namespace, "two", "2"))
    async with client_of(cluster) as client:
        sink = Held()
        source = Source(object_path("", "v1", "configmaps", namespace), fields="metadata.name=two")
        reflector = Reflector(client, source, text_of, sink)
        async with running(reflector):
            await reflector.wait_synced()
            assert sink.values == {(namespace, "two"): "2"}


async def test_an_outage_withdraws_nothing_and_ends_in_one_diff(own_cluster: Cluster) -> None:
    """The server goes, changes are made behind the reader's back, history is compacted away, and
    it comes back: what changed is put, what is gone is deleted, nothing else is said."""
    cluster = own_cluster
    for index in range(20):
        cluster.apply(config_map("default", f"cm-{index}", str(index)))
    async with client_of(cluster) as client:
        sink = Held()
        reflector = Reflector(
            client, Source(object_path("", "v1", "configmaps", "default")), text_of, sink
        )
        async with running(reflector):
            await reflector.wait_synced()
            before = dict(sink.values)
            await asyncio.to_thread(cluster.kill, "kube-apiserver")
            await until(lambda: reflector.problem)
            assert sink.values == before

            await asyncio.to_thread(cluster.start_api_server)
            await until(lambda: not reflector.problem)
            assert sink.values == before
            assert sink.deletions == []

            # Paused, not stopped: the reader sees silence while others write and compact.
            sink.puts.clear()
            await asyncio.to_thread(cluster.kill, "kube-apiserver")
            await until(lambda: reflector.problem)
            step = reflector._version
            reflector._version = "1"  # as a reader that was away for very long
            await asyncio.to_thread(cluster.start_api_server)
            await asyncio.to_thread(cluster.apply, config_map("default", "cm-7", "seven"))
            await asyncio.to_thread(cluster.delete, config_map("default", "cm-8", ""))
            await until(lambda: sink.values.get(("default", "cm-7")) == "seven")
            await until(lambda: ("default", "cm-8") not in sink.values)
            assert step != reflector._version
            assert sink.deletions == [("default", "cm-8")]
            assert set(sink.puts) == {("default", "cm-7")}


async def test_compacted_history_is_listed_again(own_cluster: Cluster) -> None:
    cluster = own_cluster
    async with client_of(cluster) as client:
        sink = Held()
        path = object_path("", "v1", "configmaps", "default")
        reflector = Reflector(client, Source(path), text_of, sink)
        cluster.apply(config_map("default", "kept", "1"))
        old = json.loads(await client.get(path))["metadata"]["resourceVersion"]
        for index in range(5):
            cluster.apply(config_map("default", "kept", f"v{index}"))
        cluster.compact()
        cluster.kill("kube-apiserver")  # its watch cache would still know
        cluster.start_api_server()
        reflector._version = old
        async with running(reflector):
            await until(lambda: reflector.counts.lists.get("gone"))
            assert sink.values["default", "kept"] == "v4"


async def test_a_kind_that_is_not_there_is_empty_until_it_comes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshbus.kube.reflector._ABSENT_S", 0.1)
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "tests.meshbus.test"},
        "spec": {
            "group": "meshbus.test",
            "names": {"kind": "Test", "plural": "tests"},
            "scope": "Cluster",
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "x-kubernetes-preserve-unknown-fields": True,
                        }
                    },
                }
            ],
        },
    }
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/tests.meshbus.test"
    async with client_of(cluster) as client:

        async def defined() -> bool:
            return await asyncio.to_thread(cluster.exists, path)

        sink = Held()
        source = Source(object_path("meshbus.test", "v1", "tests"))
        reflector = Reflector(client, source, text_of, sink, defined=defined)
        async with running(reflector):
            await reflector.wait_synced()
            assert sink.values == {}
            await asyncio.to_thread(cluster.apply, definition)
            thing = {
                "apiVersion": "meshbus.test/v1",
                "kind": "Test",
                "metadata": {"name": "one"},
                "data": {"text": "1"},
            }
            await asyncio.to_thread(cluster.wait, lambda: cluster.exists(source.path), 30)
            await asyncio.to_thread(cluster.apply, thing)
            await until(lambda: sink.values.get(("", "one")) == "1")
            await asyncio.to_thread(cluster.delete, definition)
            await until(lambda: not sink.values)


async def test_one_replica_holds_the_lease(cluster: Cluster, namespace: str) -> None:
    clock = SystemClock()

    def lease(client: KubeClient, holder: str) -> KubeLease:
        return KubeLease(
            client,
            namespace=namespace,
            name="test",
            holder=holder,
            now=clock.now,
            monotonic=clock.monotonic,
        )

    async with client_of(cluster) as client:
        one, two = lease(client, "one"), lease(client, "two")
        first = asyncio.create_task(one.run())
        await one.wait_held()
        second = asyncio.create_task(two.run())
        await until(lambda: two.holder == "one")
        assert not two.held
        first.cancel()  # a clean end hands it over at once
        await asyncio.gather(first, return_exceptions=True)
        await two.wait_held()
        assert not one.held
        spec = json.loads(await client.get(one._path))["spec"]
        assert spec["holderIdentity"] == "two"
        assert spec["leaseTransitions"] >= 2
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)


async def test_a_pod_reads_as_its_account_and_no_more(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    folder = cluster.account_folder(tmp_path / "account", namespace, "default")
    client = KubeClient(in_cluster(cluster.pod_env(folder), str(folder)))
    try:
        with pytest.raises(KubeRefused) as refused:
            await client.get("/api/v1/nodes")
        assert refused.value.code == 403
        assert f"system:serviceaccount:{namespace}:default" in str(refused.value)
        # A token that has ended is read again from its file.
        token = (folder / "token").read_text()
        (folder / "token").write_text("ended")
        client._access.refused()
        with pytest.raises(KubeRefused):
            await client.get("/api/v1/nodes")
        (folder / "token").write_text(token)
        await client.get("/version")
    finally:
        await client.close()


async def test_whose_token_and_may_they(cluster: Cluster, namespace: str) -> None:
    pod = cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "bound", "namespace": namespace},
            "spec": {"containers": [{"name": "app", "image": "app"}]},
        }
    )
    token = cluster.token(namespace, "default", audience=AUDIENCE, pod=pod)
    async with client_of(cluster) as client:
        reviews = Reviews(client, SystemClock().monotonic)
        caller = await reviews.caller(token, [AUDIENCE])
        assert caller is not None
        assert caller.account == (namespace, "default")
        assert (caller.pod, caller.pod_uid) == ("bound", pod["metadata"]["uid"])
        assert await reviews.caller(token, ["somebody-else"]) is None
        assert await reviews.caller("nonsense", [AUDIENCE]) is None
        assert not await reviews.allowed(caller, Access("get", "", "secrets", namespace))
        cluster.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": "view", "namespace": namespace},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "cluster-admin",
                },
                "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
            }
        )
        fresh = Reviews(client, SystemClock().monotonic)
        await until_async(lambda: fresh_allowed(fresh, caller, namespace))
        cluster.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/bound?gracePeriodSeconds=0")
        # The pod is gone, and with it the token, as soon as the server's own memory of it ends.
        await until_async(lambda: ended(client, token))


async def ended(client: KubeClient, token: str) -> bool:
    return await Reviews(client, SystemClock().monotonic).caller(token, [AUDIENCE]) is None


async def fresh_allowed(reviews: Reviews, caller: object, namespace: str) -> bool:
    reviews._accesses._answers.clear()
    return await reviews.allowed(caller, Access("get", "", "secrets", namespace))  # type: ignore[arg-type]


async def until_async(condition: object) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)
