"""Starts a mesh, or goes on with the one of a home: what `meshbus up` and `meshbus demo` share."""

import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from meshbus.local.api import MeshApi, notices
from meshbus.local.begin import ensure_supervisor, prepare, wait_status
from meshbus.local.end import end_mesh
from meshbus.local.home import Home, HomeError
from meshbus.local.manifests import Document
from meshbus.local.network import network_of
from meshbus.local.progress import Progress
from meshbus.local.runnable import split_runnable
from meshbus.local.status import SupervisorStatus, read_status

CONTROL_PLANE_S = 60.0
WORKLOADS_S = 60.0


class Started:
    """A mesh that runs."""

    def __init__(
        self,
        status: SupervisorStatus,
        process: "subprocess.Popen[bytes] | None",
        change: int,
        notes: list[str],
        *,
        refused: bool,
    ) -> None:
        self.status = status
        self.process = process
        """The supervisor, when this process started it."""
        self.change = change
        """Id of the change that the manifests made; 0 when there were none."""
        self.refused = refused
        """One of the documents was."""
        self.problems = [
            *notes,
            *(f"Workload {name}: {text}" for name, text in status.workload_problems.items()),
        ]
        """What was not taken, is warned of or cannot be run, a line each."""


def start(home: Home, manifests: Sequence[Document], capture: str, progress: Progress) -> Started:
    """Run the mesh of a home with these manifests, and wait until everything is ready.

    Raises:
        HomeError: What hinders; what was started goes on.
    """
    documents, notes = split_runnable(manifests)
    refused = False
    state = prepare(home, capture)
    process = ensure_supervisor(home, state)
    wait_status(
        home,
        lambda status: status.control_plane_ready,
        patience_s=CONTROL_PLANE_S,
        process=process,
        seen=progress.show,
    )
    change = 0
    with MeshApi(home) as api:
        apply_mesh_config(home, api)
        if documents:
            contents = [document.content for document in documents]
            change, results = api.apply(contents, atomic=False)
            notes += notices(documents, results)
            refused = any("error" in result for result in results)
        status = wait_workloads(home, api.newest_workload(), progress, process)
        receipt = api.receipt(status.sequence)  # from here on every proxy knows the others
    return Started(status, process, change, [*notes, *receipt.problems], refused=refused)


def wait_workloads(
    home: Home,
    newest: int,
    progress: Progress,
    process: "subprocess.Popen[bytes] | None" = None,
) -> SupervisorStatus:
    """Wait until all workloads run and are ready.

    Args:
        newest: Version of the Workload that changed last: the supervisor reads workloads, and
            sees nothing of a change to anything else.

    Raises:
        HomeError: They are not in time.
    """
    return wait_status(
        home,
        lambda status: workloads_ready(status, newest),
        patience_s=WORKLOADS_S,
        process=process,
        seen=progress.show,
        done=lambda status: sum(of.updated for of in status.workloads.values()),
    )


def workloads_ready(status: SupervisorStatus, newest: int) -> bool:
    """Everything that the Workloads up to version `newest` ask for runs.

    A Workload that cannot be run at all is shown, not waited for.
    """
    return status.synced and status.sequence >= newest and status.workloads_ready


def apply_mesh_config(home: Home, api: MeshApi) -> None:
    """Bring the mesh config of a home's settings into force, if they have one.

    Raises:
        HomeError: It is refused. To go on without it would be another mesh than was asked for.
    """
    spec = home.settings().mesh
    if not spec:
        return
    document: dict[str, Any] = {
        "apiVersion": "mesh.istio.io/v1alpha1",
        "kind": "MeshConfig",
        "metadata": {"name": "mesh"},
        "spec": spec,
    }
    try:
        api.apply([document])
    except HomeError as error:
        raise HomeError(f"{home.settings_file}: mesh: {error}") from None


def addresses_of(home: Home, status: SupervisorStatus, url: str) -> list[str]:
    """What `up` says in the end: where everything is, a line each."""
    lines = [f"API         {url}   (token in {home.api_file})"]
    lines += [
        f"gateway     http://localhost:{port}   ({name})"
        for name, port in sorted(status.forwards.items())
    ]
    lines += [f"kubectl     KUBECONFIG={home.kubeconfig_file} kubectl get virtualservices"]
    state = home.state()
    if state is not None and "dns" in state.ports:
        where = " and ".join(network_of(state).loopbacks)
        lines += [f"names       {where} port {state.ports['dns']}   (DNS of the mesh)"]
    lines += [f"logs        {home.logs}", f"end it      meshbus down --home {home.path}"]
    return lines


def end_politely() -> None:
    """SIGTERM and the end of the terminal raise KeyboardInterrupt, as Ctrl-C does.

    A hangup that `nohup` has switched off stays so. SIGINT works also where a script has started us
    in the background, which switches it off.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def wait_while_running(home: Home) -> None:
    """Until somebody else has ended the mesh.

    Raises:
        KeyboardInterrupt: It shall end now.
    """
    while not home.stopping_file.exists() and read_status(home) is not None:
        time.sleep(0.5)


def end_undisturbed(home: Home) -> None:
    """End the mesh; another Ctrl-C does not hinder it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_mesh(home)
