"""The compatibility document is what the code says."""

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


def test_every_field_of_traffic_that_is_carried_out_has_a_carrier_and_a_test() -> None:
    kinds = ("VirtualService", "DestinationRule", "Gateway", "ServiceEntry", "Sidecar")
    part, bare = "", []
    for line in document().splitlines():
        if line.startswith("## "):
            part = line.removeprefix("## ")
        if part in (*kinds, "EnvoyFilter", "WorkloadEntry") and line.startswith("| `"):
            field, _, said, carrier, test = (c.strip("| ") for c in line.split(" | "))
            if said.startswith("yes") and not (carrier and test):
                bare.append(f"{part}: {field}")
    assert not bare


def test_tests_that_are_named_are_there() -> None:
    root = DOCUMENT.parents[1]
    named = {test for _, test in (*CARRIERS.values(), *FIELDS.values())}
    assert not sorted(test for test in named if not (root / test).is_file())
