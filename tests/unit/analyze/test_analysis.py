"""Analysis, topic by topic: what is said of objects that are put together.

A file of `findings` has cases: objects, the mesh config if it matters, and all that is said.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from meshbus.analyze.everything import analyze
from meshbus.analyze.messages import LEVELS
from meshbus.analyze.objects import Objects

FILES = sorted((Path(__file__).parent / "findings").glob("*.yaml"))


def flat(items: list[Any]) -> list[Any]:
    return [one for item in items for one in (item if isinstance(item, list) else [item])]


def cases() -> list[Any]:
    return [
        pytest.param(case, id=f"{file.stem}-{case['name']}")
        for file in FILES
        for case in yaml.safe_load(file.read_text())["cases"]
    ]


@pytest.mark.parametrize("case", cases())
def test_what_is_said(case: dict[str, Any]) -> None:
    found = analyze(Objects(flat(case["objects"]), case.get("mesh")))
    assert sorted(f"{m.code} {m.object}" for m in found) == case["says"], found


def test_every_code_is_said_somewhere() -> None:
    said = {word.split()[0] for case in cases() for word in case.values[0]["says"]}
    # What validation says of documents alone comes from the command.
    assert set(LEVELS) - said == {"IST0106", "IST0130", "IST0131", "IST0133"}


def test_errors_come_first_and_everything_once() -> None:
    one = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "a"},
        "spec": {
            "hosts": ["x.example"],
            "gateways": ["gone"],
            "http": [{"route": [{"destination": {"host": "gone.example"}}] * 2}],
        },
    }
    found = analyze(Objects([one]))
    # A host that is named twice is missing at two places.
    assert [m.code for m in found] == ["IST0101", "IST0101", "IST0101", "IST0132"]
    assert {m.place for m in found} == {0}
    assert len({m.message for m in found}) == 4
    assert "'gone.example' (spec.http[0].route[1].destination)" in found[2].message
    patch = {"applyTo": "HTTP_FILTER", "patch": {"operation": "REMOVE"}}
    twice = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "a"},
        "spec": {"configPatches": [patch, patch]},
    }
    assert [m.code for m in analyze(Objects([twice]))] == ["IST0151"]


def test_a_workload_of_a_machine_counts_as_a_pod() -> None:
    rule = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "a"},
        "spec": {"host": "shop", "subsets": [{"name": "one", "labels": {"v": "1"}}]},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "shop"},
        "spec": {"ports": [{"name": "http", "port": 80}]},
    }
    workload = {
        "apiVersion": "standalone.meshbus.io/v1alpha1",
        "kind": "Workload",
        "metadata": {"name": "shop-1", "labels": {"v": "1"}},
    }
    assert [m.code for m in analyze(Objects([service, rule]))] == ["IST0173"]
    assert analyze(Objects([service, rule, workload])) == []
