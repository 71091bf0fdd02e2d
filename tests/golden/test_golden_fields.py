"""What single fields change in what a proxy is sent: `fields/<Kind>.in.yaml`.

```yaml
proxy: sidecar            # or router, or fields of P.json over those of a sidecar
documents: [...]          # what is there anyway
object: {...}             # the document that the fields are set in; left out: they are MeshConfig's
cases:
- fields: [HTTPRoute.timeout]      # message and field, as in docs/compatibility.md
  proxy: router                    # where another proxy shows it
  with: {...}                      # set before and after, so that only the fields are seen
  set: {http: [{timeout: 5s}]}     # over the object's `spec`: maps are merged, lists item by item
```

`<Kind>.out.yaml` has everything that differs, with the names of list items for their numbers; of an
item with a name that is new or gone altogether, its name alone.
`pytest tests/golden/test_golden_fields.py --update-golden` writes it.
"""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_golden_walk import proxy_of

from meshbus.compile.offline import compile_documents
from meshbus.validate import validate_object

FOLDER = Path(__file__).parent / "fields"
NAMED = re.compile(r"\[[^]]*[^]0-9][^]]*\]")
Json = Any


def merged(under: Json, over: Json) -> Json:
    """Maps are merged key by key, lists item by item; anything else is replaced."""
    if isinstance(under, dict) and isinstance(over, dict):
        both = {key: merged(under[key], over[key]) for key in under.keys() & over.keys()}
        return {**under, **over, **both}
    if isinstance(under, list) and isinstance(over, list):
        both = [merged(old, new) for old, new in zip(under, over, strict=False)]
        return both + (under if len(under) > len(over) else over)[len(both) :]
    return over


def lines_of(value: Json, path: str = "") -> Iterator[str]:
    """A leaf each, with its path."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from lines_of(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        names = [name_of(item) for item in value]
        unique = len(set(names) - {""}) == len(value)
        if unique and path and len(value) > 1:
            yield f"{path}: in order {', '.join(names)}"
        for index, inner in enumerate(value):
            yield from lines_of(inner, f"{path}[{names[index] if unique else index}]")
    else:
        yield f"{path}: {json.dumps(value)}"


def of_any_chain(line: str) -> str:
    """Without the number of the filter chain: what changes in all of them is said once."""
    return re.sub(r"filterChains\[\d+\]", "filterChains[]", line)


def name_of(item: Json) -> str:
    """Of an item of a list; empty where it has none."""
    return item.get("name") or item.get("clusterName") or "" if isinstance(item, dict) else ""


def compiled(file: dict[str, Json], case: dict[str, Json], spec: Json) -> set[str]:
    documents, mesh = copy.deepcopy(file["documents"]), None
    set_before = case.get("with", {})
    if "object" in file:
        held = copy.deepcopy(file["object"])
        held["spec"] = merged(merged(held["spec"], set_before), spec)
        assert not spec or not validate_object(held).errors
        documents.append(held)
    else:
        mesh = merged(set_before, spec)
    proxy = proxy_of({"proxy": case.get("proxy", file.get("proxy", "sidecar"))})
    made = compile_documents(documents, proxy=proxy, mesh_config=mesh)
    return {of_any_chain(line) for line in lines_of(made.document)}


def difference(file: dict[str, Json], case: dict[str, Json]) -> list[str]:
    """`- PATH: VALUE` of what is gone, `+ PATH: VALUE` of what is new."""
    before, after = compiled(file, case, {}), compiled(file, case, case["set"])
    gone, new = before - after, after - before
    return [f"- {line}" for line in shortened(gone, after)] + [
        f"+ {line}" for line in shortened(new, before)
    ]


def shortened(lines: set[str], others: set[str]) -> list[str]:
    """Of a named item that the others do not have at all, the name alone."""
    known = {whole for line in others for whole in wholes(line)}
    return sorted({next((w for w in wholes(line) if w not in known), line) for line in lines})


def wholes(line: str) -> list[str]:
    """Beginnings of a line that say a named item, the outermost first."""
    path = line.partition(": ")[0]
    return [path[: found.end()] for found in NAMED.finditer(path)]


def read(name: str) -> Any:
    path = FOLDER / name
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def cases() -> list[Any]:
    found = []
    for path in sorted(FOLDER.glob("*.in.yaml")):
        kind = path.name.removesuffix(".in.yaml")
        for case in read(path.name)["cases"]:
            name = ", ".join(case["fields"])
            found.append(pytest.param(kind, name, case, id=f"{kind}: {name}"))
    return found


@pytest.mark.parametrize(("kind", "name", "case"), cases())
def test_a_field_does_what_is_written_down(
    kind: str, name: str, case: dict[str, Json], update_golden: bool
) -> None:
    found = difference(read(f"{kind}.in.yaml"), case)
    assert found, "it changes nothing"
    written = read(f"{kind}.out.yaml")
    if update_golden and written.get(name) != found:
        written[name] = found
        text = yaml.safe_dump(dict(sorted(written.items())), sort_keys=False, width=1000)
        (FOLDER / f"{kind}.out.yaml").write_text(text)
    assert written.get(name) == found


def test_nothing_is_written_down_that_is_not_tested() -> None:
    tested = {(c.values[0], c.values[1]) for c in cases()}
    files = [path.name.removesuffix(".out.yaml") for path in FOLDER.glob("*.out.yaml")]
    assert {(kind, name) for kind in files for name in read(f"{kind}.out.yaml")} == tested
