"""`meshbus authz`: who may do what, and why."""

import json
from typing import Annotated, Any

import typer

from meshbus.cli.api_client import (
    NO,
    WRONG_USE,
    ApiClient,
    ApiError,
    HomeOption,
    end,
    find_api,
    print_json,
)
from meshbus.local.manifests import ManifestError, load

authz = typer.Typer(no_args_is_help=True, help="Ask whether a request would be let in, and why.")
_CHECK = "/v1/authz/check"
OutputOption = Annotated[str, typer.Option("--output", "-o", help="text or json.")]


@authz.command("check")
def check(
    to: Annotated[
        str, typer.Option("--to", help="NAMESPACE/WORKLOAD[:PORT]; a service is taken too.")
    ],
    caller: Annotated[
        str, typer.Option("--from", help="NAMESPACE/SERVICE_ACCOUNT; left out: plain text.")
    ] = "",
    method: Annotated[str, typer.Option(help="HTTP method.")] = "GET",
    path: Annotated[str, typer.Option(help="Path, with its query.")] = "/",
    host: Annotated[str, typer.Option(help="Host; that of the workload if left out.")] = "",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="NAME: VALUE or NAME=VALUE.")
    ] = None,
    jwt_claims: Annotated[
        str, typer.Option("--jwt-claims", help="JSON of the claims of a valid token.")
    ] = "",
    source_ip: Annotated[str, typer.Option(help="Address of the connection.")] = "",
    remote_ip: Annotated[str, typer.Option(help="Address of the original client.")] = "",
    sni: Annotated[str, typer.Option(help="Server name of the connection.")] = "",
    filename: Annotated[
        list[str] | None,
        typer.Option("--filename", "-f", help="Answer as if these were applied."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask the files alone, no running mesh.")
    ] = False,
    output: OutputOption = "text",
    home: HomeOption = None,
) -> None:
    """Say whether a request would be allowed, and by which rule of which object.

    Exit 0: allowed, or an external provider decides; 1: denied; 2: wrong use.
    """
    target, port = _target(to)
    question: dict[str, Any] = {
        "to": target,
        "from": caller,
        "port": port,
        "method": method,
        "path": path,
        "host": host,
        "headers": _headers(header or []),
        "claims": _claims(jwt_claims),
        "sourceIp": source_ip,
        "remoteIp": remote_ip,
        "sni": sni,
    }
    try:
        documents = [d.content for d in load(filename)] if filename else []
    except ManifestError as error:
        end("authz check", str(error), WRONG_USE)
    if offline and not documents:
        end("authz check", "--offline needs -f", WRONG_USE)
    if documents and not offline and not _running(home):
        typer.echo("no mesh runs: the files alone are asked", err=True)
        offline = True
    answer = _alone(documents, question) if offline else _live(documents, question, home)
    if output == "json":
        print_json(answer)
    else:
        _print(answer)
    raise typer.Exit(NO if answer["outcome"] == "denied" else 0)


@authz.command("suggest")
def suggest(
    since: Annotated[str, typer.Option(help="So long ago (30m, 1h, 1d) or an RFC 3339 time.")] = (
        "1h"
    ),
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Of who is called.")] = "",
    output: Annotated[str, typer.Option("--output", "-o", help="yaml or json.")] = "yaml",
    home: HomeOption = None,
) -> None:
    """Print least-privilege policies for observed traffic, to be run dry first.

    What they would refuse of that traffic is said on stderr.
    """
    query = {"since": since, **({"namespace": namespace} if namespace else {})}
    try:
        with ApiClient(home) as api:
            found = api.ask("GET", "/v1/authz/suggest", query=query)
    except ApiError as error:
        end("authz suggest", error.message, WRONG_USE if error.status == 400 else NO)
    if output == "json":
        print_json(found)
        return
    import yaml

    typer.echo(yaml.safe_dump_all(found["policies"], sort_keys=False), nl=False)
    for call in found["wouldDeny"]:
        who = call["principal"] or "a caller without mutual TLS"
        what = " ".join(part for part in (call["method"], call["path"]) if part) or "TCP"
        typer.echo(f"would deny {who} -> {call['workload']} {what} ({call['count']}x)", err=True)
    for text in found["leftOut"]:
        typer.echo(f"left out {text}", err=True)
    if not found["policies"]:
        typer.echo("nothing was observed", err=True)


def _target(text: str) -> tuple[str, int]:
    name, colon, port = text.partition(":")
    if colon and not port.isdecimal():
        end("authz check", f"--to: NAMESPACE/WORKLOAD[:PORT], not {text!r}", WRONG_USE)
    return name, int(port or 0)


def _headers(given: list[str]) -> dict[str, str]:
    out = {}
    for text in given:
        separator = ":" if ":" in text.partition("=")[0] else "="
        name, found, value = text.partition(separator)
        if not found or not name.strip():
            end("authz check", f"--header: NAME: VALUE or NAME=VALUE, not {text!r}", WRONG_USE)
        out[name.strip()] = value.strip()
    return out


def _claims(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        claims = json.loads(text)
    except ValueError as error:
        end("authz check", f"--jwt-claims: {error}", WRONG_USE)
    if not isinstance(claims, dict):
        end("authz check", "--jwt-claims: an object is needed", WRONG_USE)
    return claims


def _running(home: Any) -> bool:
    try:
        find_api(home)
    except ApiError:
        return False
    return True


def _live(documents: list[Any], question: dict[str, Any], home: Any) -> dict[str, Any]:
    try:
        with ApiClient(home) as api:
            answer: dict[str, Any] = api.ask(
                "POST", _CHECK, body={**question, "objects": documents}
            )
            return answer
    except ApiError as error:
        wrong = error.status in (400, 404, 413, 422)
        end("authz check", error.message, WRONG_USE if wrong else NO)


def _alone(documents: list[Any], question: dict[str, Any]) -> dict[str, Any]:
    import msgspec

    from meshbus.compile.authorization_questions import CheckRequest, answer_of
    from meshbus.compile.offline import world_of_documents
    from meshbus.validate import validate_object

    for index, document in enumerate(documents):
        for violation in validate_object(document).errors:
            if violation.code != "UnknownKind":
                message = f"document {index}: {violation.path}: {violation.message}"
                end("authz check", message, WRONG_USE)
    try:
        return answer_of(world_of_documents(documents), msgspec.convert(question, CheckRequest))
    except (LookupError, ValueError) as error:
        end("authz check", str(error.args[0] if error.args else error), WRONG_USE)


def _print(answer: dict[str, Any]) -> None:
    status = f" ({answer['status']})" if answer["status"] not in (0, 200) else ""
    typer.echo(f"{answer['outcome']}{status}: {answer['because']}")
    if answer["rule"]:
        typer.echo(f"  by {_rule(answer['rule'])}")
    if answer["provider"]:
        typer.echo(f"  asks provider {answer['provider']}")
    if answer["audited"]:
        typer.echo(f"  audited by {_rule(answer['audited'])}")
    for entry in answer["dryRun"]:
        by = f" by {_rule(entry['rule'])}" if entry["rule"] else ": no rule matches"
        typer.echo(f"  dry run, {entry['action']}: {entry['outcome']}{by}")


def _rule(rule: dict[str, Any]) -> str:
    where = f"{rule['kind']} {rule['namespace']}/{rule['name']}"
    return f"{rule['action']} rule {rule['rule']} of {where}"
