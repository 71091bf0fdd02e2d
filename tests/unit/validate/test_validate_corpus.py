"""Verdicts of a peer's validator on its own tables: ours must be the same.

The corpus is data of others and not part of the repository: `MESHBUS_SHARED_DATA` names its folder.
Each table is one test, so a failure names every object of it that is judged otherwise.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshbus.validate import Report, validate_object

DATA = Path(os.environ.get("MESHBUS_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
CORPUS = DATA / "validation"

pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")


def documents(path: Path) -> list[dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    parsed = list(yaml.load_all(path.read_text(), Loader=loader))
    # Through JSON, as kubectl does: keys are strings.
    return [json.loads(json.dumps(d, default=str)) for d in parsed if d]


def tables() -> dict[str, list[dict[str, Any]]]:
    if not CORPUS.is_dir():
        return {}
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in (CORPUS / "cases.jsonl").read_text().splitlines():
        case = json.loads(line)
        found[case["id"].split("/")[0]].append(case)
    return found


def shown(report: Report) -> str:
    return "; ".join(f"{v.path}: {v.message}" for v in report.errors) or "valid"


@pytest.mark.parametrize("table", list(tables()))
def test_tables(table: str) -> None:
    wrong = []
    for case in tables()[table]:
        report = validate_object(case["object"])
        if report.valid != (case["expect"] == "accept"):
            wrong.append(f"{case['id']} ({case['expect']}): {shown(report)}")
        elif case["warn"] and not report.warnings:
            wrong.append(f"{case['id']}: no warning")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "path",
    sorted(p for d in ("crds", "istio-1.4", "all-valid") for p in (CORPUS / d).glob("*.yaml")),
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_documents(path: Path) -> None:
    found = documents(path)
    reports = [validate_object({k: v for k, v in d.items() if k != "_err"}) for d in found]
    if path.parent.name == "istio-1.4" and "-invalid" in path.name:
        # The file is refused as a whole: the objects that a bad one names are good.
        assert not all(r.valid for r in reports)
        return
    valid = "-invalid" not in path.name
    wrong = [
        f"{d['metadata']['name']}: {shown(r)}"
        for d, r in zip(found, reports, strict=True)
        if r.valid != valid
    ]
    assert not wrong, "\n".join(wrong)


def test_score(record_property: Callable[[str, object], None]) -> None:
    """All of them together, for the report; there is no known gap."""
    cases = [case for table in tables().values() for case in table]
    right = sum(validate_object(c["object"]).valid == (c["expect"] == "accept") for c in cases)
    record_property("verdicts", f"{right} of {len(cases)}")
    print(f"{right} of {len(cases)} verdicts")
    assert right == len(cases)


@pytest.mark.parametrize(
    "path",
    sorted(p for d in ("samples", "samples-1.4") for p in (DATA / d).rglob("*.yaml")),
    ids=lambda path: str(path.relative_to(DATA)),
)
def test_samples(path: Path) -> None:
    """What the samples of Istio hold of the kinds served here is valid."""
    try:
        found = documents(path)
    except yaml.YAMLError:
        pytest.skip("a template, not YAML")
    wrong = []
    for document in found:
        if "kind" not in document:
            continue
        report = validate_object(document)
        if any(v.code == "UnknownKind" for v in report.errors):
            continue
        if not report.valid:
            wrong.append(f"{document['kind']} {document['metadata'].get('name')}: {shown(report)}")
    assert not wrong, "\n".join(wrong)
