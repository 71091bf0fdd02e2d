"""`meshbus apply | delete | get`: objects, through the API."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from meshbus.cli.api_client import (
    NO,
    WRONG_USE,
    ApiClient,
    ApiError,
    HomeOption,
    end,
    print_json,
)

FilesOption = Annotated[
    list[str] | None,
    typer.Option("--filename", "-f", help="File, directory, or - for standard input; repeatable."),
]
NamespaceOption = Annotated[
    str, typer.Option("--namespace", "-n", help="Namespace. Default: default.")
]
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


def _read(command: str, files: list[str]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Documents that can be read, and a result for each that cannot."""
    from meshbus.local.manifests import ManifestError, read

    documents, unreadable = [], []
    for item in read(files):
        if isinstance(item, ManifestError):
            if item.index < 0:
                end(command, str(item), WRONG_USE)
            unreadable.append(
                {
                    "file": item.file,
                    "index": item.index,
                    "line": item.line,
                    "action": "failed",
                    "error": {"reason": "Malformed", "message": item.message, "causes": []},
                }
            )
        else:
            documents.append(item)
    return documents, unreadable


def _send(
    api: ApiClient, path: str, documents: list[Any], query: dict[str, str]
) -> tuple[int | None, list[dict[str, Any]]]:
    """The id of the change, and the result of each document with where it stands in its file."""
    bodies = [document.content for document in documents]
    try:
        answer = api.ask("POST", path, body=bodies, query=query)
    except ApiError as error:
        answer = error.document
        if not isinstance(answer, dict) or "results" not in answer:
            raise
    results = answer["results"]
    for document, result in zip(documents, results, strict=True):
        result |= {"file": document.file, "line": document.line_of(""), "index": document.index}
        for cause in (result.get("error") or {}).get("causes") or ():
            cause["line"] = document.line_of(cause.get("field") or "")
        if warnings := result.get("warnings"):
            # A warning about a field begins with its path.
            result["warningLines"] = [
                document.line_of(str(warning).partition(": ")[0]) for warning in warnings
            ]
    return answer.get("change"), results


def _print_results(results: list[dict[str, Any]], done: str = "") -> None:
    for result in results:
        name = result.get("name")
        what = (
            f"{str(result.get('kind')).lower()}/{name}" if name else f"document {result['index']}"
        )
        error = result.get("error")
        if error is None:
            print(f"{what} {done or result['action']}")
            warnings = result.get("warnings", [])
            lines = result.get("warningLines") or [result["line"]] * len(warnings)
            for warning, line in zip(warnings, lines, strict=True):
                print(f"warning: {_at(result, line)}{what}: {warning}", file=sys.stderr)
            continue
        causes = error.get("causes") or []
        if not causes:
            place = _at(result, result["line"])
            print(f"error: {place}{what}: {error['message']}", file=sys.stderr)
        for cause in causes:
            place, field = _at(result, cause.get("line", 0)), cause.get("field") or ""
            print(f"error: {place}{what}: {field}: {cause.get('message')}", file=sys.stderr)


def _at(result: dict[str, Any], line: int) -> str:
    """Where it stands; what was named on the command line stands in no file."""
    return f"{result['file']}:{line}: " if result["file"] else ""


def apply(
    filename: FilesOption = None,
    atomic: Annotated[
        bool, typer.Option("--atomic", help="All documents as one change, or none.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and write nothing.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until every proxy has the change; see `meshbus wait`.")
    ] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="text or json.")] = "text",
    home: HomeOption = None,
) -> None:
    """Create or change objects, and print the id of the change.

    A document that is refused does not hold up the others, unless --atomic. Exit 1: one was.
    """
    if not filename:
        end("apply", "name manifests with -f", WRONG_USE)
    documents, unreadable = _read("apply", filename)
    if atomic and unreadable:
        _print_results(unreadable)
        end("apply", "nothing was applied", NO)
    change: int | None = None
    results: list[dict[str, Any]] = []
    try:
        with ApiClient(home) as api:
            if documents:
                query = {"atomic": str(atomic).lower()}
                if dry_run:
                    query["dryRun"] = "All"
                change, results = _send(api, "/v1/apply", documents, query)
            results = sorted(
                [*results, *unreadable],
                key=lambda r: (filename.index(_named(filename, r)), r["index"]),
            )
            failed = any("error" in result for result in results)
            if output == "json":
                print_json({"change": change, "results": results})
            else:
                _print_results(results)
                if change is not None and not dry_run:
                    print(f"change {change}")
            if wait and change is not None and not dry_run and not failed:
                from meshbus.cli.wait import wait_for

                raise typer.Exit(wait_for(api, change, 60.0, "text", err=output == "json"))
    except ApiError as error:
        end("apply", error.message, NO)
    if failed:
        raise typer.Exit(NO)


def _named(filename: list[str], result: dict[str, Any]) -> str:
    """The path of the command line that a result's file came from."""
    file = str(result["file"])
    for path in filename:
        if file == path or Path(path) in Path(file).parents:
            return path
    return filename[0]


def delete(
    target: Annotated[
        list[str] | None, typer.Argument(metavar="KIND NAME...", help="Or KIND/NAME.")
    ] = None,
    filename: FilesOption = None,
    namespace: NamespaceOption = "default",
    ignore_not_found: Annotated[
        bool, typer.Option("--ignore-not-found", help="What is not there counts as deleted.")
    ] = False,
    keep_referenced: Annotated[
        bool, typer.Option("--keep-referenced", help="Refuse what other objects still name.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until no proxy has them any more; see `meshbus wait`.")
    ] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="text or json.")] = "text",
    home: HomeOption = None,
) -> None:
    """Delete objects: those of manifests, or by kind and name. Exit 1: one could not be."""
    from meshbus.local.manifests import Document

    unreadable: list[dict[str, Any]] = []
    if filename:
        documents, unreadable = _read("delete", filename)
    else:
        documents = []
        for kind, name in _names("delete", target or []):
            if not name:
                end("delete", f"which {kind}? give names, or -f", WRONG_USE)
            info = _info("delete", kind)
            content = {
                "apiVersion": info.api_version,
                "kind": info.kind,
                "metadata": {"name": name, "namespace": namespace},
            }
            documents.append(Document("", 0, 0, content))
    if not documents and not unreadable:
        end("delete", "name objects: KIND NAME, KIND/NAME or -f", WRONG_USE)
    query = {"atomic": "false"}
    if keep_referenced:
        query["keepReferenced"] = "true"
    try:
        with ApiClient(home) as api:
            change, results = _send(api, "/v1/delete", documents, query)
            if ignore_not_found:
                for result in results:
                    if result.get("error", {}).get("code") == 404:
                        del result["error"]
                        result["action"] = "absent"
            results += unreadable
            failed = any("error" in result for result in results)
            if output == "json":
                print_json({"change": change, "results": results})
            else:
                _print_results(results)
                if change is not None:
                    print(f"change {change}")
            if wait and change is not None and not failed:
                from meshbus.cli.wait import wait_for

                raise typer.Exit(wait_for(api, change, 60.0, "text", err=output == "json"))
    except ApiError as error:
        end("delete", error.message, NO)
    if failed:
        raise typer.Exit(NO)


def get(
    target: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KIND [NAME...]]", help="Or KIND/NAME, or KIND,KIND; none: all."),
    ] = None,
    namespace: NamespaceOption = "default",
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")
    ] = False,
    selector: Annotated[str, typer.Option("--selector", "-l", help="Labels, as kubectl.")] = "",
    output: Annotated[
        str, typer.Option("--output", "-o", help="table, wide, yaml, json or name.")
    ] = "table",
    home: HomeOption = None,
) -> None:
    """Show objects. `meshbus get -A -o yaml` is a backup of everything: `apply` restores it.

    Exit 1: an object that was named is not there.
    """
    if output not in {"table", "wide", "yaml", "json", "name"}:
        end("get", f"--output: table, wide, yaml, json or name, not {output!r}", WRONG_USE)
    wanted = _wanted(target or [])
    single = len(wanted) == 1 and bool(wanted[0][1])
    try:
        with ApiClient(home) as api:
            if output in {"table", "wide"}:
                _show_tables(
                    api, wanted, namespace, all_namespaces, selector, wide=output == "wide"
                )
                return
            items = fetch(api, wanted, namespace, selector, every=all_namespaces)
    except ApiError as error:
        end("get", error.message, NO)
    if output == "name":
        for item in items:
            print(f"{str(item['kind']).lower()}/{item['metadata']['name']}")
        return
    document = (
        items[0] if single else {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}
    )
    if output == "json":
        print_json(document)
    else:
        import yaml

        print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), end="")


def _names(command: str, target: list[str]) -> list[tuple[str, str]]:
    """(kind, name) of `KIND NAME...`, `KIND/NAME ...` or `KIND,KIND`; name empty: all."""
    if not target:
        return []
    if any("/" in part for part in target):
        pairs = []
        for part in target:
            kind, slash, name = part.partition("/")
            if not slash or not name:
                end(command, f"{part!r} is not KIND/NAME", WRONG_USE)
            pairs.append((kind, name))
        return pairs
    kinds, names = target[0].split(","), target[1:]
    if len(kinds) > 1 and names:
        end(command, "names go with one kind", WRONG_USE)
    return [(kind, name) for kind in kinds for name in (names or [""])]


def _info(command: str, kind: str) -> Any:
    from meshbus.api.kinds import all_kinds, by_name

    info = by_name(kind)
    if info is None:
        import difflib

        near = difflib.get_close_matches(kind.lower(), [i.plural for i in all_kinds()], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        end(command, f"there is no kind {kind!r}{hint}", WRONG_USE)
    return info


def _wanted(target: list[str]) -> list[tuple[Any, str]]:
    from meshbus.api.kinds import all_kinds

    if not target or target == ["all"]:
        return [(info, "") for info in all_kinds()]
    return [(_info("get", kind), name) for kind, name in _names("get", target)]


def path_of(info: Any, namespace: str, name: str, *, every: bool = False) -> str:
    """The path of a kind, or of one object."""
    root = f"/apis/{info.group}/{info.version}" if info.group else f"/api/{info.version}"
    middle = f"/namespaces/{namespace}" if info.namespaced and not every else ""
    return f"{root}{middle}/{info.plural}" + (f"/{name}" if name else "")


def fetch(
    api: ApiClient,
    wanted: list[tuple[Any, str]],
    namespace: str,
    selector: str = "",
    *,
    every: bool = False,
) -> list[dict[str, Any]]:
    """Objects of the API: (kind, name), or all of a kind where the name is empty.

    Raises:
        ApiError: One that is named is not there, or there is no answer.
    """
    items: list[dict[str, Any]] = []
    query = {"labelSelector": selector} if selector else None
    for info, name in wanted:
        if name:
            items.append(api.ask("GET", path_of(info, namespace, name)))
            continue
        found = api.ask("GET", path_of(info, namespace, "", every=every), query=query)
        head = {"apiVersion": info.api_version, "kind": info.kind}
        items += [{**head, **item} for item in found["items"]]
    return items


def _show_tables(
    api: ApiClient,
    wanted: list[tuple[Any, str]],
    namespace: str,
    every: bool,
    selector: str,
    *,
    wide: bool,
) -> None:
    shown = 0
    for info, name in wanted:
        query = {"labelSelector": selector} if selector else None
        path = path_of(info, namespace, name, every=every and not name)
        table = api.ask("GET", path, query=query, accept=_TABLE)
        if not table.get("rows"):
            continue
        if shown:
            print()
        shown += 1
        _print_table(
            table,
            info,
            with_namespace=every and info.namespaced,
            several=len(wanted) > 1,
            wide=wide,
        )
    if not shown:
        where = "" if every else f" in namespace {namespace}"
        print(f"No resources found{where}.", file=sys.stderr)


def _print_table(
    table: dict[str, Any], info: Any, *, with_namespace: bool, several: bool, wide: bool
) -> None:
    columns = [
        (index, str(column["name"]).upper())
        for index, column in enumerate(table["columnDefinitions"])
        if wide or not column.get("priority")
    ]
    head = [name for _, name in columns]
    lines = [["NAMESPACE", *head] if with_namespace else head]
    for row in table["rows"]:
        cells = ["" if row["cells"][i] is None else str(row["cells"][i]) for i, _ in columns]
        if several:
            cells[0] = f"{info.singular}/{cells[0]}"
        if with_namespace:
            cells.insert(0, str(row["object"]["metadata"].get("namespace") or ""))
        lines.append(cells)
    print_columns(lines)


def print_columns(lines: list[list[str]]) -> None:
    """Rows of text under each other, three spaces apart."""
    if not lines:
        return
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("   ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip())
