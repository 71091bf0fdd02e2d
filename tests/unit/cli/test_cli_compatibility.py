"""The compatibility document is what the code says."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from meshbus.cli.carriers import CARRIERS, FIELDS
from meshbus.cli.compatibility import document

DOCUMENT = Path(__file__).parents[3] / "docs" / "compatibility.md"


def test_it_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == document(), "run `python -m meshbus.cli.compatibility`"


def test_it_says_what_is_refused_and_why() -> None:
    lines = document().splitlines()

    def said(field: str) -> set[str]:
        return {li.split(" | ")[2] for li in lines if li.startswith(f"| `{field}` |")}

    assert said("zoneAwareLbSetting") == {"yes"}
    assert any(text.startswith("yes, but `ALLOW_ANY_DYNAMIC_DNS`") for text in said("mode"))
    assert said("mixerCheckServer") == {
        "no: is a setting of Istio 1.4, for what is not there any more"
    }
    assert said("delegate") == {"yes"}


def rows() -> Iterator[tuple[str, str, str, str, str]]:
    """Kind, field, what is said, carrier and the test's path, of each row of the document."""
    kind = ""
    for line in document().splitlines():
        if line.startswith("## "):
            kind = line.removeprefix("## ")
        elif line.startswith("| `"):
            field, _, said, carrier, test = (cell.strip("| ") for cell in line.split(" | "))
            yield kind, field.strip("`"), said, carrier, test.rpartition("(../")[2].strip(")")


def test_every_field_that_is_carried_out_has_a_carrier_and_a_test_that_sets_it() -> None:
    bare, unset = [], []
    for kind, field, said, carrier, test in rows():
        if said.startswith("no"):
            continue
        if not (carrier and test):
            bare.append(f"{kind}: {field}")
        elif not re.search(rf"(?<![A-Za-z0-9]){field}(?![A-Za-z0-9])", read(test)):
            unset.append(f"{kind}: {field} in {test}")
    assert (bare, unset) == ([], [])


@cache
def read(test: str) -> str:
    return (DOCUMENT.parents[1] / test).read_text()


def test_tests_that_are_named_are_there() -> None:
    root = DOCUMENT.parents[1]
    named = {test for _, test in (*CARRIERS.values(), *FIELDS.values())}
    assert not sorted(test for test in named if not (root / test).is_file())
