"""`meshbus compile`: what one proxy would get of manifests, without a server."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from meshbus.local.manifests import Document, ManifestError, load, load_mesh_config

OK, NO, WRONG_USE = 0, 1, 2


class Output(StrEnum):
    """How the answer is written."""

    JSON = "json"


def compile_command(
    filename: Annotated[
        list[str] | None,
        typer.Option("--filename", "-f", help="File, directory, or - for standard input."),
    ] = None,
    paths: Annotated[list[str] | None, typer.Argument(help="More of them.")] = None,
    workload: Annotated[
        str | None, typer.Option("--workload", help="NAMESPACE/NAME of a workload or instance.")
    ] = None,
    proxy: Annotated[
        Path | None, typer.Option("--proxy", help="JSON file that describes a proxy.")
    ] = None,
    mesh_config: Annotated[
        str | None, typer.Option("--mesh-config", help="File with the fields of a MeshConfig.")
    ] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="json.")] = Output.JSON,
) -> None:
    """Print the Envoy resources of one proxy as JSON; what has no effect goes to stderr.

    Exit 0: compiled; 1: a document is invalid, or the workload is not there; 2: wrong use.
    """
    places = [*(filename or ()), *(paths or ())]
    if not places:
        _end("name manifests with -f", WRONG_USE)
    if (workload is None) == (proxy is None):
        _end("exactly one of --workload and --proxy is needed", WRONG_USE)
    try:
        documents = load(places)
        settings = None if mesh_config is None else load_mesh_config(mesh_config)
        described = None if proxy is None else _proxy(proxy)
    except ManifestError as error:
        _end(str(error), WRONG_USE if error.index < 0 else NO)
    if not _all_valid(documents):
        raise typer.Exit(NO)
    # Envoy's messages are slow to load; wrong use should not wait for them.
    from meshbus.compile.offline import compile_documents

    try:
        compiled = compile_documents(
            [document.content for document in documents],
            workload=workload,
            proxy=described,
            mesh_config=settings,
        )
    except (LookupError, ValueError) as error:
        _end(str(error.args[0] if error.args else error), NO)
    for finding in compiled.findings:
        place = f"{finding.get('object', '')}: {finding.get('path', '')}"
        print(f"{place}: {finding.get('message', '')}", file=sys.stderr)
    sys.stdout.write(json.dumps(compiled.document, sort_keys=True, indent=2) + "\n")


def _end(message: str, code: int) -> NoReturn:
    print(f"meshbus compile: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _all_valid(documents: list[Document]) -> bool:
    from meshbus.validate import validate_object

    valid = True
    for document in documents:
        for violation in validate_object(document.content).errors:
            # A kind that nothing reads cannot change what a proxy gets.
            if violation.code == "UnknownKind":
                continue
            valid = False
            place = f"{document.file}:{document.line_of(violation.path)}"
            print(f"{place}: {violation.path}: {violation.message}", file=sys.stderr)
    return valid


def _proxy(file: Path) -> dict[str, Any]:
    documents = load([file])
    if len(documents) != 1:
        raise ManifestError(str(file), 0, -1, "must hold one JSON object: the proxy")
    return documents[0].content
