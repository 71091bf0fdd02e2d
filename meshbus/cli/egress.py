"""`meshbus egress`: who reaches what outside the mesh."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from meshbus.cli.api_client import ApiClient, ApiError, HomeOption, end, print_json

_COLUMNS = ("FROM", "TO", "PORT", "WAY", "BY", "PROTOCOL", "CALLS", "ERRORS", "LAST")


def egress(
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Of callers. Default: all.")
    ] = "",
    way: Annotated[
        str,
        typer.Option(
            "--way",
            help="registered (by a ServiceEntry), unregistered (everything is allowed) or refused.",
        ),
    ] = "",
    output: Annotated[str, typer.Option("--output", "-o", help="table or json.")] = "table",
    home: HomeOption = None,
) -> None:
    """Who reaches what outside: by which ServiceEntry, how often, since when; what is refused.

    As far as telemetry remembers: seven days, since it was started.
    """
    try:
        with ApiClient(home) as api:
            answer = api.ask("GET", "/v1/egress", query={"namespace": namespace, "way": way})
    except ApiError as error:
        end("egress", error.message, error.code)
    if output == "json":
        print_json(answer)
        return
    rows = [_COLUMNS, *(_row(one) for one in answer["egress"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    last = datetime.fromtimestamp(one["last"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    cells = (one["source"], one["host"], one["port"], one["way"], one["by"], one["protocol"])
    return (*(str(c) or "-" for c in cells), str(one["requests"]), str(one["errors"]), last)
