"""The part of a kubelet that tests need: containers of an injected pod as processes in a network
namespace, with the volumes, users, capabilities and variables that the pod says."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meshbus.inject.bootstrap import (
    FOLDER,
    ROOTS_FILE,
    ROOTS_FOLDER,
    TOKEN_FILE,
    TOKEN_FOLDER,
    bootstrap_files,
)

INIT = Path(__file__).parents[3] / "deploy" / "docker" / "init" / "meshbus-init"


def run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` as the kubelet replaces it; `$$` is a `$`, an unknown name stays."""

    def one(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)", one, text)


class PodMachine:
    """A network namespace with a cable to this one, and the volumes of a pod."""

    def __init__(
        self, folder: Path, hosts: Mapping[str, str], families: Sequence[int] = (4, 6)
    ) -> None:
        """
        Args:
            hosts: Addresses by name; `HOST` is this machine's own.
            families: Of the pod's addresses, the preferred one first.
        """
        number = os.getpid() % 200
        self.name, self._outer = f"mbpod{os.getpid()}", f"mbp{os.getpid()}"
        known = {4: f"10.213.{number}.", 6: f"fd5e:{number:x}::"}
        self.hosts = [f"{known[family]}1" for family in families]
        """Addresses of this machine that the pod reaches it by."""
        self.addresses = [f"{known[family]}2" for family in families]
        """Those of the pod."""
        self.folder = folder
        self._etc = Path("/etc/netns") / self.name
        self._made: list[Path] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._names = hosts

    @property
    def host(self) -> str:
        """The first of this machine's addresses."""
        return self.hosts[0]

    @property
    def address(self) -> str:
        """The first of the pod's addresses."""
        return self.addresses[0]

    def __enter__(self) -> "PodMachine":
        try:
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _set_up(self) -> None:
        run("ip", "netns", "add", self.name)
        peer = ("peer", "name", "eth0", "netns", self.name)
        run("ip", "link", "add", self._outer, "type", "veth", *peer)
        inside = ("ip", "-n", self.name)
        for place, addresses, device in (
            (("ip",), self.hosts, self._outer),
            (inside, self.addresses, "eth0"),
        ):
            for address in addresses:
                block = (f"{address}/64", "nodad") if ":" in address else (f"{address}/24",)
                run(*place, "addr", "add", *block, "dev", device)
            run(*place, "link", "set", device, "up")
        run(*inside, "link", "set", "lo", "up")
        for host in self.hosts:
            run(*inside, "route", "add", "default", "via", host)
        self._etc.mkdir(parents=True)
        lines = [f"{address} {name}" for name, address in self._names.items()]
        hosts = "\n".join(["127.0.0.1 localhost", *lines]).replace("HOST", self.host)
        (self._etc / "hosts").write_text(hosts + "\n")
        # What is not in it has no address, which is said at once.
        (self._etc / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        self.volumes = {
            FOLDER: self.folder / "proxy",
            ROOTS_FOLDER: self.folder / "roots",
            TOKEN_FOLDER: self.folder / "tokens",
        }
        for target, source in self.volumes.items():
            source.mkdir()
            source.chmod(0o755)
            self._make(Path(target))
        for part in [*self.folder.parents, self.folder]:
            if str(part).startswith("/tmp/"):
                part.chmod(part.stat().st_mode | 0o011)
        for name, text in bootstrap_files().items():
            (self.volumes[FOLDER] / name).write_text(text)

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        # A namespace that is deleted takes its end of the cable along, but some time later.
        for what in (("link", "del", self._outer), ("netns", "del", self.name)):
            subprocess.run(["ip", *what], check=False, capture_output=True)
        shutil.rmtree(self._etc, ignore_errors=True)
        for path in reversed(self._made):
            path.rmdir()

    def _make(self, path: Path) -> None:
        missing = [p for p in [path, *path.parents] if not p.exists()]
        for part in reversed(missing):
            part.mkdir()
            self._made.append(part)

    def give(self, roots_pem: str, token: str) -> None:
        """What the cluster puts into the volumes."""
        (self.volumes[ROOTS_FOLDER] / ROOTS_FILE).write_text(roots_pem)
        (self.volumes[TOKEN_FOLDER] / TOKEN_FILE).write_text(token)

    def variables(self, container: Mapping[str, Any], pod: Mapping[str, str]) -> dict[str, str]:
        """The environment of a container.

        Args:
            pod: Values of `fieldRef`s by path.
        """
        found: dict[str, str] = {}
        for item in container.get("env") or ():
            if "valueFrom" in item:
                found[item["name"]] = pod[item["valueFrom"]["fieldRef"]["fieldPath"]]
            else:
                found[item["name"]] = expand(item.get("value", ""), found)
        return found

    def command(
        self, container: Mapping[str, Any], pod: Mapping[str, str], command: list[str]
    ) -> tuple[list[str], dict[str, str]]:
        """How to run a command as the container's user, with its capabilities alone."""
        variables = self.variables(container, pod)
        security = container.get("securityContext") or {}
        added = (security.get("capabilities") or {}).get("add") or []
        kept = ",".join(f"+{name.lower()}" for name in added)
        user, group = str(security.get("runAsUser", 65534)), str(security.get("runAsGroup", 65534))
        mounts = "".join(
            f"mount --bind {source} {target}; " for target, source in self.volumes.items()
        )
        if security.get("readOnlyRootFilesystem"):
            mounts += "mount -o remount,bind,ro /; "
        drop = [
            *("setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs"),
            *("--bounding-set", ",".join(filter(None, ("-all", kept)))),
            *("--inh-caps", ",".join(filter(None, ("-all", kept)))),
        ]
        shell = f'{mounts}exec "$@"'
        whole = ["ip", "netns", "exec", self.name, "sh", "-c", shell, "sh", *drop, *command]
        path = {"PATH": os.environ["PATH"]}
        return whole, {**path, **variables}

    def start(
        self, container: Mapping[str, Any], pod: Mapping[str, str], *, program: list[str]
    ) -> "subprocess.Popen[bytes]":
        """Start a container; `program` stands for the image's entry point."""
        variables = self.variables(container, pod)
        arguments = [expand(text, variables) for text in container.get("args") or ()]
        command, environment = self.command(container, pod, [*program, *arguments])
        with (self.folder / f"{container['name']}.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def exec(
        self, container: Mapping[str, Any], pod: Mapping[str, str], command: list[str]
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in a container, as hooks are."""
        whole, environment = self.command(container, pod, command)
        return subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)

    def log(self, name: str) -> str:
        """What a container has written."""
        return (self.folder / f"{name}.log").read_text()

    @property
    def python(self) -> str:
        """A Python that any user may run."""
        return sys.executable
