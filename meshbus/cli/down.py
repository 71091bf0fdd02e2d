"""`meshbus down`: ends the mesh of a directory."""

import sys

import typer

from meshbus.cli.api_client import HOMES, OwnHomeOption


def down(
    home: OwnHomeOption = HOMES[0],
) -> None:
    """End every process, network namespace and rule of a mesh; its data stays for the next `up`."""
    from meshbus.local.end import end_mesh, left_over
    from meshbus.local.home import Home, HomeError

    place = Home(home)
    try:
        ended = end_mesh(place)
    except HomeError as error:
        print(f"meshbus down: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    what = f"{len(ended)} processes have ended" if ended else "nothing runs"
    print(f"{what} in {place.path}", file=sys.stderr)
    remaining = left_over(place)
    if remaining:
        print(f"meshbus down: still running: {', '.join(map(str, remaining))}", file=sys.stderr)
        raise typer.Exit(1)
