"""Inputs of a peer's analyzers: ours say the same of the same objects.

The corpus is data of others and not part of the repository: `MESHBUS_SHARED_DATA` names its folder.
Each input is of one analyzer, so that only its like is asked here.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshbus.analyze.everything import analyze
from meshbus.analyze.objects import Objects

DATA = Path(os.environ.get("MESHBUS_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
CORPUS = DATA / "analysis"
pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")


def cases() -> list[Any]:
    if not CORPUS.is_dir():
        return []
    lines = (CORPUS / "cases.jsonl").read_text().splitlines()
    return [pytest.param(case, id=case["name"]) for case in map(json.loads, lines)]


def documents(name: str) -> list[Any]:
    return [d for d in yaml.safe_load_all((CORPUS / name).read_text()) if d]


@pytest.mark.parametrize("case", cases())
def test_messages(case: dict[str, Any]) -> None:
    mesh = documents(case["meshConfigFile"])[0] if case["meshConfigFile"] else None
    objects = Objects([d for name in case["inputFiles"] for d in documents(name)], mesh)
    found = analyze(objects, only={case["analyzer"]})
    wanted = Counter(
        (one["code"], one["ref"] if "/" in one["ref"] else one["ref"].replace(" ", " default/"))
        for one in case["expected"]
    )
    assert Counter((message.code, message.object) for message in found) == wanted
