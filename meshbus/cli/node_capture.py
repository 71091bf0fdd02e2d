"""`meshbus node-capture`: the agent of a node whose CNI plugin captures the traffic of pods.

The plugin is a few lines of shell that any node can run; it leaves a request in a folder and waits
for the answer. The agent looks the pod up, sets capture up in its network namespace, and keeps the
plugin in the node's chain while it runs.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

log = structlog.get_logger("node-capture")

PLUGIN = "meshbus-cni"
_LOOK_S = 0.05
_KEEP_S = 5.0
_INIT_S = 20.0
_LARGEST_REQUEST = 1 << 20


def node_capture(
    spool: Annotated[Path, typer.Option(help="Folder that the plugin and the agent share.")] = Path(
        "/run/meshbus-cni"
    ),
    cni_bin: Annotated[
        Path | None, typer.Option(help="Where the node's plugins are; left out: not installed.")
    ] = None,
    cni_conf: Annotated[Path | None, typer.Option(help="Where the node's chain is.")] = None,
    plugin: Annotated[Path, typer.Option(help="The plugin.")] = Path("/usr/local/bin/meshbus-cni"),
    init: Annotated[Path, typer.Option(help="The script that captures.")] = Path(
        "/usr/local/bin/meshbus-init"
    ),
    kubeconfig: Annotated[str, typer.Option(help="File; in a cluster it is not needed.")] = (
        "in-cluster"
    ),
) -> None:
    """Capture the traffic of this node's pods as they start; run by the chart's DaemonSet."""
    asyncio.run(_serve(spool, cni_bin, cni_conf, plugin, init, kubeconfig))


async def _serve(
    spool: Path,
    cni_bin: Path | None,
    cni_conf: Path | None,
    plugin: Path,
    init: Path,
    kubeconfig: str,
) -> None:
    from meshbus.kube.access import access_of
    from meshbus.kube.client import KubeClient

    account = os.environ.get("MESHBUS_KUBERNETES_ACCOUNT", "")
    client = KubeClient(await access_of(kubeconfig, os.environ, account), agent="meshbus/node")
    agent = Agent(client, spool, init)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(agent.run())]
            if cni_bin is not None and cni_conf is not None:
                install_plugin(plugin, cni_bin)
                tasks.append(group.create_task(_keep(cni_conf)))
            await stop.wait()
            for task in tasks:
                task.cancel()
    finally:
        # Without the agent the plugin would hold every pod of the node.
        if cni_conf is not None:
            for path in conflists(cni_conf):
                edit_chain(path, without_plugin)
        shutil.rmtree(spool / "requests", ignore_errors=True)
        await client.close()


class Agent:
    """Answers the requests in a folder."""

    def __init__(self, client: Any, spool: Path, init: Path) -> None:
        self._client = client
        self._requests, self._answers = spool / "requests", spool / "answers"
        self._init = init
        self._busy: set[str] = set()

    async def run(self) -> None:
        """Until cancelled."""
        for folder in (self._answers, self._requests):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        async with asyncio.TaskGroup() as group:
            while True:
                for path in self._requests.iterdir():
                    if not path.name.startswith(".") and path.name not in self._busy:
                        self._busy.add(path.name)
                        group.create_task(self._answer(path))
                await asyncio.sleep(_LOOK_S)

    async def _answer(self, path: Path) -> None:
        try:
            if path.stat().st_size > _LARGEST_REQUEST:
                raise ValueError("the request is too large")
            head, _, body = path.read_text().partition("\n\n")
            fields = dict(line.partition("=")[::2] for line in head.splitlines())
            config = json.loads(body)
            await self._capture(fields)
            result = config.get("prevResult") or {}
            text = "ok\n" + json.dumps({**result, "cniVersion": config.get("cniVersion", "1.0.0")})
        except FileNotFoundError:
            self._busy.discard(path.name)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the kubelet hears of it
            log.warning("not captured", request=path.name, error=str(error))
            said = {"cniVersion": "1.0.0", "code": 11, "msg": f"meshbus: {error}"}
            text = "failed\n" + json.dumps(said)
        aside = self._answers / f".{path.name}"
        aside.write_text(text + "\n")
        path.unlink(missing_ok=True)
        aside.rename(self._answers / path.name)
        self._busy.discard(path.name)

    async def _capture(self, fields: dict[str, str]) -> None:
        from meshbus.inject.capture import node_capture_args
        from meshbus.kube.client import object_path

        known = dict(part.partition("=")[::2] for part in fields.get("args", "").split(";"))
        namespace, name = known.get("K8S_POD_NAMESPACE", ""), known.get("K8S_POD_NAME", "")
        if not namespace or not name:
            return
        pod = json.loads(await self._client.get(object_path("", "v1", "pods", namespace, name)))
        arguments = node_capture_args(pod)
        if arguments is None:
            return
        process = await asyncio.create_subprocess_exec(
            *("nsenter", f"--net={fields.get('netns')}", "--", str(self._init), *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(_INIT_S):
                said, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise RuntimeError(said.decode(errors="replace").strip()[-500:])
        log.info("captured", namespace=namespace, pod=name)


async def _keep(folder: Path) -> None:
    """Keep the plugin in the chain, also when the network's own installer writes it anew."""
    while True:
        for path in conflists(folder)[:1]:
            edit_chain(path, with_plugin)
        await asyncio.sleep(_KEEP_S)


def install_plugin(plugin: Path, folder: Path) -> None:
    """Put the plugin where the node's are, whole."""
    aside = folder / f".{PLUGIN}"
    shutil.copyfile(plugin, aside)
    aside.chmod(0o755)
    aside.rename(folder / PLUGIN)


def conflists(folder: Path) -> list[Path]:
    """The chains of a node; the first one counts."""
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.suffix == ".conflist")
    return []


def with_plugin(chain: dict[str, Any]) -> dict[str, Any]:
    """A chain with the plugin last."""
    others = without_plugin(chain)["plugins"]
    return {**chain, "plugins": [*others, {"type": PLUGIN, "name": PLUGIN}]}


def without_plugin(chain: dict[str, Any]) -> dict[str, Any]:
    """A chain without the plugin."""
    return {**chain, "plugins": [p for p in chain.get("plugins", []) if p.get("type") != PLUGIN]}


def edit_chain(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write a chain anew, whole, if it changes."""
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        log.warning("the chain cannot be read", path=str(path), error=str(error))
        return
    wanted = change(held)
    if wanted == held:
        return
    aside = path.with_name(f".{path.name}.meshbus")
    aside.write_text(json.dumps(wanted, indent=2) + "\n")
    aside.chmod(path.stat().st_mode & 0o777)
    aside.rename(path)
