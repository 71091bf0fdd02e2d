"""Validation says what the golden files say: every violation with path, code and message."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from meshbus.local.manifests import load
from meshbus.validate import validate_object

FOLDER = Path(__file__).parent / "validate"
CASES = sorted(path.name.removesuffix(".in.yaml") for path in FOLDER.glob("*.in.yaml"))


def judged(case: str) -> list[dict[str, Any]]:
    verdicts = []
    for document in load([FOLDER / f"{case}.in.yaml"]):
        metadata = document.content.get("metadata") or {}
        report = msgspec.to_builtins(validate_object(document.content))
        verdicts.append({"name": metadata.get("name"), **report})
    return verdicts


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, update_golden: bool) -> None:
    path = FOLDER / f"{case}.out.yaml"
    made = judged(case)
    if update_golden:
        path.write_text(yaml.safe_dump(made, sort_keys=False, width=1000))
    assert yaml.safe_load(path.read_text()) == made
