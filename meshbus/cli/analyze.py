"""`meshbus analyze`: manifests together, alone or on top of what a running mesh has."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from meshbus.cli.api_client import ApiClient, ApiError, HomeOption
from meshbus.cli.validate import Output
from meshbus.local.manifests import Document, ManifestError, load, load_mesh_config

CLEAN, FOUND, WRONG_USE = 0, 1, 2


class Said(msgspec.Struct, frozen=True):
    """One message, and the document that it is about."""

    code: str
    """As in Istio: `IST0101`."""
    level: str
    """Error, Warning or Info."""
    message: str
    object: str
    """`KIND NAMESPACE/NAME`."""
    file: str
    """Empty: an object of the mesh is meant, or something that nobody wrote."""
    line: int
    """Of the field, or of what should hold it, from 1; 0: it stands in no file."""


def analyze(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files, directories, or - for standard input.")
    ] = None,
    mesh_config: Annotated[
        Path | None, typer.Option("--mesh-config", help="File with the mesh config.")
    ] = None,
    use_kube: Annotated[
        str,
        typer.Option(
            "--use-kube",
            help="true: what a running mesh has, files on top. Default: if --home is named.",
        ),
    ] = "",
    home: HomeOption = None,
    only: Annotated[
        list[str] | None, typer.Option("--analyzer", help="Ask this one only; repeatable.")
    ] = None,
    list_analyzers: Annotated[
        bool, typer.Option("--list-analyzers", "-L", help="Print the names, and end.")
    ] = False,
    output: Annotated[Output, typer.Option("--output", "-o", help="text or json.")] = Output.TEXT,
) -> None:
    """Judge documents together. Exit 0: no errors; 1: errors; 2: a path cannot be read."""
    if use_kube not in ("", "true", "false"):
        print("meshbus analyze: --use-kube is true or false", file=sys.stderr)
        raise typer.Exit(WRONG_USE)
    live = use_kube == "true" or (not use_kube and home is not None)
    from meshbus.analyze.everything import ANALYZERS

    if list_analyzers:
        print("\n".join(ANALYZERS))
        return
    unknown = sorted(set(only or ()) - set(ANALYZERS))
    if unknown or not (paths or live):
        fault = f"no analyzer {', '.join(unknown)}: -L lists them" if unknown else "which files?"
        print(f"meshbus analyze: {fault}", file=sys.stderr)
        raise typer.Exit(WRONG_USE)
    try:
        mesh = None if mesh_config is None else load_mesh_config(str(mesh_config))
        documents = load(paths or ())
        if live:
            documents = [*_live(home, documents), *documents]
    except (ManifestError, ApiError) as error:
        print(f"meshbus analyze: {error}", file=sys.stderr)
        raise typer.Exit(WRONG_USE) from error
    found = judge(documents, mesh, only or (), assumed=not live)
    if output is Output.JSON:
        sys.stdout.write(msgspec.json.encode({"messages": found}).decode() + "\n")
    else:
        for said in found:
            where = f" {said.file}:{said.line}" if said.file else ""
            print(f"{said.level} [{said.code}] ({said.object}{where}) {said.message}")
        if not found:
            print("nothing to say about them")
    if any(said.level == "Error" for said in found):
        raise typer.Exit(FOUND)


def _live(home: Path | None, documents: list[Document]) -> list[Document]:
    """What a running mesh has, but for objects that the documents replace.

    Raises:
        ApiError: No mesh runs there, or it does not answer.
    """
    from meshbus.api.kinds import all_kinds
    from meshbus.cli.objects import fetch

    replaced = {_identity(document.content) for document in documents}
    with ApiClient(home) as api:
        items = fetch(api, [(info, "") for info in all_kinds()], "", every=True)
    return [Document("", 0, 0, item) for item in items if _identity(item) not in replaced]


def _identity(content: dict[str, Any]) -> tuple[str, str, str, str]:
    metadata = content.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    group = str(content.get("apiVersion") or "").rpartition("/")[0]
    namespace = str(metadata.get("namespace") or "default")
    return group, str(content.get("kind")), namespace, str(metadata.get("name"))


def judge(
    documents: list[Document],
    mesh: dict[str, Any] | None,
    only: Collection[str] = (),
    *,
    assumed: bool = True,
) -> list[Said]:
    """What there is to say about documents that are applied together.

    Args:
        only: Names of analyzers.
        assumed: An ingress gateway is taken to be there.
    """
    from meshbus.analyze.everything import analyze as analyze_objects
    from meshbus.analyze.objects import Objects

    objects = Objects([document.content for document in documents], mesh, assumed=assumed)
    verdicts = [m for place, d in enumerate(documents) for m in _verdicts(d.content, place)]
    found = []
    for message in analyze_objects(objects, verdicts, only):
        held = documents[message.place] if message.place >= 0 else None
        place = (held.file, held.line_of(message.path)) if held else ("", 0)
        found.append(Said(message.code, message.level, message.message, message.object, *place))
    return found


_CODES = {
    "VirtualServiceUnreachableRule": "IST0130",
    "VirtualServiceIneffectiveMatch": "IST0131",
}


def _verdicts(content: dict[str, Any], place: int) -> list[Any]:
    """What validation says about an object of Istio."""
    from meshbus.analyze.messages import LEVELS, Message
    from meshbus.validate import validate_object

    group = str(content.get("apiVersion") or "").rpartition("/")[0]
    if not group.endswith(".istio.io"):
        return []
    metadata = content.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    name = metadata.get("name") or metadata.get("generateName") or ""
    reference = f"{content.get('kind')} {metadata.get('namespace') or 'default'}/{name}"
    report = validate_object(content)
    if any(v.code == "UnknownKind" for v in report.errors):
        return []
    found = [("IST0106", v) for v in report.errors]
    found += [(_CODES.get(v.code, "IST0133"), v) for v in report.warnings]
    return [
        Message(code, LEVELS[code], f"{v.path}: {v.message}", reference, place, v.path)
        for code, v in found
    ]
