"""A mesh on a real API server whose pods run on this machine: what the chart's webhooks inject is
carried by real Envoys."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from cluster import Cluster
from kubelet import NODE, Kubelet, bridge
from nats_process import NatsServer
from test_kube_crds import install_definitions
from webhooks import injection_values, injector_webhooks, webhook_of

from meshbus.local.network import host_port
from services import Process, serving

ROOT = "istio-system"
NAMESPACE = "bookinfo"
EDGE: list[dict[str, Any]] = [
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "edge"},
        "spec": {
            "selector": {"istio": "ingressgateway"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "https", "port": 443, "targetPort": 8443},
            ],
        },
    },
    {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "edge"},
        "spec": {
            "selector": {"matchLabels": {"app": "edge"}},
            "template": {
                "metadata": {
                    "labels": {"app": "edge", "version": "v1", "istio": "ingressgateway"},
                    "annotations": {"inject.istio.io/templates": "gateway"},
                },
                "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]},
            },
        },
    },
]
"""A gateway of one's own: its pod is made a gateway by the webhook."""


class World(NamedTuple):
    """A mesh on a cluster, and the pods of one namespace."""

    cluster: Cluster
    kubelet: Kubelet
    gateway: Process
    nats: NatsServer

    def begin(self, documents: list[dict[str, Any]], pods: int) -> None:
        """Apply documents to the namespace; until so many pods are ready."""
        manifests = yaml.safe_dump_all(documents)
        self.cluster.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=manifests)
        running = self.kubelet.pods
        self.cluster.wait(
            lambda: len(running) == pods and all(p.ready for p in [*running.values()]), 90
        )


@contextlib.contextmanager
def readable_folder() -> Iterator[Path]:
    """Envoys run as a user of their own, who may not look into the folders of pytest."""
    with tempfile.TemporaryDirectory(prefix="meshbus-pods-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@contextlib.contextmanager
def pods_mesh(cluster: Cluster, helm_program: str, folder: Path) -> Iterator[World]:
    """The control plane and its webhooks; pods have addresses of the families of the cluster.

    Args:
        folder: Of everything; `values.yaml` in it is what injection goes by.
    """
    install_definitions(cluster)
    for name, labels in ((ROOT, {}), (NAMESPACE, {"istio-injection": "enabled"})):
        metadata = {"name": name, "labels": labels}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    nats = NatsServer(folder / "nats")
    with contextlib.ExitStack() as ends:
        ends.callback(nats.kill)
        nats.start()
        address = ends.enter_context(bridge(cluster.families))
        values = folder / "values.yaml"
        values.write_text(injection_values(helm_program, ROOT))
        own = host_port(cluster.host, 0)
        api = {
            "MESHBUS_CONFIG_API": own,
            "MESHBUS_CONFIG_WEBHOOKS": own,
            "MESHBUS_CONFIG_WEBHOOK_NAMES": cluster.host,
            "MESHBUS_CONFIG_INJECTION": str(values),
        }
        listen = {"MESHBUS_XDS_GATEWAY_LISTEN": host_port(address, 15012)}
        with (
            serving(cluster, nats, "ca", folder / "ca", root=ROOT),
            serving(cluster, nats, "config", folder / "config", root=ROOT, env=api) as config,
            serving(cluster, nats, "discovery", folder / "discovery", root=ROOT),
            serving(
                cluster, nats, "xds-gateway", folder / "gateway", root=ROOT, env=listen
            ) as gateway,
        ):
            gateway.wait_ready()
            kubelet = Kubelet(cluster, NAMESPACE, folder / "pods", cluster.families)
            (folder / "pods").mkdir(mode=0o755)
            config.wait_ready()
            webhooks = injector_webhooks(helm_program, ROOT, webhook_of(folder / "config"))
            for document in webhooks:
                cluster.apply(document)
            cluster.wait(lambda: injects(cluster), 30)
            kubelet.start()
            try:
                yield World(cluster, kubelet, gateway, nats)
            finally:
                print(kubelet.problem)
                for path in sorted(folder.glob("**/*log"))[:40]:
                    tail = path.read_text(errors="replace")[-1500:]
                    print(f"--- {path.relative_to(folder)}\n{tail}")
                for document in webhooks:
                    cluster.delete(document)
                kubelet.stop()


def injects(cluster: Cluster, revision: str = "default") -> bool:
    """Whether the API server has taken up the webhooks of a revision for pods of the namespace."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "try"},
        "spec": {"containers": [{"name": "a", "image": "a"}]},
    }
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All"
    made = cluster.request("POST", path, pod)
    status = json.loads(
        made["metadata"].get("annotations", {}).get("sidecar.istio.io/status", "{}")
    )
    return status.get("revision") == revision
