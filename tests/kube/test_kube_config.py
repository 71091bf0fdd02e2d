"""config on Kubernetes: the API server is the store; what is applied there is in force."""

import asyncio
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cluster import Cluster, Refused
from nats_process import NatsServer
from rows import Rows, call, rows_of
from test_kube_crds import install_definitions
from test_kube_discovery import service

from meshbus.model.keys import Key
from services import Process, serving

pytestmark = pytest.mark.slow
C = "Kubernetes"


class Mesh(NamedTuple):
    """A control plane of config and ca, in a namespace."""

    cluster: Cluster
    nats: NatsServer
    root: str
    config: Process
    folder: Path


@pytest.fixture
def mesh(
    cluster: Cluster, namespace: str, nats_server: NatsServer, tmp_path: Path
) -> Iterator[Mesh]:
    install_definitions(cluster)
    env = {
        "MESHBUS_CONFIG_API": "127.0.0.1:0",
        "MESHBUS_CONFIG_WEBHOOKS": "127.0.0.1:0",
        "MESHBUS_CONFIG_WEBHOOK_NAMES": "127.0.0.1",
    }
    with (
        serving(cluster, nats_server, "ca", tmp_path / "ca", root=namespace),
        serving(
            cluster, nats_server, "config", tmp_path / "config", root=namespace, env=env
        ) as config,
    ):
        config.wait_ready()
        yield Mesh(cluster, nats_server, namespace, config, tmp_path / "config" / "config")


def virtual_service(namespace: str, name: str = "reviews", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "hosts": [name],
            "http": [{"route": [{"destination": {"host": name}}]}],
            **spec,
        },
    }


def key_of(namespace: str, name: str, plural: str = "virtualservices") -> Key:
    return Key(C, "cfg", plural, namespace, name)


def conditions(cluster: Cluster, document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    status = cluster.get(cluster.path_of(document)).get("status", {})
    return {one["type"]: one for one in status.get("conditions", [])}


async def settled(rows: Rows, cluster: Cluster, document: dict[str, Any], kind: str) -> Any:
    """The condition, once the status is there."""
    async with asyncio.timeout(30):
        while True:
            found = await call(conditions, cluster, document)
            if kind in found:
                return found[kind]
            await asyncio.sleep(0.1)


async def test_objects_come_into_force_and_say_so(mesh: Mesh) -> None:
    async with rows_of(mesh.nats) as rows:
        document = virtual_service(mesh.root)
        await call(mesh.cluster.apply, document)
        key = key_of(mesh.root, "reviews")
        await rows.until(lambda: rows.mirror.world.get(key))
        row = rows.mirror.world.get(key)
        assert row.spec == document["spec"]
        assert row.generation == 1
        accepted = await settled(rows, mesh.cluster, document, "Accepted")
        assert (accepted["status"], accepted["observedGeneration"]) == ("True", 1)
        programmed = await settled(rows, mesh.cluster, document, "Programmed")
        assert programmed["status"] == "True"
        assert programmed["message"] == "no proxy is connected"
        # What it names is looked for apart, and may be told later.
        resolved = await settled(rows, mesh.cluster, document, "ResolvedRefs")
        assert (resolved["status"], resolved["reason"]) == ("False", "ReferenceNotFound")

        # A status is not a change: it makes no new version of the model, and none of itself.
        sequence = rows.mirror.world.sequence
        version = (await call(mesh.cluster.get, mesh.cluster.path_of(document)))["metadata"]
        await call(mesh.cluster.apply, virtual_service(mesh.root, "ratings"))
        await rows.until(lambda: rows.mirror.world.get(key_of(mesh.root, "ratings")))
        await settled(rows, mesh.cluster, virtual_service(mesh.root, "ratings"), "Accepted")
        assert rows.mirror.world.entry(key).sequence <= sequence
        again = (await call(mesh.cluster.get, mesh.cluster.path_of(document)))["metadata"]
        assert again["resourceVersion"] == version["resourceVersion"]

        await call(mesh.cluster.delete, document)
        await rows.until(lambda: rows.mirror.world.get(key) is None)


async def test_a_bad_object_takes_nothing_down(mesh: Mesh) -> None:
    """No webhook is registered here: the API server takes what our rules refuse."""
    async with rows_of(mesh.nats) as rows:
        good = virtual_service(mesh.root)
        key = key_of(mesh.root, "reviews")
        await call(mesh.cluster.apply, good)
        await rows.until(lambda: rows.mirror.world.get(key))
        bad = virtual_service(mesh.root, hosts=["bad host"])
        await call(mesh.cluster.apply, bad)
        async with asyncio.timeout(30):
            while (await settled(rows, mesh.cluster, bad, "Accepted"))["status"] != "False":
                await asyncio.sleep(0.1)
        accepted = (await call(conditions, mesh.cluster, bad))["Accepted"]
        assert accepted["reason"] == "Invalid"
        assert "spec.hosts" in accepted["message"]
        assert rows.mirror.world.get(key).spec == good["spec"]
        await call(mesh.cluster.apply, virtual_service(mesh.root, "ratings"))
        await rows.until(lambda: rows.mirror.world.get(key_of(mesh.root, "ratings")))


async def test_the_revision_label_decides(mesh: Mesh) -> None:
    async with rows_of(mesh.nats) as rows:
        other = virtual_service(mesh.root, "theirs")
        other["metadata"]["labels"] = {"istio.io/rev": "canary"}
        await call(mesh.cluster.apply, other)
        ours = virtual_service(mesh.root, "ours")
        ours["metadata"]["labels"] = {"istio.io/rev": "default"}
        await call(mesh.cluster.apply, ours)
        await rows.until(lambda: rows.mirror.world.get(key_of(mesh.root, "ours")))
        await settled(rows, mesh.cluster, ours, "Accepted")
        assert rows.mirror.world.get(key_of(mesh.root, "theirs")) is None
        assert await call(conditions, mesh.cluster, other) == {}
        # Handed over: the label is changed.
        other["metadata"]["labels"] = {"istio.io/rev": "default"}
        await call(mesh.cluster.apply, other)
        await rows.until(lambda: rows.mirror.world.get(key_of(mesh.root, "theirs")))


async def test_networks_stand_beside_the_mesh_config(mesh: Mesh) -> None:
    key = Key(C, "cfg", "meshnetworks", "", "mesh")

    def config_map(**networks: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": mesh.root},
            "data": {"mesh": "{}", **networks},
        }

    east = {"east": {"gateways": [{"address": "gw.example.com", "port": 443}]}}
    async with rows_of(mesh.nats) as rows:
        world = lambda: rows.mirror.world  # noqa: E731
        await call(mesh.cluster.apply, config_map(meshNetworks=json.dumps({"networks": east})))
        await rows.until(lambda: world().get(key))
        assert world().get(key).spec == {"networks": east}
        # Bad ones do not take the good ones down, nor hold up the mesh config.
        bad = config_map(meshNetworks='{"networks": {"east": {"gateways": [{"port": 0}]}}}')
        bad["data"]["mesh"] = '{"trustDomain": "other.local"}'
        await call(mesh.cluster.apply, bad)
        settings = Key(C, "mesh", "config", "", "mesh")
        await rows.until(lambda: "trustDomain" in getattr(world().get(settings), "spec", {}))
        assert world().get(key).spec == {"networks": east}
        await call(mesh.cluster.apply, config_map(meshNetworks="{networks: {west: {}}}"))
        await rows.until(lambda: "west" in world().get(key).spec["networks"])
        gone = config_map()
        gone["data"]["meshNetworks"] = ""
        await call(mesh.cluster.apply, gone)
        await rows.until(lambda: world().get(key) is None)


async def test_the_mesh_config_is_a_config_map(mesh: Mesh) -> None:
    key = Key(C, "mesh", "config", "", "mesh")
    good = {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}

    def config_map(text: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": mesh.root},
            "data": {"mesh": text},
        }

    async with rows_of(mesh.nats) as rows:
        await call(mesh.cluster.apply, config_map("outboundTrafficPolicy: {mode: REGISTRY_ONLY}"))
        await rows.until(lambda: rows.mirror.world.get(key))
        assert rows.mirror.world.get(key).spec == good
        # A bad one: the last good stays.
        await call(mesh.cluster.apply, config_map("outboundTrafficPolicy: {mode: NONSENSE}"))
        await call(mesh.cluster.apply, virtual_service(mesh.root, "after"))
        await rows.until(lambda: rows.mirror.world.get(key_of(mesh.root, "after")))
        assert rows.mirror.world.get(key).spec == good
        assert "NONSENSE" in mesh.config.admin("/debug/config/kubernetes")[1]


async def test_only_secrets_that_are_named_are_read(mesh: Mesh) -> None:
    def secret(name: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": mesh.root},
            "type": "kubernetes.io/tls",
            "data": {"tls.crt": "Zm9v", "tls.key": "YmFy"},
        }

    gateway = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "front", "namespace": mesh.root},
        "spec": {
            "selector": {"istio": "ingress"},
            "servers": [
                {
                    "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
                    "hosts": ["a.example.com"],
                    "tls": {"mode": "SIMPLE", "credentialName": "front-cert"},
                }
            ],
        },
    }
    async with rows_of(mesh.nats) as rows:
        await call(mesh.cluster.apply, secret("front-cert"))
        await call(mesh.cluster.apply, secret("other"))
        await call(mesh.cluster.apply, gateway)
        await rows.until(lambda: rows.mirror.world.get(key_of(mesh.root, "front-cert", "secrets")))
        row = rows.mirror.world.get(key_of(mesh.root, "front-cert", "secrets"))
        assert "Zm9v" not in repr(row)
        assert "YmFy" not in repr(row)
        assert rows.mirror.world.get(key_of(mesh.root, "other", "secrets")) is None
        await call(mesh.cluster.delete, gateway)
        await rows.until(
            lambda: rows.mirror.world.get(key_of(mesh.root, "front-cert", "secrets")) is None
        )


async def test_of_config_maps_that_are_named_the_authorities_are_read(mesh: Mesh) -> None:
    def config_map(name: str, roots: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": mesh.root},
            "data": {"ca.crt": roots, "other": "x"},
        }

    rule = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "bank", "namespace": mesh.root},
        "spec": {
            "host": "bank.example.com",
            "trafficPolicy": {
                "tls": {"mode": "SIMPLE", "credentialName": f"configmap://{mesh.root}/trust"}
            },
        },
    }
    async with rows_of(mesh.nats) as rows:

        def held(name: str) -> Any:
            row = rows.mirror.world.get(key_of(mesh.root, name, "configmaps"))
            return None if row is None else row.spec

        await call(mesh.cluster.apply, config_map("trust", "one"))
        await call(mesh.cluster.apply, config_map("other", "x"))
        await call(mesh.cluster.apply, rule)
        await rows.until(lambda: held("trust") == {"data": {"ca.crt": "one"}})
        assert held("other") is None
        await call(mesh.cluster.apply, config_map("trust", "two"))
        await rows.until(lambda: held("trust") == {"data": {"ca.crt": "two"}})
        await call(mesh.cluster.delete, config_map("trust", "two"))
        await rows.until(lambda: held("trust") is None)
        await call(mesh.cluster.apply, config_map("trust", "three"))
        await rows.until(lambda: held("trust") is not None)
        await call(mesh.cluster.delete, rule)
        await rows.until(lambda: held("trust") is None)


@pytest.fixture
def webhook(mesh: Mesh) -> Iterator[Mesh]:
    """The validating webhook, registered for this test's namespace; config fills in the CA."""
    url = json.loads((mesh.folder / "webhooks.json").read_text())["url"]
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {
            "name": f"meshbus-{mesh.root}",
            "labels": {"app.kubernetes.io/part-of": "meshbus", "istio.io/rev": "default"},
        },
        "webhooks": [
            {
                "name": "validation.meshbus.io",
                "clientConfig": {"url": f"{url}/validate"},
                "rules": [
                    {
                        "apiGroups": ["networking.istio.io", "security.istio.io", "meshbus.io"],
                        "apiVersions": ["*"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["*"],
                        "scope": "*",
                    }
                ],
                "failurePolicy": "Fail",
                "sideEffects": "None",
                "timeoutSeconds": 5,
                "admissionReviewVersions": ["v1"],
                "namespaceSelector": {
                    "matchExpressions": [
                        {
                            "key": "kubernetes.io/metadata.name",
                            "operator": "In",
                            "values": [mesh.root],
                        }
                    ]
                },
            }
        ],
    }
    mesh.cluster.apply(configuration)
    path = mesh.cluster.path_of(configuration)

    def trusted() -> bool:
        return bool(mesh.cluster.get(path)["webhooks"][0]["clientConfig"].get("caBundle"))

    try:
        mesh.cluster.wait(trusted, 30)
        yield mesh
    finally:
        mesh.cluster.delete(configuration)


def test_the_webhook_judges(webhook: Mesh) -> None:
    cluster, root = webhook.cluster, webhook.root

    def refused() -> str:
        try:
            cluster.apply(virtual_service(root, hosts=["bad host"]))
        except Refused as error:
            return error.body
        return ""

    # The API server reads the configuration anew a moment after it has changed.
    cluster.wait(lambda: "spec.hosts[0]" in refused(), 30)
    status = json.loads(refused())
    assert status["code"] == 422
    assert status["details"]["causes"][0]["field"] == "spec.hosts[0]"
    assert cluster.apply(virtual_service(root))["metadata"]["generation"] == 1
    said = cluster.kubectl(
        "-n", root, "apply", "--dry-run=server", "-f", "-", stdin=json.dumps(virtual_service(root))
    )
    assert "reviews" in said
    assert '"user": "admin"' in webhook.config.log or "user=admin" in webhook.config.log


def test_a_dead_webhook_lets_nothing_pass(webhook: Mesh) -> None:
    cluster, root = webhook.cluster, webhook.root
    cluster.wait(lambda: cluster.apply(virtual_service(root)), 30)
    webhook.config.process.kill()
    webhook.config.process.wait(10)
    with pytest.raises(Refused) as refused:
        cluster.apply(virtual_service(root, "other"))
    assert "failed calling webhook" in refused.value.body


def test_who_may_use_the_api(mesh: Mesh) -> None:
    api = json.loads((mesh.folder / "api.json").read_text())
    trust = ssl.create_default_context(cafile=api["ca"])

    def answer(path: str, token: str = "") -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        asked = urllib.request.Request(api["url"] + path, headers=headers)
        try:
            with urllib.request.urlopen(asked, timeout=10, context=trust) as response:
                return int(response.status), response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ask(path: str, token: str = "") -> int:
        return answer(path, token)[0]

    assert ask("/v1/proxies") == 401
    assert ask("/v1/proxies", "nonsense") == 401
    token = mesh.cluster.token(mesh.root, "default")
    assert ask("/v1/proxies", token) == 403
    # A workload's token, which is for the mesh alone, is nobody's to the API.
    assert ask("/v1/proxies", mesh.cluster.token(mesh.root, "default", audience="meshbus")) == 401
    name = f"viewer-{mesh.root}"
    mesh.cluster.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": [{"nonResourceURLs": ["/v1/*"], "verbs": ["get"]}],
        }
    )
    mesh.cluster.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": name,
            },
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": mesh.root}],
        }
    )
    mesh.cluster.wait(lambda: ask("/v1/changes", token) == 200, 30)
    assert ask("/v1/certificates/rotation", token) in (200, 503, 504)
    # Who changed what: without a webhook that saw the user, the field manager.
    mesh.cluster.apply(virtual_service(mesh.root, "audited"))
    mesh.cluster.wait(lambda: '"audited"' in answer("/v1/changes", token)[1], 30)
    changes = json.loads(answer("/v1/changes", token)[1])
    changes = changes.get("changes", changes) if isinstance(changes, dict) else changes
    made = next(c for c in changes if any(o["name"] == "audited" for o in c["objects"]))
    assert made["user"] == "test"
    # Objects are the API server's, and are asked for there.
    assert ask("/apis/networking.istio.io/v1/virtualservices", token) == 404


def tenant(name: str, namespace: str, hosts: list[str], **quota: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"namespaces": [namespace], "hosts": hosts}
    if quota:
        spec["quota"] = quota
    return {
        "apiVersion": "meshbus.io/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": name},
        "spec": spec,
    }


async def test_a_tenant_cannot_take_the_hosts_of_another(mesh: Mesh) -> None:
    """Without a webhook too: what is not allowed does not come into force."""
    documents = [
        tenant(f"shop-{mesh.root}", f"shop-{mesh.root}", ["*.shop.example.com"]),
        tenant(f"blog-{mesh.root}", mesh.root, ["blog.example.com"], byKind={"VirtualService": 2}),
    ]
    try:
        for document in documents:
            await call(mesh.cluster.apply, document)
        async with rows_of(mesh.nats) as rows:
            await rows.until(lambda: len(rows.mirror.world.all("cfg.tenants")) == 2)
            stolen = virtual_service(mesh.root, "stolen", hosts=["a.shop.example.com"])
            await call(mesh.cluster.apply, stolen)
            accepted = await settled(rows, mesh.cluster, stolen, "Accepted")
            assert (accepted["status"], accepted["reason"]) == ("False", "NotAllowed")
            assert "belongs to tenant shop-" in accepted["message"]
            assert rows.mirror.world.get(key_of(mesh.root, "stolen")) is None
            own = virtual_service(mesh.root, "own", hosts=["blog.example.com"])
            await call(mesh.cluster.apply, own)
            await rows.until(lambda: rows.mirror.world.get(key_of(mesh.root, "own")))
            # Two are there, one of them without effect; a third is one too many.
            third = virtual_service(mesh.root, "third")
            await call(mesh.cluster.apply, third)
            accepted = await settled(rows, mesh.cluster, third, "Accepted")
            assert accepted["status"] == "False"
            assert "may have 2 objects of kind VirtualService" in accepted["message"]
    finally:
        for document in documents:
            mesh.cluster.delete(document)


async def test_five_thousand_objects_at_once(mesh: Mesh) -> None:
    async with rows_of(mesh.nats) as rows:
        count = 5000
        base = f"/apis/networking.istio.io/v1/namespaces/{mesh.root}/virtualservices"
        began = time.monotonic()

        def make(numbers: range) -> None:
            for number in numbers:
                mesh.cluster.request("POST", base, virtual_service(mesh.root, f"vs-{number}"))

        await asyncio.gather(
            *(asyncio.to_thread(make, range(start, count, 8)) for start in range(8))
        )
        made = time.monotonic() - began
        await rows.until(
            lambda: len(rows.mirror.world.all("cfg.virtualservices")) == count, limit_s=120
        )
        print(f"{count} objects made in {made:.1f} s, in force {time.monotonic() - began:.1f} s")
        began = time.monotonic()
        await call(mesh.cluster.request, "DELETE", base)
        await rows.until(lambda: not rows.mirror.world.all("cfg.virtualservices"), limit_s=120)
        print(f"gone {time.monotonic() - began:.1f} s after")


async def test_limited_to_a_namespace(
    cluster: Cluster, namespace: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    """By Roles in it: what is elsewhere is not seen, and need not be readable."""
    install_definitions(cluster)
    own, other = f"{namespace}-own", f"{namespace}-other"
    for name in (own, other):
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    mesh_config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": namespace},
        "data": {"mesh": "trustDomain: cluster.local"},
    }
    cluster.apply(mesh_config)
    env = {"MESHBUS_CONFIG_API": "127.0.0.1:0"}
    try:
        with (
            serving(
                cluster, nats_server, "config", tmp_path / "c", root=namespace, env=env,
                namespaces=(own,),
            ) as config,
            serving(
                cluster, nats_server, "discovery", tmp_path / "d", root=namespace,
                namespaces=(own,),
            ) as discovery,
        ):  # fmt: skip
            async with rows_of(nats_server) as rows:
                await call(config.wait_ready)
                await call(discovery.wait_ready)
                await call(cluster.apply, virtual_service(other, "theirs"))
                await call(cluster.apply, service(other, "theirs"))
                ours = virtual_service(own, "ours")
                await call(cluster.apply, ours)
                await call(cluster.apply, service(own, "ours"))
                await rows.until(lambda: rows.mirror.world.get(key_of(own, "ours")))
                await rows.until(lambda: rows.service(own, "ours"))
                await settled(rows, cluster, ours, "Accepted")
                assert [e.key.name for e in rows.mirror.world.all("cfg.virtualservices")] == [
                    "ours"
                ]
                assert [e.row.name for e in rows.mirror.world.all("reg.services")] == ["ours"]
                await rows.until(lambda: rows.mirror.world.all("mesh.config"))
                for process in (config, discovery):
                    assert "forbidden" not in process.log.lower()
    finally:
        for name in (own, other):
            path = f"/api/v1/namespaces/{name}"
            cluster.request("DELETE", path)


async def test_discovery_selectors_choose_namespaces(
    mesh: Mesh, cluster: Cluster, tmp_path: Path
) -> None:
    """Objects and services of namespaces come and go with the labels that are selected by."""
    inside, outside = f"{mesh.root}-in", f"{mesh.root}-out"

    def namespace_document(name: str, **labels: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": labels},
        }

    selectors = f'discoverySelectors: [{{matchLabels: {{mesh: "{mesh.root}"}}}}]'
    cluster.apply(namespace_document(inside, mesh=mesh.root))
    cluster.apply(namespace_document(outside))
    for name in (inside, outside):
        cluster.apply(virtual_service(name, "vs"))
        cluster.apply(service(name, "svc"))
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": mesh.root},
            "data": {"mesh": selectors},
        }
    )

    def there(rows: Rows, name: str) -> tuple[bool, bool]:
        return (
            rows.mirror.world.get(key_of(name, "vs")) is not None,
            rows.service(name, "svc") is not None,
        )

    try:
        with serving(cluster, mesh.nats, "discovery", tmp_path / "d", root=mesh.root) as discovery:
            async with rows_of(mesh.nats) as rows:
                await call(discovery.wait_ready)
                await rows.until(lambda: there(rows, inside) == (True, True))
                await rows.until(lambda: there(rows, outside) == (False, False))
                await call(cluster.apply, namespace_document(outside, mesh=mesh.root))
                await rows.until(lambda: there(rows, outside) == (True, True))
                await call(cluster.apply, namespace_document(inside, mesh="other"))
                await rows.until(lambda: there(rows, inside) == (False, False))
                assert there(rows, outside) == (True, True)
    finally:
        for name in (inside, outside):
            cluster.delete(namespace_document(name))
