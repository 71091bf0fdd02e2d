"""Injection by a real API server: whom its webhooks choose, as the chart writes them, what pods
get, and what stands in their namespaces."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from cluster import Cluster, Refused
from forwarding import service
from nats_process import NatsServer
from test_kube_chart import helm_program, sets
from test_kube_crds import install_definitions
from webhooks import injector_webhooks, webhook_of

from services import Process, serving

__all__ = ["helm_program"]
pytestmark = [pytest.mark.real, pytest.mark.slow]


class Injection(NamedTuple):
    """A control plane that injects, and its webhooks of one revision."""

    cluster: Cluster
    root: str
    config: Process
    binary: str
    webhook: dict[str, str]
    values: Path

    def webhooks(self, *flags: str) -> list[dict[str, Any]]:
        """The webhook configurations that the chart renders, with the address of the process."""
        return injector_webhooks(self.binary, self.root, self.webhook, *flags)

    def create(self, namespace: str, labels: dict[str, str], **spec: Any) -> dict[str, Any]:
        """A pod as the API server would keep it."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "web", "labels": labels},
            "spec": {"containers": [{"name": "web", "image": "web"}], **spec},
        }
        path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
        return dict(self.cluster.request("POST", path, pod))


def injected(pod: dict[str, Any]) -> bool:
    names = [c["name"] for c in pod["spec"].get("initContainers", ())]
    return "istio-proxy" in names


def until(holds: Callable[[], Any], what: str, limit_s: float = 30) -> Any:
    deadline = time.monotonic() + limit_s
    while True:
        if value := holds():
            return value
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def root(cluster: Cluster) -> Iterator[str]:
    document = {"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": f"root-{uuid4().hex[:8]}"}}  # fmt: skip
    cluster.apply(document)
    yield document["metadata"]["name"]  # type: ignore[index, misc]
    cluster.delete(document)


@pytest.fixture
def injection(
    cluster: Cluster, helm_program: str, root: str, nats_server: NatsServer, tmp_path: Path
) -> Iterator[Injection]:
    install_definitions(cluster)
    values = tmp_path / "values.yaml"
    values.write_text("global: {meshID: m1}\n")
    env = {
        "MESHBUS_CONFIG_API": "127.0.0.1:0",
        "MESHBUS_CONFIG_WEBHOOKS": "127.0.0.1:0",
        "MESHBUS_CONFIG_WEBHOOK_NAMES": "127.0.0.1",
        "MESHBUS_CONFIG_INJECTION": str(values),
    }
    with (
        serving(cluster, nats_server, "ca", tmp_path / "ca", root=root),
        serving(cluster, nats_server, "config", tmp_path / "config", root=root, env=env) as config,
    ):
        config.wait_ready()
        yield Injection(
            cluster, root, config, helm_program, webhook_of(tmp_path / "config"), values
        )


@pytest.fixture
def spaces(cluster: Cluster) -> Iterator[Callable[[dict[str, str]], str]]:
    """Makes namespaces with labels."""
    made = []

    def make(labels: dict[str, str]) -> str:
        name = f"inject-{uuid4().hex[:8]}"
        document = {"apiVersion": "v1", "kind": "Namespace",
                    "metadata": {"name": name, "labels": labels}}  # fmt: skip
        cluster.apply(document)
        made.append(document)
        until(lambda: cluster.exists(f"/api/v1/namespaces/{name}/serviceaccounts/default"), "SA")
        return name

    yield make
    for document in made:
        cluster.delete(document)


@pytest.fixture
def applied(cluster: Cluster) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Applies webhook configurations, and takes them away."""
    made: list[dict[str, Any]] = []

    def apply(documents: list[dict[str, Any]]) -> None:
        for document in documents:
            made.append(document)
            cluster.apply(document)

    yield apply
    for document in made:
        cluster.delete(document)


ON, OFF = {"istio-injection": "enabled"}, {"istio-injection": "disabled"}
YES, NO = {"sidecar.istio.io/inject": "true"}, {"sidecar.istio.io/inject": "false"}
REV = "istio.io/rev"
MATRIX = [
    # namespace, pod, default revision, revision blue, namespaces by default
    ({}, {}, False, False, True),
    (ON, {}, True, False, True),
    (OFF, {}, False, False, False),
    ({REV: "blue"}, {}, False, True, False),
    ({REV: "default"}, {}, True, False, True),
    ({REV: "prod"}, {}, False, True, False),
    ({**ON, REV: "blue"}, {}, True, False, True),
    ({**OFF, REV: "blue"}, {}, False, False, False),
    ({}, YES, True, False, True),
    ({}, NO, False, False, False),
    (ON, NO, False, False, False),
    (ON, YES, True, False, True),
    (OFF, YES, False, False, False),
    ({}, {REV: "blue"}, False, True, False),
    ({}, {**NO, REV: "blue"}, False, False, False),
    ({}, {**YES, REV: "blue"}, False, True, False),
    ({REV: "blue"}, NO, False, False, False),
    ({REV: "blue"}, {REV: "default"}, False, True, False),
]


def test_webhooks_choose_as_istios_do(
    injection: Injection,
    spaces: Callable[[dict[str, str]], str],
    applied: Callable[[list[dict[str, Any]]], None],
    cluster: Cluster,
) -> None:
    names = {}
    for labels, *_ in MATRIX:
        key = json.dumps(labels, sort_keys=True)
        if key not in names:
            names[key] = spaces(labels)
    settings = (
        (),
        sets("revision=blue", "revisionTags={prod}"),
        sets("sidecarInjectorWebhook.enableNamespacesByDefault=true"),
    )
    for column, flags in enumerate(settings, 2):
        documents = injection.webhooks(*flags)
        applied(documents)

        def answers(expected: int = column) -> list[Any]:
            wrong = []
            for row in MATRIX:
                space = names[json.dumps(row[0], sort_keys=True)]
                if injected(injection.create(space, row[1])) is not row[expected]:
                    wrong.append(row)
            return wrong

        # The API server takes up a new configuration after a moment.
        until(lambda: not answers(), f"column {column}: {answers()}")
        for document in documents:
            cluster.delete(document)
        probe = spaces({**ON, REV: "blue"})

        def gone(space: str = probe) -> bool:
            return not injected(injection.create(space, {}))

        until(gone, "the configuration is gone")


def test_pods_get_what_they_need(
    injection: Injection,
    spaces: Callable[[dict[str, str]], str],
    applied: Callable[[list[dict[str, Any]]], None],
    cluster: Cluster,
) -> None:
    space = spaces(ON)
    applied(injection.webhooks())
    until(lambda: injected(injection.create(space, {"app": "web"})), "injection")
    pod = injection.create(space, {"app": "web"})
    proxy = next(c for c in pod["spec"]["initContainers"] if c["name"] == "istio-proxy")
    variables = {v["name"]: v.get("value") for v in proxy["env"]}
    assert variables["ISTIO_META_MESH_ID"] == "m1"

    # What its volumes name is there, also after somebody has deleted it.
    maps = {v["configMap"]["name"] for v in pod["spec"]["volumes"] if "configMap" in v}
    assert maps == {"meshbus-proxy", "meshbus-ca-root-cert"}
    for name in maps:
        path = f"/api/v1/namespaces/{space}/configmaps/{name}"
        until(lambda path=path: cluster.exists(path), f"{name} is written")
        held = cluster.get(path)
        cluster.delete({**held, "apiVersion": "v1", "kind": "ConfigMap"})
        until(lambda path=path: cluster.exists(path), f"{name} is written again")
    roots = cluster.get(f"/api/v1/namespaces/{space}/configmaps/meshbus-ca-root-cert")["data"]
    assert "BEGIN CERTIFICATE" in roots["root-cert.pem"]

    # Settings are taken up while it runs; bad ones leave the last good ones.
    injection.values.write_text("global: {meshID: m2}\n")

    def mesh_id() -> str:
        made = injection.create(space, {"app": "web"})
        found = next(c for c in made["spec"]["initContainers"] if c["name"] == "istio-proxy")
        return next(v["value"] for v in found["env"] if v["name"] == "ISTIO_META_MESH_ID")

    assert mesh_id() == "m2"
    injection.values.write_text("global: {proxy: {autoInject: perhaps}}\n")
    assert mesh_id() == "m2"
    injection.values.write_text("{}")
    config = {
        "apiVersion": "networking.istio.io/v1beta1",
        "kind": "ProxyConfig",
        "metadata": {"name": "own", "namespace": space},
        "spec": {"concurrency": 3, "environmentVariables": {"FROM": "proxyconfig"}},
    }
    cluster.apply(config)

    def configured() -> bool:
        made = injection.create(space, {"app": "web"})
        found = next(c for c in made["spec"]["initContainers"] if c["name"] == "istio-proxy")
        at = found["args"].index("--concurrency") + 1
        return found["args"][at] == "3" and {"name": "FROM", "value": "proxyconfig"} in found["env"]

    until(configured, "the ProxyConfig of the namespace counts")

    # What cannot be done is refused with its reason; without a webhook nothing starts uncaptured.
    bad = {"traffic.sidecar.istio.io/includeInboundPorts": "x"}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad", "annotations": bad},
            "spec": {"containers": [{"name": "a", "image": "a"}]}}  # fmt: skip
    path = f"/api/v1/namespaces/{space}/pods?dryRun=All"
    with pytest.raises(Refused) as refused:
        cluster.request("POST", path, body)
    assert "includeInboundPorts" in refused.value.body
    injection.config.process.kill()
    injection.config.process.wait()
    with pytest.raises(Refused):
        injection.create(space, {"app": "web"})
    assert not injected(injection.create(injection.root, {"app": "web"}))


def test_a_webhook_replica_dies_during_admissions(
    injection: Injection,
    nats_server: NatsServer,
    spaces: Callable[[dict[str, str]], str],
    applied: Callable[[list[dict[str, Any]]], None],
    cluster: Cluster,
    tmp_path: Path,
) -> None:
    """Two replicas behind one address: what is admitted has its sidecar, before, while and after
    one of them dies; with both gone nothing is admitted."""
    space = spaces(ON)
    env = {
        "MESHBUS_CONFIG_API": "127.0.0.1:0",
        "MESHBUS_CONFIG_WEBHOOKS": "127.0.0.1:0",
        "MESHBUS_CONFIG_WEBHOOK_NAMES": "127.0.0.1",
        "MESHBUS_CONFIG_INJECTION": str(injection.values),
    }
    with serving(
        cluster, nats_server, "config", tmp_path / "second", root=injection.root, env=env,
        pod="config-1",
    ) as second:  # fmt: skip
        second.wait_ready()
        replicas = [injection.webhook, webhook_of(tmp_path / "second")]
        ports = [int(one["url"].rpartition(":")[2]) for one in replicas]
        with service(ports) as port:
            address = {**injection.webhook, "url": f"https://127.0.0.1:{port}"}
            applied(injector_webhooks(injection.binary, injection.root, address))
            until(lambda: injected(injection.create(space, {"app": "web"})), "injection")
            outcomes: list[str] = []
            ended = threading.Event()

            def create() -> None:
                while not ended.is_set():
                    try:
                        made = injection.create(space, {"app": "web"})
                    except Refused:
                        outcomes.append("refused")
                    else:
                        outcomes.append("injected" if injected(made) else "BARE")

            threads = [threading.Thread(target=create) for _ in range(4)]
            for thread in threads:
                thread.start()
            try:
                until(lambda: outcomes.count("injected") > 20, "some are admitted")
                injection.config.process.kill()
                injection.config.process.wait()
                after = len(outcomes)
                until(lambda: outcomes[after:].count("injected") > 20, "the other one goes on", 60)
                second.process.kill()
                second.process.wait()
                until(lambda: outcomes[-8:] == ["refused"] * 8, "nobody is admitted")
            finally:
                ended.set()
                for thread in threads:
                    thread.join()
            assert "BARE" not in outcomes
