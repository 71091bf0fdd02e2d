"""`meshbus certs`: which certificates were issued, and the change of roots."""

import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from meshbus.cli.api_client import NO, ApiClient, ApiError, HomeOption, end, print_json
from meshbus.cli.objects import print_columns

certs = typer.Typer(
    no_args_is_help=True, help="List the certificates that were issued; change the root."
)
_PATH = "/v1/certificates"
_TIME_FIELDS = ("issued", "not_before", "not_after")
OutputOption = Annotated[str, typer.Option("--output", "-o", help="table or json.")]


class RotationAction(StrEnum):
    """What to do."""

    STATUS = "status"
    START = "start"


@certs.command("list")
def list_certificates(
    identity: Annotated[str, typer.Option(help="SPIFFE id; all if left out.")] = "",
    at: Annotated[
        str, typer.Option(help="Valid at this time: RFC 3339, or so long ago (5m, 2h, 1d).")
    ] = "",
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=1000)] = 50,
    output: OutputOption = "table",
    home: HomeOption = None,
) -> None:
    """List certificates, newest first."""
    query = {"limit": str(limit)}
    if at:
        query["at"] = at
    if identity:
        query["identity"] = identity
    document = _ask("certs list", "GET", _PATH, query, home)
    if output == "json":
        print_json(document)
        return
    lines = [["IDENTITY", "WORKLOAD", "SERIAL", "ISSUED", "ENDS", "ASKED BY", "PROOF"]]
    lines += [
        [
            record["identity"],
            record.get("subject") or "-",
            record["serial"],
            _time(record["issued"]),
            _time(record["not_after"]),
            record.get("pod") or record["asker"],
            record["proof"],
        ]
        for record in document["certificates"]
    ]
    print_columns(lines)
    if not document.get("complete", True):
        typer.echo("there are more: see --limit and --at", err=True)


@certs.command("show")
def show(
    serial: Annotated[str, typer.Argument(help="As `certs list` has it.")],
    output: OutputOption = "table",
    home: HomeOption = None,
) -> None:
    """Show the record of one certificate."""
    found = _ask("certs show", "GET", _PATH, {"serial": serial, "limit": "1"}, home)
    if not found["certificates"]:
        end("certs show", f"no certificate with serial {serial} is in the ledger", NO)
    record = found["certificates"][0]
    if output == "json":
        print_json(record)
        return
    print_columns(
        [
            [name, _time(value) if name in _TIME_FIELDS else _text(value)]
            for name, value in record.items()
        ]
    )


@certs.command("rotation")
def rotation(
    action: Annotated[RotationAction, typer.Argument(help="What to do.")] = RotationAction.STATUS,
    output: OutputOption = "table",
    home: HomeOption = None,
) -> None:
    """Show how far the change of roots is, or start one."""
    method = "POST" if action is RotationAction.START else "GET"
    document = _ask("certs rotation", method, f"{_PATH}/rotation", {}, home)
    if output == "json":
        print_json(document)
        return
    lines = [
        ["phase", document["phase"]],
        ["waits for", document["waiting"] or "-"],
        ["ca", document["kind"]],
        ["root", f"{document['root'][:16]}, ends {_time(document['root_ends'])}"],
        ["signer", f"{document['signer'][:16]}, ends {_time(document['signer_ends'])}"],
    ]
    if document["next_root"]:
        lines.append(["next root", document["next_root"][:16]])
        lines.append(["since", _time(document["since"])])
    print_columns(lines)
    for warning in document["warnings"]:
        typer.echo(f"warning: {warning}", err=True)


def _ask(name: str, method: str, path: str, query: dict[str, str], home: Any) -> Any:
    try:
        with ApiClient(home) as api:
            return api.ask(method, path, query=query)
    except ApiError as error:
        end(name, error.message, NO)


def _time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
