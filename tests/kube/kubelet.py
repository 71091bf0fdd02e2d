"""What a kubelet does for a test: pods of a real API server as processes of this machine.

Each pod gets a network namespace with its addresses and what its init container does, its real
Envoy with the bootstrap, ConfigMaps and bound token that its spec names, and, as the application,
the Bookinfo service that its labels name. Root, Linux.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from cluster import Cluster, Refused

from meshbus.local.binaries import find_envoy
from meshbus.local.capture import PROXY_UID
from meshbus.local.network import host_port

INIT = Path(__file__).parents[2] / "deploy" / "docker" / "init" / "meshbus-init"
"""What the image of `istio-init` runs."""
NODE = "local-node"
PREFIX = "mbk"
NETWORKS = {"IPv4": "10.166.{}.{}/16", "IPv6": "fd66:6d62:6b::{}:{}/64"}
"""Addresses of the network of the pods, of each family: two numbers, and how long the prefix is."""
BOTH = ("IPv4", "IPv6")


def _run(command: str, stdin: str = "") -> None:
    done = subprocess.run(command, shell=True, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def _blocks(families: Iterable[str], *numbers: int) -> list[str]:
    return [str(ip_interface(NETWORKS[family].format(*numbers))) for family in families]


def _addresses(families: Iterable[str], *numbers: int) -> list[str]:
    return [block.partition("/")[0] for block in _blocks(families, *numbers)]


def _at_once(block: str) -> str:
    """An IPv6 address is used without a look for somebody else who has it."""
    return " nodad" if ":" in block else ""


class RunningPod:
    """A pod that runs here."""

    def __init__(self, kubelet: "Kubelet", pod: dict[str, Any], index: int) -> None:
        self.kubelet = kubelet
        self.pod = pod
        self.name = pod["metadata"]["name"]
        self.netns = f"{PREFIX}-{index}"
        self.outer = f"{PREFIX}{index}"
        self._numbers = (1 + index // 250, 1 + index % 250)
        self.addresses = _addresses(kubelet.families, *self._numbers)
        self.folder = kubelet.folder / self.name
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ready = False
        self._envoy: list[str] = []

    @property
    def address(self) -> str:
        """The first of its addresses."""
        return self.addresses[0]

    @property
    def namespace(self) -> str:
        return str(self.pod["metadata"]["namespace"])

    def start(self) -> None:
        """Network, files, Envoy, application."""
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o755)
        hosts = Path("/etc/netns") / self.netns
        hosts.mkdir(parents=True, exist_ok=True)
        (hosts / "hosts").write_text(self.kubelet.hosts())
        # What is not in it has no address, which is said at once.
        (hosts / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        _run(f"ip netns add {self.netns}")
        _run(f"ip link add {self.outer} type veth peer name eth0 netns {self.netns}")
        _run(f"ip link set {self.outer} master {PREFIX}-br up")
        inside = f"ip -n {self.netns}"
        _run(f"{inside} link set lo up")
        families = self.kubelet.families
        for block in _blocks(families, *self._numbers):
            _run(f"{inside} addr add {block} dev eth0{_at_once(block)}")
        _run(f"{inside} link set eth0 up")
        for way in _addresses(families, 0, 1):
            _run(f"{inside} route add default via {way}")
        proxy = self._proxy()
        if proxy is not None:
            self._capture()
            self._start_envoy(proxy)
        if any(one["name"] != "istio-proxy" for one in self.pod["spec"]["containers"]):
            self._start_application()

    def _capture(self) -> None:
        for container in self.pod["spec"].get("initContainers", ()):
            if container["name"] == "istio-init":
                arguments = shlex.join(container["args"])
                _run(f"ip netns exec {self.netns} sh {INIT} {arguments}")

    def _proxy(self) -> dict[str, Any] | None:
        spec = self.pod["spec"]
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            if container["name"] == "istio-proxy":
                found: dict[str, Any] = container
                return found
        return None

    def _spawn(self, name: str, command: list[str], env: dict[str, str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", self.netns, *command],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=env,
                    cwd="/",
                )
            )

    def _start_envoy(self, container: dict[str, Any]) -> None:
        places = self._mount(container)
        env = {one["name"]: self._value(one) for one in container.get("env", ())}

        def final(text: str) -> str:
            text = re.sub(r"\$\((\w+)\)", lambda m: env.get(m[1], m[0]), text)
            for inside, outside in places.items():
                text = text.replace(inside, outside)
            return text

        arguments = [final(one) for one in container["args"]]
        command = [
            "setpriv", f"--reuid={PROXY_UID}", f"--regid={PROXY_UID}", "--clear-groups",
            find_envoy(), *arguments,
        ]  # fmt: skip
        self._envoy = command
        self._spawn("envoy", command, {"PATH": os.environ["PATH"]})

    def restart_envoy(self) -> None:
        """As when its container has ended: with the files that it had."""
        envoy = self.processes.pop(0)
        envoy.kill()
        envoy.wait(10)
        self._spawn("envoy", self._envoy, {"PATH": os.environ["PATH"]})
        self.processes.insert(0, self.processes.pop())

    def _mount(self, container: dict[str, Any]) -> dict[str, str]:
        """Files of its volumes; folder here by the path that the container sees."""
        volumes = {one["name"]: one for one in self.pod["spec"]["volumes"]}
        places: dict[str, str] = {}
        files: dict[Path, str] = {}
        for mount in container.get("volumeMounts", ()):
            volume = volumes[mount["name"]]
            folder = self.folder / mount["name"]
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
            if "configMap" in volume:
                path = (
                    f"/api/v1/namespaces/{self.namespace}/configmaps/{volume['configMap']['name']}"
                )
                self.kubelet.cluster.wait(lambda path=path: self.kubelet.cluster.exists(path), 60)
                for name, text in self.kubelet.cluster.get(path)["data"].items():
                    files[folder / name] = text
            for source in volume.get("projected", {}).get("sources", ()):
                token = source.get("serviceAccountToken")
                if token:
                    files[folder / token["path"]] = self.token(token.get("audience", ""))
            places[mount["mountPath"]] = str(folder)
        for path, text in files.items():
            for inside, outside in places.items():
                text = text.replace(inside, outside)
            path.write_text(text)
            path.chmod(0o644)
        return places

    def token(self, audience: str) -> str:
        """A token that is bound to this pod."""
        account = self.pod["spec"].get("serviceAccountName", "default")
        return self.kubelet.cluster.token(self.namespace, account, audience=audience, pod=self.pod)

    def _value(self, variable: dict[str, Any]) -> str:
        source = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        metadata, spec = self.pod["metadata"], self.pod["spec"]
        return {
            None: variable.get("value", ""),
            "metadata.name": metadata["name"],
            "metadata.namespace": metadata["namespace"],
            "metadata.uid": metadata["uid"],
            "status.podIP": self.address,
            "status.podIPs": ",".join(self.addresses),
            "status.hostIP": self.kubelet.host,
            "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
            "spec.nodeName": NODE,
        }.get(source, "")

    def _start_application(self) -> None:
        labels = self.pod["metadata"]["labels"]
        env = {
            **os.environ,
            "MESHBUS_BIND_ADDRESS": "::" if "IPv6" in self.kubelet.families else "0.0.0.0",
            "POD_NAME": self.name,
            "POD_NAMESPACE": self.namespace,
            "SERVICE_VERSION": labels.get("version", "v1"),
        }
        command = [sys.executable, "-m", f"bookinfo.{labels['app']}"]
        self._spawn("app", command, env)

    def probe(self) -> bool:
        """Envoy has its configuration, and the application answers through it."""
        where = host_port(self.address, 15021)
        try:
            with urllib.request.urlopen(f"http://{where}/healthz/ready", timeout=2):
                return True
        except OSError:
            return False

    def call(self, url: str, family: str = "") -> tuple[int, str]:
        """A request of its application: status and body.

        Args:
            family: Of the addresses that the name in the URL is looked up to; empty: any.
        """
        code = (
            "import socket, sys, urllib.request as u, urllib.error as e\n"
            "find, wanted = socket.getaddrinfo, {'IPv4': 2, 'IPv6': 10}.get(sys.argv[2], 0)\n"
            "socket.getaddrinfo = lambda host, port, family=0, *more: "
            "find(host, port, wanted, *more)\n"
            "try:\n  r = u.urlopen(sys.argv[1], timeout=10)\n"
            "  print(r.status); print(r.read().decode())\n"
            "except e.HTTPError as x: print(x.code); print(x.read().decode())\n"
            "except OSError as x: print(0); print(x)\n"
        )
        done = subprocess.run(
            ["ip", "netns", "exec", self.netns, sys.executable, "-c", code, url, family],
            capture_output=True,
            text=True,
            timeout=30,
        )
        status, _, body = done.stdout.partition("\n")
        return int(status or 0), body

    def log(self, name: str) -> str:
        """What one of its processes said."""
        return (self.folder / f"{name}.log").read_text()

    def stop(self) -> None:
        """End it and remove its network."""
        for process in self.processes:
            process.kill()
            process.wait(10)
        subprocess.run(["ip", "link", "del", self.outer], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", self.netns], capture_output=True, check=False)
        shutil.rmtree(Path("/etc/netns") / self.netns, ignore_errors=True)


class Kubelet:
    """Runs the pods of a namespace."""

    def __init__(
        self, cluster: Cluster, namespace: str, folder: Path, families: tuple[str, ...] = BOTH
    ) -> None:
        """Args:
        families: Of the addresses of its pods, the preferred one first.
        """
        self.cluster = cluster
        self.families = families
        self.host = _addresses(families, 0, 1)[0]
        """The address of this machine in the network of the pods."""
        self.namespace = namespace
        self.folder = folder
        self.gateways = {"": self.host}
        """Address of the xds-gateway of each revision, by the suffix of its name."""
        self.pods: dict[str, RunningPod] = {}
        self._index = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self.problem = ""

    def hosts(self) -> str:
        """Names that a pod resolves: services, and the xds-gateway."""
        lines = ["127.0.0.1 localhost"]
        for revision, address in self.gateways.items():
            lines.append(f"{address} xds-gateway{revision}.istio-system.svc")
        path = f"/api/v1/namespaces/{self.namespace}/services"
        for item in self.cluster.get(path)["items"]:
            name = item["metadata"]["name"]
            names = f"{name} {name}.{self.namespace}.svc.cluster.local"
            addresses = [a for a in item["spec"].get("clusterIPs", ()) if a != "None"]
            lines += [f"{address} {names}" for address in addresses]
        return "\n".join(lines) + "\n"

    def start(self) -> None:
        """Begin to run pods."""
        self._thread.start()

    def stop(self) -> None:
        """End all of them."""
        self._end.set()
        self._thread.join(30)
        for pod in self.pods.values():
            pod.stop()

    def of(self, app: str, version: str = "v1") -> RunningPod:
        """A ready pod of a Bookinfo service."""
        for pod in self.pods.values():
            labels = pod.pod["metadata"]["labels"]
            if (labels["app"], labels.get("version")) == (app, version) and pod.ready:
                return pod
        raise AssertionError(f"no ready pod of {app} {version}: {self.problem}")

    def _loop(self) -> None:
        while not self._end.wait(0.1):
            try:
                self._once()
            except (OSError, Refused, AssertionError, LookupError) as error:
                self.problem = f"{type(error).__name__}: {error}"

    def _once(self) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        items = {one["metadata"]["name"]: one for one in self.cluster.get(path)["items"]}
        for name, item in items.items():
            if item["metadata"].get("deletionTimestamp"):
                self._finish(name, f"{path}/{name}")
            elif name not in self.pods:
                self._begin(item, f"{path}/{name}")
        for pod in list(self.pods.values()):
            if pod.name not in items:
                self.pods.pop(pod.name).stop()
            elif not pod.ready and pod.probe():
                self._tell(pod, ready=True)
                pod.ready = True

    def _begin(self, item: dict[str, Any], path: str) -> None:
        name = item["metadata"]["name"]
        if not item["spec"].get("nodeName"):
            binding = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": name},
                "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
            }
            self.cluster.request("POST", f"{path}/binding", binding)
        pod = RunningPod(self, {**item, "apiVersion": "v1", "kind": "Pod"}, self._index)
        self._index += 1
        self.pods[name] = pod
        # The address first: the xds-gateway knows a proxy by its pod's row.
        self._tell(pod, ready=False)
        pod.start()

    def _finish(self, name: str, path: str) -> None:
        """A pod is asked to end: it serves until its endpoints are gone from everybody."""
        pod = self.pods.pop(name, None)
        if pod is not None:
            self._tell(pod, ready=False)
            time.sleep(0.5)  # a preStop hook, as the injected pod has one
            pod.stop()
        with contextlib.suppress(Refused):
            self.cluster.request("DELETE", f"{path}?gracePeriodSeconds=0")

    def _tell(self, pod: RunningPod, *, ready: bool) -> None:
        status = {
            "phase": "Running",
            "podIP": pod.address,
            "podIPs": [{"ip": address} for address in pod.addresses],
            "hostIP": self.host,
            "startTime": pod.pod["metadata"]["creationTimestamp"],
            "conditions": [
                {"type": kind, "status": "True" if ready or kind == "PodScheduled" else "False"}
                for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
            ],
        }
        with contextlib.suppress(Refused):
            self.cluster.request(
                "PATCH",
                f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/status",
                {"status": status},
                content_type="application/merge-patch+json",
            )


@contextlib.contextmanager
def bridge(families: tuple[str, ...] = BOTH) -> Iterator[str]:
    """The network of the pods; the first address of this machine in it."""
    _run(f"ip link add {PREFIX}-br type bridge")
    try:
        for block in _blocks(families, 0, 1):
            _run(f"ip addr add {block} dev {PREFIX}-br{_at_once(block)}")
        _run(f"ip link set {PREFIX}-br up")
        yield _addresses(families, 0, 1)[0]
    finally:
        subprocess.run(["ip", "link", "del", f"{PREFIX}-br"], capture_output=True, check=False)


@contextlib.contextmanager
def second_address() -> Iterator[str]:
    """One more address of this machine in the network of the pods."""
    (block,), (address,) = _blocks(("IPv4",), 0, 2), _addresses(("IPv4",), 0, 2)
    _run(f"ip addr add {block} dev {PREFIX}-br")
    try:
        yield address
    finally:
        _run(f"ip addr del {block} dev {PREFIX}-br")


def can_run() -> str:
    """Why pods cannot run here; empty if they can."""
    if os.geteuid() != 0 or sys.platform != "linux":
        return "pods of tests need root on Linux"
    missing = [name for name in ("ip", "iptables-restore", "setpriv") if not shutil.which(name)]
    return f"not installed: {', '.join(missing)}" if missing else ""
