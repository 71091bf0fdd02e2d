"""The edges of each kind's rules: one good object a file, and what changes of it are still good.

A file of `edges` has the good object, and lists of changes: `accept` and `reject`. A change sets
fields by path (`spec.hosts.0`; null leaves the field out). The verdicts are those of the rules of
Istio's validation and of its definitions for the API server; warnings do not count.
"""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshbus.validate import validate_object

FOLDER = Path(__file__).parent / "edges"
FILES = sorted(FOLDER.glob("*.yaml"))


def steps(path: str) -> list[str | int]:
    return [int(step) if step.isdigit() else step for step in path.split(".")]


def changed(document: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(document)
    for path, value in change.items():
        *parents, last = steps(path)
        place: Any = made
        for step, following in zip(parents, [*parents, last][1:], strict=True):
            empty: Any = [] if isinstance(following, int) else {}
            if isinstance(step, int):
                place.extend([None] * (step + 1 - len(place)))
                place[step] = empty if place[step] is None else place[step]
            elif place.get(step) is None:
                place[step] = empty
            place = place[step]
        if value is None:
            place.pop(last, None)
        elif isinstance(last, int):
            place.extend([None] * (last + 1 - len(place)))
            place[last] = value
        else:
            place[last] = value
    return made


def plain(path: str) -> str:
    return re.sub(r"\.(\d+)", r"[\1]", path)


def cases() -> list[Any]:
    found = []
    for file in FILES:
        content = yaml.safe_load(file.read_text())
        for verdict in ("accept", "reject"):
            for change in content[verdict]:
                name = f"{file.stem}-{verdict}-{change}"
                found.append(pytest.param(content["good"], verdict, change, id=name[:150]))
    return found


@pytest.mark.parametrize(("good", "verdict", "change"), cases())
def test_edge(good: dict[str, Any], verdict: str, change: dict[str, Any]) -> None:
    report = validate_object(changed(good, change))
    if verdict == "accept":
        assert report.errors == []
        return
    paths = [error.path for error in report.errors]
    about = [plain(path) for path in change]
    # An error of something else would hide that the change itself is let pass.
    assert any(p.startswith(a) or a.startswith(p) for p in paths for a in about), paths


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_good(file: Path) -> None:
    assert validate_object(yaml.safe_load(file.read_text())["good"]).errors == []
