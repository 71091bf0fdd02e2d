"""`meshbus up`: a mesh on this machine, with manifests of one's own."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from meshbus.cli.api_client import HOMES, NO, WRONG_USE, OwnHomeOption, end

if TYPE_CHECKING:
    from meshbus.local.manifests import Document


def up(
    file: Annotated[
        list[str] | None,
        typer.Option("--filename", "-f", help="File, directory, or - for standard input."),
    ] = None,
    home: OwnHomeOption = HOMES[0],
    capture: Annotated[
        str,
        typer.Option(
            "--capture",
            help="proxy (any user: applications use http_proxy) or netns (root: network "
            "namespaces and iptables). Default: as before, proxy the first time.",
        ),
    ] = "",
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once everything is ready.")
    ] = False,
) -> None:
    """Run the mesh of a directory: bus, services, workloads and their Envoys.

    A second `up` on the same directory goes on with what is there. Ctrl-C, or `meshbus down`,
    ends everything. Exit 1: it cannot run, a document cannot be read (nothing is started then), or,
    with --detach, one was refused; 2: wrong use.
    """
    from meshbus.local.api import MeshApi
    from meshbus.local.home import CAPTURE_MODES, Home, HomeError
    from meshbus.local.progress import Progress
    from meshbus.local.up import (
        addresses_of,
        end_politely,
        end_undisturbed,
        start,
        wait_while_running,
    )

    if capture and capture not in CAPTURE_MODES:
        end("up", f"--capture: {' or '.join(CAPTURE_MODES)}, not {capture!r}", WRONG_USE)
    manifests = _read(file or [])
    place = Home(home)
    end_politely()
    began = False
    try:
        place.create()
        began = not place.locked()
        with Progress() as progress:
            started = start(place, manifests, capture, progress)
        with MeshApi(place) as api:
            lines = addresses_of(place, started.status, api.url)
        for line in started.problems:
            print(f"meshbus up: {line}", file=sys.stderr)
        print("\n".join(lines), flush=True)
        if detach:
            raise typer.Exit(NO if started.refused else 0)
        print("Ctrl-C ends the mesh.", file=sys.stderr)
        wait_while_running(place)
    except HomeError as error:
        print(f"meshbus up: {error}", file=sys.stderr)
        if began:
            end_undisturbed(place)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("ending the mesh", file=sys.stderr)
        end_undisturbed(place)
        raise typer.Exit(130) from None


def _read(files: list[str]) -> "list[Document]":
    """The manifests. Ends the command when one cannot be read: all that cannot are told."""
    from meshbus.local.manifests import ManifestError, read

    found = list(read(files))
    errors = [item for item in found if isinstance(item, ManifestError)]
    for error in errors:
        print(f"meshbus up: {error}", file=sys.stderr)
    if errors:
        raise typer.Exit(WRONG_USE if any(error.index < 0 for error in errors) else NO)
    return [item for item in found if not isinstance(item, ManifestError)]
