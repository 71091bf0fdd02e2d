"""`meshbus certs`: which certificates were issued and revoked, and the change of roots."""

import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from meshbus.cli.api_client import NO, WRONG_USE, ApiClient, ApiError, HomeOption, end, print_json
from meshbus.cli.objects import print_columns
from meshbus.cli.own_key import CHAIN_FILE, OwnKeyError, request_certificate

certs = typer.Typer(
    no_args_is_help=True,
    help="List the certificates that were issued; revoke them; change the root.",
)
_PATH = "/v1/certificates"
_REVOCATIONS = f"{_PATH}/revocations"
_TIME_FIELDS = ("issued", "not_before", "not_after", "at", "ends")
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
    lines = [["IDENTITY", "WORKLOAD", "SERIAL", "ISSUED", "ENDS", "STATUS", "ASKED BY", "PROOF"]]
    now = datetime.datetime.now(datetime.UTC).timestamp()
    lines += [
        [
            record["identity"],
            record.get("subject") or "-",
            record["serial"],
            _time(record["issued"]),
            _time(record["not_after"]),
            _status(record, now),
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
            for name, value in {**record, "revoked": _since(record)}.items()
        ]
    )


@certs.command("revoke")
def revoke(
    serial: Annotated[str, typer.Argument(help="One certificate.")] = "",
    identity: Annotated[
        str, typer.Option(help="All of a SPIFFE id, which gets none until it is allowed again.")
    ] = "",
    reason: Annotated[str, typer.Option(help="Why; goes into the record.")] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also if others would be refused with it.")
    ] = False,
    output: OutputOption = "table",
    home: HomeOption = None,
) -> None:
    """Revoke a certificate, or an identity: proxies refuse it on new connections."""
    if bool(serial) == bool(identity):
        end("certs revoke", "SERIAL or --identity is needed, one of them", WRONG_USE)
    body = {"serial": serial, "identity": identity, "reason": reason, "force": force}
    document = _ask("certs revoke", "POST", _REVOCATIONS, {}, home, body)
    if output == "json":
        print_json(document)
        return
    typer.echo(f"{document['added']} certificates revoked")
    if identity:
        typer.echo(f"{identity} is blocked; `meshbus certs allow {identity}` lets it in again")


@certs.command("allow")
def allow(
    identity: Annotated[str, typer.Argument(help="SPIFFE id.")],
    output: OutputOption = "table",
    home: HomeOption = None,
) -> None:
    """Let a blocked identity have certificates again; those that were revoked stay so."""
    document = _ask("certs allow", "DELETE", _REVOCATIONS, {"identity": identity}, home)
    if output == "json":
        print_json(document)
        return
    typer.echo(f"{identity} may have certificates")


@certs.command("revoked")
def revoked(output: OutputOption = "table", home: HomeOption = None) -> None:
    """List what is revoked and has not ended, and who is blocked."""
    document = _ask("certs revoked", "GET", _REVOCATIONS, {}, home)
    if output == "json":
        print_json(document)
        return
    lines = [["IDENTITY", "SERIAL", "REVOKED", "ENDS"]]
    lines += [
        [one["identity"], one["serial"], _time(one["at"]), _time(one["ends"])]
        for one in document["certificates"]
    ]
    print_columns(lines)
    for identity in document["blocked"]:
        typer.echo(f"blocked: {identity}")


@certs.command("bundle")
def bundle(
    output: Annotated[
        str, typer.Option("--output", "-o", help="pem, spiffe (a SPIFFE bundle), table or json.")
    ] = "pem",
    home: HomeOption = None,
) -> None:
    """Print what this mesh is checked with, for other meshes; `table`: those that it trusts."""
    document = _ask("certs bundle", "GET", f"{_PATH}/bundle", {}, home)
    if output == "json":
        print_json(document)
    elif output == "spiffe":
        print_json(document["spiffe"])
    elif output == "pem":
        typer.echo(document["roots_pem"], nl=False)
    else:
        lines = [["TRUST DOMAIN", "ROOTS", "SEQUENCE", "GOT", "PROBLEM"]]
        lines += [
            [
                one["trustDomain"],
                str(one["roots"]),
                str(one["sequence"]),
                _time(one["fetched"]) if one["fetched"] else "-",
                one["problem"] or "-",
            ]
            for one in document.get("others", [])
        ]
        print_columns(lines)


@certs.command("request")
def request(
    ca: Annotated[str, typer.Option(help="HOST:PORT of CreateCertificate.")],
    roots: Annotated[Path, typer.Option(help="Roots of the mesh (PEM).")],
    out: Annotated[Path, typer.Option(help="Directory for cert-chain.pem and key.pem.")],
    token: Annotated[
        Path | None, typer.Option(help="File with a token; left out: renew with what is in --out.")
    ] = None,
    ttl: Annotated[int, typer.Option(help="Life in seconds.", min=60)] = 86400,
) -> None:
    """Make a key on this machine and have its certificate signed: the key stays here."""
    try:
        ends = request_certificate(ca, roots, out, token, ttl)
    except OwnKeyError as error:
        end("certs request", str(error), NO)
    typer.echo(f"{out / CHAIN_FILE}: until {_time(ends)}")


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


def _status(record: Any, now: float) -> str:
    if record.get("revoked"):
        return "revoked"
    return "ended" if record["not_after"] <= now else "valid"


def _since(record: Any) -> str:
    return _time(record["revoked"]) if record.get("revoked") else "-"


def _ask(
    name: str, method: str, path: str, query: dict[str, str], home: Any, body: Any = None
) -> Any:
    try:
        with ApiClient(home) as api:
            return api.ask(method, path, query=query, body=body)
    except ApiError as error:
        end(name, error.message, NO)


def _time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
