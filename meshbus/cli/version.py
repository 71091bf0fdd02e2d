"""`meshbus version`."""

from typing import Annotated

import typer

from meshbus.cli.api_client import ApiClient, ApiError, HomeOption, print_json


def version(
    output: Annotated[str, typer.Option("--output", "-o", help="text or json.")] = "text",
    home: HomeOption = None,
) -> None:
    """Print the version of this command, and of the mesh where one runs."""
    from importlib.metadata import version as installed

    client = installed("meshbus")
    server = ""
    try:
        with ApiClient(home) as api:
            answer = api.ask("GET", "/version")
            server = str(answer.get("meshbusVersion") or answer.get("gitVersion") or "")
    except ApiError:
        server = ""
    if output == "json":
        print_json({"client": client, "server": server or None})
        return
    typer.echo(f"client {client}")
    typer.echo(f"server {server or 'none found'}")
