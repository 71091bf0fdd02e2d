"""The compatibility document is what the code says."""

from pathlib import Path

from meshbus.cli.compatibility import document

DOCUMENT = Path(__file__).parents[3] / "docs" / "compatibility.md"


def test_it_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == document(), "run `python -m meshbus.cli.compatibility`"


def test_it_says_what_is_refused_and_why() -> None:
    lines = document().splitlines()

    def said(field: str) -> set[str]:
        return {li.rsplit(" | ", 1)[1] for li in lines if li.startswith(f"| `{field}` |")}

    (zones,) = said("zoneAwareLbSetting")
    assert zones.startswith("no: needs a cluster")
    assert any(text.startswith("yes, but `ALLOW_ANY_DYNAMIC_DNS`") for text in said("mode"))
    assert said("mixerCheckServer") == {
        "no: is a setting of Istio 1.4, for what is not there any more |"
    }
    assert said("delegate") == {"yes |"}
