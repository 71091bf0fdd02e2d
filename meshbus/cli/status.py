"""`meshbus status`: what of a mesh of this machine runs, and what it waits for."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshbus.cli.api_client import NO, ApiError, HomeOption, end, find_of_home, print_json
from meshbus.cli.objects import print_columns

if TYPE_CHECKING:
    from meshbus.local.status import SupervisorStatus


def status(
    output: Annotated[str, typer.Option("--output", "-o", help="table or json.")] = "table",
    home: HomeOption = None,
) -> None:
    """Show the services, workloads and instances of a mesh on this machine. Exit 1: something is
    not ready, or does not run yet what was asked for last."""
    from meshbus.local.home import Home
    from meshbus.local.status import read_status

    try:
        place = Home(find_of_home(home, "run/status.json").parent.parent)
    except ApiError as error:
        end("status", error.message, NO)
    found = read_status(place)
    if found is None or not place.locked():
        end("status", f"{place.path}: the supervisor does not run: `meshbus up` starts it", NO)
    ready = found.control_plane_ready and found.workloads_ready and not found.workload_problems
    if output == "json":
        print_json({"ready": ready, **_document(found)})
    else:
        _print(found)
    if not ready:
        raise typer.Exit(NO)


def _document(status: "SupervisorStatus") -> dict[str, Any]:
    return {
        "services": status.services,
        "workloads": {
            name: {
                "replicas": of.replicas,
                "updated": of.updated,
                "ready": of.ready,
                "waitsFor": of.waits_for,
            }
            for name, of in status.workloads.items()
        },
        "instances": {
            name: {
                "ready": of.ready,
                "problem": of.problem,
                "addresses": of.addresses,
                "restarts": of.restarts,
            }
            for name, of in status.instances.items()
        },
        "problems": status.workload_problems,
    }


def _print(status: "SupervisorStatus") -> None:
    lines = [["SERVICE", "READY", "WAITS FOR"]]
    lines += [[name, _yes(not problem), problem] for name, problem in status.services.items()]
    print_columns(lines)
    print()
    lines = [["WORKLOAD", "READY", "UP TO DATE", "WAITS FOR"]]
    lines += [
        [name, f"{of.ready}/{of.replicas}", f"{of.updated}/{of.replicas}", of.waits_for]
        for name, of in status.workloads.items()
    ]
    lines += [[name, "-", "-", problem] for name, problem in status.workload_problems.items()]
    print_columns(lines)
    print()
    lines = [["INSTANCE", "READY", "RESTARTS", "ADDRESS", "WAITS FOR"]]
    lines += [
        [name, _yes(of.ready), str(of.restarts), of.addresses[0], of.problem]
        for name, of in status.instances.items()
    ]
    print_columns(lines)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
