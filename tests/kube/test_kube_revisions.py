"""Two control planes of one cluster on one bus: whose objects are whose, tags, and a canary that
takes over."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cluster import Cluster, free_port
from dns_client import ask
from nats_process import NatsServer, connections
from rows import C, Rows, call
from test_kube_chart import helm_program, sets
from test_kube_config import conditions, key_of, virtual_service
from test_kube_crds import install_definitions
from test_kube_discovery import pod, run_pod
from webhooks import rendered_file

from meshbus.bus.mirror import WorldMirror
from meshbus.model.keys import Key
from meshbus.model.revisions import RevisionView
from services import Process, serving

__all__ = ["helm_program"]
pytestmark = pytest.mark.slow
MESH = Key(C, "mesh", "config", "", "mesh")


class Planes(NamedTuple):
    """config of both revisions."""

    cluster: Cluster
    nats: NatsServer
    root: str
    binary: str
    old: Process
    new: Process

    def webhooks(self, *flags: str) -> list[dict[str, Any]]:
        """The configurations that the chart writes, which choose nothing here."""
        found = rendered_file(self.binary, self.root, "webhooks", *flags)
        documents = [d for d in found if d["kind"] == "MutatingWebhookConfiguration"]
        for document in documents:
            for webhook in document["webhooks"]:
                webhook["namespaceSelector"] = {"matchLabels": {"none": "of-these"}}
                webhook["clientConfig"] = {"url": "https://127.0.0.1:1/inject"}
        return documents


@pytest.fixture
def planes(
    cluster: Cluster, helm_program: str, namespace: str, nats_server: NatsServer, tmp_path: Path
) -> Iterator[Planes]:
    install_definitions(cluster)
    env = {"MESHBUS_CONFIG_API": "127.0.0.1:0"}
    with (
        serving(
            cluster, nats_server, "config", tmp_path / "old", root=namespace, env=env, pod="old"
        ) as old,
        serving(
            cluster, nats_server, "config", tmp_path / "new", root=namespace, env=env, pod="new",
            revision="blue",
        ) as new,
    ):  # fmt: skip
        old.wait_ready()
        new.wait_ready()
        yield Planes(cluster, nats_server, namespace, helm_program, old, new)


@pytest.fixture
def applied(cluster: Cluster) -> Iterator[list[dict[str, Any]]]:
    """What is put here is taken away."""
    made: list[dict[str, Any]] = []
    yield made
    for document in made:
        cluster.delete(document)


class Views(NamedTuple):
    """What the services of both revisions see, and the model itself."""

    old: Rows
    new: Rows
    all: Rows


@asynccontextmanager
async def views(nats: NatsServer) -> AsyncIterator[Views]:
    async with connections(nats) as connect:
        tasks, found = [], []
        for view in (RevisionView("default"), RevisionView("blue"), None):
            mirror = WorldMirror(view=view)
            found.append(Rows(mirror))
            follower = mirror.follow(await connect("local"))
            tasks.append(asyncio.create_task(follower.run()))
            await follower.wait_synced()
        yield Views(*found)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def labelled(root: str, name: str, label: str = "") -> dict[str, Any]:
    document = virtual_service(root, name)
    if label:
        document["metadata"]["labels"] = {"istio.io/rev": label}
    return document


def settings(root: str, name: str, text: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": root},
        "data": {"mesh": text},
    }


async def test_each_revision_acts_on_its_own_objects_and_tags_move_them(
    planes: Planes, applied: list[dict[str, Any]]
) -> None:
    cluster, root = planes.cluster, planes.root
    revision_of_tag = {"prod": "default"}

    async def tag_is(revision: str) -> None:
        """As an operator says: the tag `prod` is of this revision."""
        revision_of_tag["prod"] = revision
        for name in ("", "blue"):
            flags = [f"revision={name}"] if name else []
            if revision_of_tag["prod"] == (name or "default"):
                flags.append("revisionTags={prod}")
            for document in planes.webhooks(*sets(*flags)):
                applied.append(document)
                await call(cluster.apply, document)

    def sees(rows: Rows) -> set[str]:
        return {e.key.name for e in rows.mirror.world.all("cfg.virtualservices")}

    async with views(planes.nats) as seen:
        await tag_is("default")
        for document in (
            labelled(root, "everybodys"),
            labelled(root, "olds", "default"),
            labelled(root, "news", "blue"),
            labelled(root, "tagged", "prod"),
            labelled(root, "istios", "1-29"),
        ):
            await call(cluster.apply, document)
        await seen.old.until(lambda: sees(seen.old) == {"everybodys", "olds", "tagged"})
        await seen.new.until(lambda: sees(seen.new) == {"everybodys", "news"})
        assert "istios" not in sees(seen.all)
        # Each says of its own that it is in force, whoever of them writes the model.
        for name in ("everybodys", "olds", "news", "tagged"):
            await call(
                cluster.wait,
                lambda name=name: "Accepted" in conditions(cluster, labelled(root, name)),
                30,
            )
        assert await call(conditions, cluster, labelled(root, "istios")) == {}

        await tag_is("blue")
        await seen.new.until(lambda: sees(seen.new) == {"everybodys", "news", "tagged"})
        await seen.old.until(lambda: sees(seen.old) == {"everybodys", "olds"})


async def test_names_are_those_of_the_control_plane_of_who_asks(
    planes: Planes, applied: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Whichever discovery is asked: each has the hosts of both for the pods of both."""
    cluster, root = planes.cluster, planes.root
    servers = {revision: ("127.0.0.1", free_port()) for revision in ("", "blue")}
    pods = {"default": "127.44.0.1", "blue": "127.44.0.2"}

    def addresses(asked: str, pod: str, name: str) -> list[str]:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((pods[pod], 0))
        return ask(servers[asked], name, sock=sock).addresses

    with contextlib.ExitStack() as running:
        for revision, (host, port) in servers.items():
            started = serving(
                cluster,
                planes.nats,
                "discovery",
                tmp_path / f"discovery-{revision}",
                root=root,
                env={"MESHBUS_DISCOVERY_DNS": f"{host}:{port}"},
                pod=f"discovery-{revision or 'old'}",
                revision=revision,
            )
            running.enter_context(started).wait_ready()
        for flags in ((), sets("revision=blue")):
            for document in planes.webhooks(*flags):
                applied.append(document)
                await call(cluster.apply, document)
        for revision, address in pods.items():
            notes = {"istio.io/rev": revision, "sidecar.istio.io/status": "{}"}
            made = pod(root, f"of-{revision}", "asks", annotations=notes)
            await call(run_pod, cluster, made, address)
            entry = {
                "apiVersion": "networking.istio.io/v1",
                "kind": "ServiceEntry",
                "metadata": {
                    "name": revision,
                    "namespace": root,
                    "labels": {"istio.io/rev": revision},
                },
                "spec": {
                    "hosts": [f"{revision}.example.com"],
                    "addresses": ["240.1.0.1"],
                    "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
                    "resolution": "STATIC",
                },
            }
            await call(cluster.apply, entry)
        for asked in servers:
            for whose in pods:
                own = partial(addresses, asked, whose, f"{whose}.example.com")
                await call(cluster.wait, lambda own=own: own() == ["240.1.0.1"], 30)
            assert await call(addresses, asked, "blue", "default.example.com") == []
            assert await call(addresses, asked, "default", "blue.example.com") == []


async def test_each_revision_has_its_own_mesh_config(
    planes: Planes, applied: list[dict[str, Any]]
) -> None:
    cluster, root = planes.cluster, planes.root
    async with views(planes.nats) as seen:
        # Whoever leads knows of the other by its webhooks.
        for flags in ((), sets("revision=blue")):
            for document in planes.webhooks(*flags):
                applied.append(document)
                await call(cluster.apply, document)
        first, second = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}", "accessLogFile: /dev/stdout"
        await call(cluster.apply, settings(root, "istio", first))
        await call(cluster.apply, settings(root, "istio-blue", second))

        def spec(rows: Rows) -> Any:
            row = rows.mirror.world.get(MESH)
            return row.spec if row is not None else None

        old_mesh, new_mesh = (
            {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}},
            {"accessLogFile": "/dev/stdout"},
        )
        await seen.old.until(lambda: spec(seen.old) == old_mesh)
        await seen.new.until(lambda: spec(seen.new) == new_mesh)


async def test_the_canary_takes_over_and_nothing_moves(
    planes: Planes, applied: list[dict[str, Any]]
) -> None:
    """The old revision is ended: what the model says of both stays, whoever wrote it before."""
    cluster, root = planes.cluster, planes.root
    async with views(planes.nats) as seen:
        for flags in ((), sets("revision=blue")):
            for document in planes.webhooks(*flags):
                applied.append(document)
                await call(cluster.apply, document)
        for name, label in (("everybodys", ""), ("olds", "default"), ("news", "blue")):
            await call(cluster.apply, labelled(root, name, label))
        await call(cluster.apply, settings(root, "istio", "accessLogFile: /dev/stdout"))
        await call(cluster.apply, settings(root, "istio-blue", "accessLogFile: /dev/stderr"))
        world = seen.all.mirror.world
        await seen.all.until(
            lambda: (
                len(seen.all.mirror.world.all("cfg.virtualservices")) == 3
                and len(seen.all.mirror.world.all("mesh.config")) == 2
            )
        )
        world = seen.all.mirror.world
        held = {e.key: e.sequence for t in world.tables() for e in world.all(t)}
        planes.old.process.kill()
        await call(planes.old.process.wait)
        await call(cluster.apply, labelled(root, "later", "blue"))
        await seen.new.until(lambda: seen.new.mirror.world.get(key_of(root, "later")))
        await seen.all.until(lambda: seen.all.mirror.world.get(key_of(root, "later")))
        world = seen.all.mirror.world
        assert {e.key: e.sequence for t in world.tables() for e in world.all(t)} == {
            **held,
            key_of(root, "later"): world.entry(key_of(root, "later")).sequence,
        }
        # Its webhooks are taken away with it: so are the objects that were for it alone.
        for document in planes.webhooks():
            await call(cluster.delete, document)
        await seen.all.until(
            lambda: (
                seen.all.mirror.world.get(key_of(root, "olds")) is None
                and seen.all.mirror.world.get(MESH) is None
            )
        )
        assert seen.new.mirror.world.get(key_of(root, "everybodys")) is not None
