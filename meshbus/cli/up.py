"""`meshbus up`: a mesh on this machine, with manifests of one's own."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from meshbus.cli.api_client import HOMES, OwnHomeOption


def up(
    file: Annotated[
        list[Path] | None,
        typer.Option("--filename", "-f", help="Manifest, or directory of manifests; repeatable."),
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
    ends everything.
    """
    from meshbus.local.api import MeshApi
    from meshbus.local.home import Home, HomeError
    from meshbus.local.progress import Progress
    from meshbus.local.up import (
        addresses_of,
        end_politely,
        end_undisturbed,
        start,
        wait_while_running,
    )

    place = Home(home)
    began = not place.locked()
    end_politely()
    try:
        with Progress() as progress:
            started = start(place, file or [], capture, progress)
        with MeshApi(place) as api:
            lines = addresses_of(place, started.status, api.url)
        for line in started.problems:
            print(f"meshbus up: {line}", file=sys.stderr)
        print("\n".join(lines), flush=True)
        if detach:
            return
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
