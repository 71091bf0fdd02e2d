"""`meshbus events`: follow what happens in the mesh."""

import json
from typing import Annotated, Any

import typer

from meshbus.cli.api_client import ApiClient, ApiError, HomeOption, end


def events(
    filter: Annotated[
        str,
        typer.Option(
            "--filter",
            help="kind=, namespace=, name=, verb= with shell patterns, joined by commas: "
            "'kind=VirtualService,verb=nack*'.",
        ),
    ] = "",
    since: Annotated[
        str, typer.Option("--since", help="Also past ones: 10m, 2h, or an RFC 3339 time.")
    ] = "",
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Go on with those to come.")
    ] = True,
    output: Annotated[str, typer.Option("--output", "-o", help="text or json (lines).")] = "text",
    home: HomeOption = None,
) -> None:
    """Print events as they come: applied, deleted, rejected, converged, nacked, registered..."""
    query = {"filter": filter, "follow": str(follow).lower()}
    if since:
        query["since"] = since
    elif not follow:
        query["since"] = "1h"
    try:
        with ApiClient(home) as api:
            for line in api.stream("/v1/events", query):
                if line.startswith("data:"):
                    text = line.removeprefix("data:").strip()
                    typer.echo(text if output == "json" else _line(json.loads(text)))
    except ApiError as error:
        end("events", error.message, error.code)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _line(event: dict[str, Any]) -> str:
    kind, _, verb = str(event.get("type", "")).removeprefix("io.meshbus.").rpartition(".")
    data = event.get("data") or {}
    details = " ".join(f"{k}={_short(v)}" for k, v in data.items() if v not in (None, "", [], {}))
    return f"{event.get('time')}  {verb:<10}  {kind} {event.get('subject')}  {details}".rstrip()


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return text if len(text) <= 160 else text[:157] + "..."
