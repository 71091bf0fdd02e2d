"""`meshbus validate`: manifests against the rules of their kinds, without a server."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer

from meshbus.local.manifests import Document, ManifestError, read

VALID, INVALID, WRONG_USE = 0, 1, 2


class Output(StrEnum):
    """How the answer is written."""

    TEXT = "text"
    JSON = "json"


class Problem(msgspec.Struct, frozen=True):
    """What is wrong, and where in the document."""

    path: str
    code: str
    message: str
    line: int
    """Of the file, from 1: of the field, or of what should hold it."""


class Result(msgspec.Struct, frozen=True):
    """The verdict on one document."""

    file: str
    index: int
    kind: str
    namespace: str
    name: str
    valid: bool
    errors: list[Problem]
    warnings: list[Problem]


def validate(
    filename: Annotated[
        list[str] | None,
        typer.Option("--filename", "-f", help="File, directory, or - for standard input."),
    ] = None,
    paths: Annotated[list[str] | None, typer.Argument(help="More of them.")] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="text or json.")] = Output.TEXT,
) -> None:
    """Judge each document alone. Exit 0: all valid; 1: one is not; 2: a path cannot be read."""
    places = [*(filename or ()), *(paths or ())]
    if not places:
        print("meshbus validate: name manifests with -f", file=sys.stderr)
        raise typer.Exit(WRONG_USE)
    results: list[Result] = []
    missing = False
    for item in read(places):
        if isinstance(item, ManifestError) and item.index < 0:
            print(f"meshbus validate: {item}", file=sys.stderr)
            missing = True
        else:
            results.append(judge(item))
    if output is Output.JSON:
        sys.stdout.write(msgspec.json.encode({"results": results}).decode() + "\n")
    else:
        for line in _lines(results):
            print(line)
    if missing:
        raise typer.Exit(WRONG_USE)
    if not all(result.valid for result in results):
        raise typer.Exit(INVALID)


def judge(item: Document | ManifestError) -> Result:
    """The verdict on a document, or on what cannot be read as one."""
    if isinstance(item, ManifestError):
        problem = Problem("", "Malformed", item.message, item.line)
        return Result(item.file, item.index, "", "", "", False, [problem], [])
    from meshbus.validate import validate_object
    from meshbus.validate.support import silent_fields_of, unsupported_fields

    report = validate_object(item.content)
    unsupported = (
        [*unsupported_fields(item.content), *silent_fields_of(item.content)] if report.valid else []
    )
    kind, namespace, name = _names(item.content)
    return Result(
        file=item.file,
        index=item.index,
        kind=kind,
        namespace=namespace,
        name=name,
        valid=report.valid,
        errors=_problems(item, report.errors),
        warnings=_problems(item, [*report.warnings, *unsupported]),
    )


def _problems(document: Document, violations: Sequence[Any]) -> list[Problem]:
    return [Problem(v.path, v.code, v.message, document.line_of(v.path)) for v in violations]


def _names(content: dict[str, Any]) -> tuple[str, str, str]:
    from meshbus.api.kinds import kind_of

    metadata = content.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    kind = str(content.get("kind") or "")
    info = kind_of(str(content.get("apiVersion")), kind)
    namespace = str(metadata.get("namespace") or "")
    if info is not None:
        namespace = (namespace or "default") if info.namespaced else ""
    return kind, namespace, str(metadata.get("name") or metadata.get("generateName") or "")


def _lines(results: Sequence[Result]) -> list[str]:
    lines: list[str] = []
    for result in results:
        where = f"{result.file}[{result.index}]"
        owner = f"{result.namespace}/" if result.namespace else ""
        what = f" {result.kind} {owner}{result.name}" if result.kind else ""
        lines.append(f"{where}{what}: {'valid' if result.valid else 'invalid'}")
        for word, problems in (("error", result.errors), ("warning", result.warnings)):
            for p in problems:
                field = f"{p.path}: " if p.path else ""
                lines.append(f"  {word}: {result.file}:{p.line}: {field}{p.message} [{p.code}]")
    bad = sum(not result.valid for result in results)
    if results:
        documents = "1 document" if len(results) == 1 else f"{len(results)} documents"
        lines.append(f"{documents}, {bad} invalid")
    return lines
