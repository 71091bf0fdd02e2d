"""`meshbus kube-inject`: manifests with the sidecar in them, without a server."""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from meshbus.inject.documents import Beside

OK, NO, WRONG_USE = 0, 1, 2
_NETWORKING = "networking.istio.io"


def kube_inject(
    filename: Annotated[
        list[str] | None,
        typer.Option("--filename", "-f", help="File, directory, or - for standard input."),
    ] = None,
    mesh_config: Annotated[
        str | None,
        typer.Option("--mesh-config", "--meshConfigFile", help="File with a MeshConfig's fields."),
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option("--values", help="File with values of the chart.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A value of the chart: KEY=VALUE[,...].")
    ] = None,
    set_string: Annotated[
        list[str] | None, typer.Option("--set-string", help="The same, always as text.")
    ] = None,
    set_file: Annotated[
        list[str] | None, typer.Option("--set-file", help="A value from a file: KEY=PATH.")
    ] = None,
    set_json: Annotated[
        list[str] | None, typer.Option("--set-json", help="A value in JSON: KEY=JSON.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", "-r", help="Revision of the control plane.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to a file instead of stdout.")
    ] = None,
) -> None:
    """Print manifests with the sidecar in their pods; what was left as it is goes to stderr.

    Exit 0: done; 1: a pod cannot be injected; 2: wrong use.
    """
    if not filename:
        _end("name manifests with -f", WRONG_USE)
    from meshbus.inject import InjectionError, Injector
    from meshbus.inject.documents import inject_document
    from meshbus.inject.helm_set import SetError
    from meshbus.inject.yaml_output import to_yaml
    from meshbus.local.manifests import ManifestError, read_parts

    try:
        given = given_values(values, set_, set_string, set_file, set_json)
        if revision is not None:
            given["revision"] = revision
        injector = Injector(given, mesh_config_of(mesh_config))
        parts = [part for name in filename for part in read_parts(name)]
    except (SetError, InjectionError) as error:
        _end(str(error), WRONG_USE)
    except ManifestError as error:
        _end(str(error), WRONG_USE if error.index < 0 else NO)
    beside = beside_of([part.content for part in parts], injector.mesh)
    texts = []
    for part in parts:
        try:
            outcome = inject_document(injector, part.content, beside)
        except InjectionError as error:
            _end(f"{part.file}:{part.line}: {error}", NO)
        for note in outcome.notes:
            print(note, file=sys.stderr)
        texts.append(to_yaml(outcome.document) if outcome.changed else part.text)
    written = "".join(f"{text.strip(chr(10))}\n---\n" for text in texts)
    if output is None:
        sys.stdout.write(written)
    else:
        output.write_text(written)


def beside_of(documents: list[Any], mesh: Mapping[str, Any]) -> "Beside":
    """What the files say of pods beside their manifests: ProxyConfigs, EnvoyFilters that patch the
    bootstrap, and who proxies run as."""
    from meshbus.compile.offline import flat_documents, object_of_document
    from meshbus.inject.documents import Beside, identities_of

    objects = []
    for document in flat_documents(d for d in documents if isinstance(d, dict)):
        group = str(document.get("apiVersion") or "").partition("/")[0]
        if group == _NETWORKING and document.get("kind") in ("ProxyConfig", "EnvoyFilter"):
            # What has no name is refused where it is validated; it is nobody's here.
            with contextlib.suppress(ValueError):
                objects.append(object_of_document(document))
    return Beside(
        identities_of(documents),
        tuple(o for o in objects if o.kind == "ProxyConfig"),
        tuple(o for o in objects if o.kind == "EnvoyFilter"),
        str(mesh.get("rootNamespace") or "istio-system"),
    )


def given_values(
    files: list[str] | None,
    pairs: list[str] | None,
    strings: list[str] | None = None,
    from_files: list[str] | None = None,
    in_json: list[str] | None = None,
) -> dict[str, Any]:
    """Values of the chart as given on a command line, in Helm's order of precedence.

    Raises:
        SetError, ManifestError: One of them cannot be read.
    """
    import json

    from meshbus.inject.helm_set import SetError, merge_values, put_value, set_values
    from meshbus.local.manifests import ManifestError, load

    given: dict[str, Any] = {}
    for file in files or ():
        for document in load([file]):
            content = document.content
            if content.get("kind") == "IstioOperator":
                content = content.get("spec") or {}
            given = merge_values(given, content) if not given else _deep(given, content)
    for text in in_json or ():
        key, equals, value = text.partition("=")
        try:
            put_value(given, key, json.loads(value))
        except ValueError as error:
            raise SetError(f"--set-json {key!r}: {error}") from error
    for text in pairs or ():
        set_values(given, text)
    for text in strings or ():
        set_values(given, text, strings=True)
    for text in from_files or ():
        key, equals, path = text.partition("=")
        if not equals:
            raise SetError(f"--set-file {key!r}: has no file (KEY=PATH)")
        try:
            put_value(given, key, Path(path).read_text())
        except OSError as error:
            raise ManifestError(path, 0, -1, error.strerror or str(error)) from error
    return given


def _deep(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        held = merged.get(key)
        both = isinstance(held, dict) and isinstance(value, dict)
        merged[key] = _deep(held, value) if both else value  # type: ignore[arg-type]
    return merged


def mesh_config_of(file: str | None) -> dict[str, Any]:
    """The fields of a MeshConfig in a file; also of a ConfigMap that holds one under `mesh`.

    Raises:
        ManifestError: It cannot be read.
    """
    from meshbus.api.yaml_text import NotReadableError, read_yaml
    from meshbus.local.manifests import ManifestError, load

    if file is None:
        return {}
    documents = load([file])
    if len(documents) > 1:
        raise ManifestError(file, 0, -1, "must hold one document: the mesh config")
    content = documents[0].content if documents else {}
    if content.get("kind") == "MeshConfig":
        content = content.get("spec") or {}
    elif content.get("kind") == "ConfigMap":
        try:
            content = read_yaml(str((content.get("data") or {}).get("mesh") or "")) or {}
        except NotReadableError as error:
            raise ManifestError(file, 0, -1, f"data.mesh: {error.message}") from error
    if not isinstance(content, dict):
        raise ManifestError(file, 0, -1, "must hold the fields of a MeshConfig")
    return content


def _end(message: str, code: int) -> NoReturn:
    print(f"meshbus kube-inject: {message}", file=sys.stderr)
    raise typer.Exit(code)
