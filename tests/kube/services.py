"""Services as processes of their own against a real API server, each with what RBAC grants it."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster import Cluster
from nats_process import NatsServer

from meshbus.kube.permissions import ALWAYS_CLUSTER, CLUSTER, ROOT, rules_of

_RBAC = "rbac.authorization.k8s.io/v1"


def account_of(service: str, revision: str = "") -> str:
    """The ServiceAccount of a service."""
    return f"meshbus-{service}-{revision}" if revision else f"meshbus-{service}"


def rbac_of(
    service: str,
    root: str,
    revision: str = "",
    namespaces: tuple[str, ...] = (),
    scopes: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """The ServiceAccount of a service and what it may do.

    Args:
        scopes: More that the chart grants where its values say so.
    """
    account = account_of(service, revision)
    subjects = [{"kind": "ServiceAccount", "name": account, "namespace": root}]
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": root},
        }
    ]

    def grant(kind: str, name: str, namespace: str, rules: list[dict[str, Any]]) -> None:
        if not rules:
            return
        place = {"namespace": namespace} if namespace else {}
        documents.append(
            {
                "apiVersion": _RBAC,
                "kind": kind,
                "metadata": {"name": name, **place},
                "rules": rules,
            }
        )
        documents.append(
            {
                "apiVersion": _RBAC,
                "kind": f"{kind}Binding",
                "metadata": {"name": name, **place},
                "roleRef": {"apiGroup": _RBAC.split("/")[0], "kind": kind, "name": name},
                "subjects": subjects,
            }
        )

    name = f"{account}-{root}"
    wide = rules_of(service, ALWAYS_CLUSTER, revision)
    everywhere = [r for scope in (CLUSTER, *scopes) for r in rules_of(service, scope, revision)]
    if not namespaces:
        wide += everywhere
    grant("ClusterRole", name, "", wide)
    for namespace in namespaces:
        grant("Role", name, namespace, everywhere)
    grant("Role", f"{name}-root", root, rules_of(service, ROOT, revision))
    return documents


class Process:
    """A running service."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, name: str) -> None:
        self.process = process
        self.folder = folder
        self.name = name

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.folder / "log").read_text()

    def admin(self, path: str) -> tuple[int, str]:
        """Status and text of a path of its admin port."""
        file = self.folder / f"admin-{self.name}.json"
        address = json.loads(file.read_text())["address"]
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def wait_ready(self, limit_s: float = 60) -> None:
        """Until it says that it is."""
        deadline = time.monotonic() + limit_s
        reason = ""
        while True:
            assert self.process.poll() is None, self.log
            with contextlib.suppress(OSError, ValueError):
                code, reason = self.admin("/readyz")
                if code == 200:
                    return
            assert time.monotonic() < deadline, f"not ready: {reason}\n{self.log[-4000:]}"
            time.sleep(0.02)


@contextlib.contextmanager
def serving(
    cluster: Cluster,
    nats: NatsServer,
    service: str,
    folder: Path,
    *,
    root: str,
    env: Mapping[str, str] | None = None,
    namespaces: tuple[str, ...] = (),
    pod: str = "",
    revision: str = "",
    scopes: tuple[str, ...] = (),
) -> Iterator[Process]:
    """A service, run as its ServiceAccount. `scopes`: see `rbac_of`."""
    for document in rbac_of(service, root, revision, namespaces, scopes):
        cluster.apply(document)
    folder.mkdir(parents=True, exist_ok=True)
    account = cluster.account_folder(folder / "account", root, account_of(service, revision))
    environment = {
        **os.environ,
        **cluster.pod_env(account),
        "MESHBUS_BUS_URL": nats.url,
        "MESHBUS_BUS_SEEDS": str(nats.seeds),
        "MESHBUS_STATE": str(folder),
        "MESHBUS_ADMIN": "127.0.0.1:0",
        "MESHBUS_ROOT_NAMESPACE": root,
        "MESHBUS_POD": pod or f"{service}-0",
        "MESHBUS_NAMESPACES": ",".join(namespaces),
        "MESHBUS_REVISION": revision or "default",
        **(env or {}),
    }
    with (folder / "log").open("ab") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "meshbus.cli.main", "serve", service],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        yield Process(started, folder, service)
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait(10)
