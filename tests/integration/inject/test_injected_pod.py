"""A pod as injection makes it, assembled from processes: capture in a network namespace, Envoy from
its wheel with the exact bootstrap and arguments, a real gateway and ca. No kubelet is here: what
it does to containers is in `pod_machine`."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from gateway_mesh import (
    CLUSTER,
    Mesh,
    config,
    endpoints,
    envoy_binary,
    free_port,
    mesh_on,
    service,
)
from pod_machine import INIT, PodMachine

from meshbus.inject import Injector, Owner
from meshbus.local.network import host_port
from meshbus.model.keys import Key
from meshbus.model.rows import WorkloadInstance, WorkloadPort

APPLICATION = Path(__file__).parent / "pod_app.py"
"""Given as text: the user that it runs as may not read this folder."""

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("iptables-restore", "nc", "setpriv"))),
        reason="needs root, iptables, nc and setpriv",
    ),
]
GATEWAY = "xds-gateway.istio-system.svc"
HTTP = {"httpGet": {"path": "/live?full=1", "port": "http",
                    "httpHeaders": [{"name": "x-probe", "value": "k"}]}}  # fmt: skip


def written(port: int, mode: str = "REDIRECT") -> dict[str, Any]:
    """A pod as people write it."""
    return {
        "metadata": {
            "name": "web-0",
            "labels": {"app": "web"},
            "annotations": {
                "proxy.istio.io/config": f"discoveryAddress: {GATEWAY}:{port}\n"
                "terminationDrainDuration: 1s\nconcurrency: 1\n",
                "sidecar.istio.io/interceptionMode": mode,
                "prometheus.io/port": "8080",
                "prometheus.io/path": "/my-metrics",
            },
        },
        "spec": {
            "serviceAccountName": "web",
            "containers": [
                {
                    "name": "app",
                    "ports": [{"name": "http", "containerPort": 8080}],
                    "livenessProbe": HTTP,
                    "readinessProbe": {"tcpSocket": {"port": 9090}},
                    "startupProbe": {"grpc": {"port": 9091}},
                },
                {
                    "name": "other",
                    "livenessProbe": {"httpGet": {"path": "/moved", "port": 8080}},
                },
            ],
        },
    }


class Pod:
    """The injected pod and where it runs."""

    def __init__(self, machine: PodMachine, port: int, *flags: str) -> None:
        values: dict[str, Any] = {"pilot": {"cni": {"enabled": "cni" in flags}}}
        owner = Owner("apps/v1", "Deployment", "web", "default")
        mode = "TPROXY" if "tproxy" in flags else "REDIRECT"
        injected = Injector(values).inject(written(port, mode), owner)
        self.machine = machine
        self.spec = injected.pod["spec"]
        self.fields = {
            "metadata.name": "web-0",
            "metadata.namespace": "default",
            "metadata.uid": "8d1e",
            "status.podIP": machine.address,
            "status.podIPs": ",".join(machine.addresses),
            "status.hostIP": machine.host,
            "spec.serviceAccountName": "web",
            "spec.nodeName": "node-1",
        }

    def container(self, name: str) -> dict[str, Any]:
        held = [*self.spec["initContainers"], *self.spec["containers"]]
        return next(c for c in held if c["name"] == name)

    def init(self) -> int:
        name = self.spec["initContainers"][0]["name"]
        process = self.machine.start(self.container(name), self.fields, program=[str(INIT)])
        return process.wait(timeout=30)

    def start(self, name: str, *program: str) -> Any:
        return self.machine.start(self.container(name), self.fields, program=list(program))

    def asks(self, address: str, path: str) -> str:
        """What the application's container gets when it asks."""
        host, _, port = address.replace("[", "").replace("]", "").rpartition(":")
        request = r"GET %s HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        script = f'exec 3<>"/dev/tcp/$0/$1"; printf "{request}" "$2" >&3; cat <&3'
        command = ["bash", "-c", script, host, port, path]
        return self.machine.exec(self.container("app"), self.fields, command).stdout

    def probe(self, container: str, kind: str) -> httpx.Response:
        """As the kubelet does it: from outside, following redirects of the host."""
        ask = self.container(container)[kind]["httpGet"]
        headers = {h["name"]: h["value"] for h in ask.get("httpHeaders", ())}
        url = f"http://{host_port(self.machine.address, ask['port'])}{ask['path']}"
        return httpx.get(url, headers=headers, timeout=3, follow_redirects=True)


@pytest_asyncio.fixture
async def mesh(bus_for: Any, tmp_path: Path) -> Any:
    async with mesh_on(bus_for, tmp_path) as running:
        await running.start()
        yield running


def rows(pod: PodMachine) -> list[Any]:
    row = WorkloadInstance(
        name="web-0",
        namespace="default",
        workload="web",
        service_account="web",
        labels={"app": "web"},
        addresses=pod.addresses,
        ports=[WorkloadPort("http", 8080, "HTTP")],
        dual_stack=len(pod.addresses) == 2,
    )
    return [
        service("web", 8080),
        endpoints("web", {"web-0": pod.address}, 8080),
        {Key(CLUSTER, "reg", "workloads", "default", "web-0"): row},
    ]


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)], ids=["ipv4", "ipv6", "both"])
async def test_a_pod_lives_its_life(mesh: Mesh, tmp_path: Path, families: tuple[int, ...]) -> None:
    (tmp_path / "pod").mkdir()
    with PodMachine(tmp_path / "pod", {GATEWAY: "HOST"}, families) as machine:
        port = free_port(machine.host)
        await mesh.write(*rows(machine))
        pod = Pod(machine, port)
        machine.give(mesh.trust.roots_pem, await mesh.token("web"))
        assert pod.init() == 0, machine.log("istio-init")
        proxy = pod.start("istio-proxy", envoy_binary())
        app = pod.container("app")
        pod.machine.start(app, pod.fields, program=[machine.python, "-c", APPLICATION.read_text()])

        def answers(container: str, kind: str, status: int = 200) -> Any:
            async def ask() -> bool:
                reply = await asyncio.to_thread(pod.probe, container, kind)
                return reply.status_code == status

            return ask

        with pytest.raises(httpx.TransportError):
            pod.probe("istio-proxy", "startupProbe")
        await mesh.start_gateway(listen=host_port(machine.host, port))
        await mesh.until(answers("istio-proxy", "startupProbe"), "the sidecar is ready", 30)
        mode = {"mtls": {"mode": "STRICT"}}
        strict = config("PeerAuthentication", "peerauthentications", "default", mode)
        await mesh.converged(await mesh.write(strict))
        for address in machine.addresses:
            with pytest.raises(httpx.TransportError):
                httpx.get(f"http://{host_port(address, 8080)}/", timeout=3)

        # Probes pass where plain text does not, and tell what the application tells.
        await mesh.until(answers("app", "livenessProbe"), "HTTP probe")
        assert pod.probe("app", "livenessProbe").text == "k"
        await mesh.until(answers("app", "readinessProbe"), "TCP probe")
        await mesh.until(answers("app", "startupProbe"), "gRPC probe")
        moved = pod.probe("other", "livenessProbe")
        assert (moved.status_code, moved.text) == (200, "landed")
        for path in ("/set/live/503", "/set/grpc/0", "/set/tcp/0"):
            pod.asks("127.0.0.1:8080", path)
        await mesh.until(answers("app", "livenessProbe", 503), "HTTP probe fails")
        await mesh.until(answers("app", "startupProbe", 503), "gRPC probe fails")
        await mesh.until(answers("app", "readinessProbe", 503), "TCP probe fails")

        # Metrics of both at one place, those of Envoy alone at another.
        def url(port: int, path: str) -> str:
            return f"http://{host_port(machine.address, port)}{path}"

        metrics = httpx.get(url(15020, "/stats/prometheus"), timeout=5)
        assert metrics.status_code == 200
        assert "my_app_total 7" in metrics.text
        assert "envoy_server_live" in metrics.text
        own = httpx.get(url(15090, "/stats/prometheus"), timeout=5).text
        assert "envoy_server_live" in own
        assert "my_app_total" not in own
        assert httpx.get(url(15020, "/nothing"), timeout=5).status_code == 404
        with pytest.raises(httpx.TransportError):
            httpx.get(url(15000, "/"), timeout=2)
        assert httpx.post(url(15020, "/quitquitquit")).status_code == 403

        # The application's own calls go through the sidecar: it is a client with an identity.
        for address in machine.addresses:
            assert "HTTP/1.1 200" in pod.asks(host_port(address, 8080), "/peer")

        # Drain: refused no connection, told to go elsewhere, unready.
        container = pod.container("istio-proxy")
        hook = container["lifecycle"]["preStop"]["exec"]["command"]
        done = await asyncio.to_thread(machine.exec, container, pod.fields, hook)
        assert done.returncode == 0, done.stderr
        assert pod.probe("istio-proxy", "readinessProbe").status_code == 503
        pod.asks("127.0.0.1:15020", "/quitquitquit")
        assert await asyncio.to_thread(proxy.wait, 10) == 0


@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
async def test_whom_the_application_sees(mesh: Mesh, tmp_path: Path, mode: str) -> None:
    """TPROXY: its client, at each address of the pod; else its proxy."""
    (tmp_path / "pod").mkdir()
    with PodMachine(tmp_path / "pod", {GATEWAY: "HOST"}) as machine:
        port = free_port(machine.host)
        await mesh.write(*rows(machine))
        pod = Pod(machine, port, mode)
        machine.give(mesh.trust.roots_pem, await mesh.token("web"))
        for _ in range(2):  # again gives the same
            assert pod.init() == 0, machine.log("istio-init")
        pod.start("istio-proxy", envoy_binary())
        app = pod.container("app")
        machine.start(app, pod.fields, program=[machine.python, "-c", APPLICATION.read_text()])
        await mesh.start_gateway(listen=host_port(machine.host, port))

        async def ready() -> bool:
            reply = await asyncio.to_thread(pod.probe, "app", "livenessProbe")
            return reply.status_code == 200

        await mesh.until(ready, "sidecar and application are ready", 30)
        for address, client in zip(machine.addresses, machine.hosts, strict=True):
            url = f"http://{host_port(address, 8080)}/client"
            seen = await asyncio.to_thread(httpx.get, url, timeout=5)
            own = "::6" if ":" in address else "127.0.0.6"
            assert seen.text == (client if mode == "tproxy" else own)
        # Its own calls to itself arrive too.
        own_call = await asyncio.to_thread(pod.asks, f"{machine.address}:8080", "/client")
        assert "HTTP/1.1 200" in own_call


async def test_where_the_node_captures_a_pod_without_capture_does_not_start(
    tmp_path: Path,
) -> None:
    (tmp_path / "pod").mkdir()
    with PodMachine(tmp_path / "pod", {}) as machine:
        pod = Pod(machine, 15012, "cni")
        validation = pod.container("istio-validation")
        assert validation["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert await asyncio.to_thread(pod.init) == 126, machine.log("istio-validation")
        classic = Pod(machine, 15012)
        assert await asyncio.to_thread(classic.init) == 0
        assert await asyncio.to_thread(pod.init) == 0, machine.log("istio-validation")


def test_bootstrap_is_json_for_every_template(tmp_path: Path) -> None:
    for template in ("sidecar", "gateway"):
        pod = written(15012)
        pod["metadata"]["annotations"]["inject.istio.io/templates"] = template
        pod["spec"]["containers"].append({"name": "istio-proxy", "image": "auto"})
        injected = Injector({}).inject(pod, Owner("apps/v1", "Deployment", "web", "default"))
        held = [
            *injected.pod["spec"].get("initContainers", ()),
            *injected.pod["spec"]["containers"],
        ]
        arguments = next(c for c in held if c["name"] == "istio-proxy")["args"]
        document = json.loads(arguments[arguments.index("--config-yaml") + 1])
        assert document["node"]["id"].startswith("router~" if template == "gateway" else "sidecar~")
