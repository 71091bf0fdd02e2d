"""What goes wrong between the mesh and an API server, and what must not come of it."""

import asyncio
import copy
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Refused
from nats_process import NatsServer
from rows import call, rows_of
from test_kube_config import conditions, key_of, settled, virtual_service
from test_kube_crds import install_definitions
from test_kube_discovery import service

from meshbus.schema.crds import definitions
from services import Process, account_of, serving

pytestmark = pytest.mark.slow
ROOT = "istio-system"
API = {"MESHBUS_CONFIG_API": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def alone(own_cluster: Cluster) -> Cluster:
    """A cluster that may be stopped, with our kinds and the namespace of the control plane."""
    install_definitions(own_cluster)
    for name in (ROOT, "team"):
        own_cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return own_cluster


@pytest.fixture
def config(alone: Cluster, nats_server: NatsServer, tmp_path: Path) -> Iterator[Process]:
    with serving(alone, nats_server, "config", tmp_path / "config", root=ROOT, env=API) as process:
        process.wait_ready()
        yield process


@pytest.fixture
def discovery(alone: Cluster, nats_server: NatsServer, tmp_path: Path) -> Iterator[Process]:
    with serving(alone, nats_server, "discovery", tmp_path / "discovery", root=ROOT) as process:
        process.wait_ready()
        yield process


async def test_an_outage_is_one_diff(
    alone: Cluster, nats_server: NatsServer, config: Process, discovery: Process
) -> None:
    """Nothing is withdrawn while it is away; back, what has changed is written, and only that."""
    async with rows_of(nats_server) as rows:
        for number in range(5):
            await call(alone.apply, virtual_service("team", f"vs-{number}"))
            await call(alone.apply, service("team", f"svc-{number}"))
        await rows.until(lambda: rows.mirror.world.get(key_of("team", "vs-4")))
        await rows.until(lambda: rows.service("team", "svc-4"))
        await settled(rows, alone, virtual_service("team", "vs-4"), "Accepted")
        world = rows.mirror.world
        held = {e.key: e.sequence for t in world.tables() for e in world.all(t)}

        await call(alone.kill, "kube-apiserver")
        async with asyncio.timeout(30):
            while "Cannot connect" not in config.log or "Cannot connect" not in discovery.log:
                await asyncio.sleep(0.1)
        await call(alone.start_api_server)
        changed = virtual_service("team", "vs-1", hosts=["other"])
        await call(alone.apply, changed)
        await call(alone.delete, virtual_service("team", "vs-2"))
        await call(alone.delete, service("team", "svc-3"))
        await rows.until(lambda: rows.mirror.world.get(key_of("team", "vs-2")) is None)
        await rows.until(lambda: rows.service("team", "svc-3") is None)
        await rows.until(
            lambda: rows.mirror.world.get(key_of("team", "vs-1")).spec["hosts"] == ["other"]
        )
        world = rows.mirror.world
        now = {e.key: e.sequence for t in world.tables() for e in world.all(t)}
        moved = {key for key in held if now.get(key) != held[key] and key.plane != "ctl"}
        assert {(k.kind, k.name.split(".")[0]) for k in moved} == {
            ("virtualservices", "vs-1"),
            ("virtualservices", "vs-2"),
            ("services", "svc-3"),
            ("endpoints", "svc-3"),
        }


async def test_a_token_that_has_ended(
    alone: Cluster, nats_server: NatsServer, config: Process
) -> None:
    """Nothing is withdrawn; with the next token it goes on."""
    async with rows_of(nats_server) as rows:
        await call(alone.apply, virtual_service("team", "before"))
        await rows.until(lambda: rows.mirror.world.get(key_of("team", "before")))
        # The account is made anew: the token in its file is of one that is no more.
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": account_of("config"), "namespace": ROOT},
        }
        await call(alone.delete, account)
        await call(alone.apply, account)
        await call(alone.kill, "kube-apiserver")  # its watches end, and it asks again
        await call(alone.start_api_server)
        async with asyncio.timeout(60):
            while "Unauthorized" not in config.log:
                await asyncio.sleep(0.1)
        assert rows.mirror.world.get(key_of("team", "before")) is not None
        token = await call(alone.token, ROOT, account_of("config"))
        (config.folder / "account" / "token").write_text(token)
        await call(alone.apply, virtual_service("team", "after"))
        await rows.until(lambda: rows.mirror.world.get(key_of("team", "after")))


async def test_definitions_are_upgraded(
    alone: Cluster, nats_server: NatsServer, tmp_path: Path
) -> None:
    """A cluster that serves an old version alone, as old Istio does; then ours. Nothing moves."""
    newest = next(d for d in definitions() if d["metadata"]["name"].startswith("sidecars."))
    oldest = copy.deepcopy(dict(newest))
    oldest["spec"]["versions"] = [
        {**version, "storage": True}
        for version in oldest["spec"]["versions"]
        if version["name"] == "v1beta1"
    ]
    path = alone.path_of({**newest, "metadata": newest["metadata"]})
    alone.delete(dict(newest))
    alone.wait(lambda: not alone.exists(path), 30)
    alone.apply(oldest)
    alone.wait(lambda: alone.exists("/apis/networking.istio.io/v1beta1/sidecars"), 30)
    sidecar = {
        "apiVersion": "networking.istio.io/v1beta1",
        "kind": "Sidecar",
        "metadata": {"name": "default", "namespace": "team"},
        "spec": {"egress": [{"hosts": ["./*"]}]},
    }
    alone.apply(sidecar)
    key = key_of("team", "default", "sidecars")
    with serving(alone, nats_server, "config", tmp_path / "c", root=ROOT, env=API) as process:
        async with rows_of(nats_server) as rows:
            await call(process.wait_ready)
            await rows.until(lambda: rows.mirror.world.get(key))
            sequence = rows.mirror.world.entry(key).sequence
            await call(alone.apply, dict(newest))
            async with asyncio.timeout(60):
                while '"version":"v1"' not in _kind(process, "sidecars.networking.istio.io"):
                    await asyncio.sleep(0.1)
            await call(alone.apply, virtual_service("team", "after-upgrade"))
            await rows.until(lambda: rows.mirror.world.get(key_of("team", "after-upgrade")))
            assert rows.mirror.world.entry(key).sequence == sequence


async def test_an_object_that_is_none_takes_nothing_down(
    alone: Cluster, nats_server: NatsServer, config: Process
) -> None:
    """Definitions without a schema, as those of Istio 1.4, let anything in."""
    definition = next(
        d for d in definitions() if d["metadata"]["name"].startswith("workloadgroups.")
    )
    loose = copy.deepcopy(dict(definition))
    for version in loose["spec"]["versions"]:
        version["schema"] = {
            "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        }
    alone.delete(dict(definition))
    alone.wait(lambda: not alone.exists(alone.path_of(dict(definition))), 30)
    alone.apply(loose)
    alone.wait(lambda: alone.exists("/apis/networking.istio.io/v1/workloadgroups"), 30)

    def group(name: str, spec: object) -> dict[str, Any]:
        return {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadGroup",
            "metadata": {"name": name, "namespace": "team"},
            "spec": spec,
        }

    try:
        async with rows_of(nats_server) as rows:
            good = group("good", {"template": {"serviceAccount": "vm"}})
            bad = [
                group("text", "nonsense"),
                group("list", [1, 2]),
                group("deep", {"template": {"ports": "x", "labels": [{}]}, "probe": 7}),
            ]
            for document in (*bad, good):
                await call(alone.apply, document)
            await rows.until(
                lambda: rows.mirror.world.get(key_of("team", "good", "workloadgroups"))
            )
            for document in bad:
                accepted = await settled(rows, alone, document, "Accepted")
                assert (accepted["status"], accepted["reason"]) == ("False", "Invalid")
                assert accepted["message"].startswith("spec")
                name = document["metadata"]["name"]
                assert rows.mirror.world.get(key_of("team", name, "workloadgroups")) is None
            metrics = config.admin("/metrics")[1]
            assert re.search(r"^meshbus_kube_invalid(\{.*\})? [3-9]", metrics, re.M), metrics
    finally:
        alone.apply(dict(definition))


def _kind(process: Process, name: str) -> str:
    text = process.admin("/debug/config/kubernetes")[1].replace(" ", "")
    start = text.find(f'"{name}"')
    return text[start : start + 80] if start >= 0 else ""


async def test_who_writes_statuses_is_killed(
    alone: Cluster, nats_server: NatsServer, config: Process, tmp_path: Path
) -> None:
    """Another replica takes the Lease when it has ended, and goes on."""
    with serving(
        alone, nats_server, "config", tmp_path / "c1", root=ROOT, env=API, pod="config-1"
    ) as second:
        async with rows_of(nats_server) as rows:
            await call(second.wait_ready)
            first = virtual_service("team", "first")
            await call(alone.apply, first)
            await settled(rows, alone, first, "Accepted")
            os.kill(config.pid, signal.SIGKILL)
            later = virtual_service("team", "later")
            await call(alone.apply, later)
            await rows.until(lambda: rows.mirror.world.get(key_of("team", "later")))
            async with asyncio.timeout(60):
                while "Accepted" not in await call(conditions, alone, later):
                    await asyncio.sleep(0.2)
            lease = await call(
                alone.get, f"/apis/coordination.k8s.io/v1/namespaces/{ROOT}/leases/meshbus-config"
            )
            assert lease["spec"]["holderIdentity"] == "config-1"


async def test_a_namespace_is_deleted_under_load(
    cluster: Cluster, namespace: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    """Objects are made in it while it goes; all of it is gone in the end, and others stay."""
    install_definitions(cluster)
    doomed = f"{namespace}-doomed"
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": doomed}})
    ended = threading.Event()

    def load() -> None:
        number = 0
        while not ended.is_set():
            for document in (
                virtual_service(doomed, f"vs-{number}"),
                service(doomed, f"svc-{number}"),
            ):
                try:
                    cluster.apply(document)
                except Refused:
                    return
            number += 1

    with (
        serving(cluster, nats_server, "config", tmp_path / "c", root=namespace, env=API) as config,
        serving(cluster, nats_server, "discovery", tmp_path / "d", root=namespace) as discovery,
    ):
        async with rows_of(nats_server) as rows:
            await call(config.wait_ready)
            await call(discovery.wait_ready)
            await call(cluster.apply, virtual_service(namespace, "stays"))
            thread = threading.Thread(target=load)
            thread.start()
            try:
                await rows.until(lambda: rows.mirror.world.get(key_of(doomed, "vs-5")))
                await call(cluster.request, "DELETE", f"/api/v1/namespaces/{doomed}")
                await rows.until(
                    lambda: (
                        not any(
                            entry.key.namespace == doomed
                            for table in rows.mirror.world.tables()
                            for entry in rows.mirror.world.all(table)
                        )
                        and not thread.is_alive()
                    )
                )
            finally:
                ended.set()
                thread.join()
            await call(cluster.wait, lambda: not cluster.exists(f"/api/v1/namespaces/{doomed}"), 60)
            assert rows.mirror.world.get(key_of(namespace, "stays")) is not None
            remains: list[Any] = [
                entry.key
                for table in rows.mirror.world.tables()
                for entry in rows.mirror.world.all(table)
                if entry.key.namespace == doomed
            ]
            assert remains == []
