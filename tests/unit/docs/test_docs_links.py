"""Links between documents lead somewhere, and every decision is in the list of decisions."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted(
    {
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "bench").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        *(ROOT / "native").glob("*.md"),
    }
)
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
_OTHER_PLACE = re.compile(r"^[a-z][a-z0-9+.-]*:")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
_MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|Users|root)/[\w.-]+")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = (re.sub(r"[^\w\- ]", "", title.lower()) for title in _HEADING.findall(prose(path)))
    return {title.strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_a_link_leads_somewhere(document: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(document)):
        if _OTHER_PLACE.match(link):
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        lost = not target.exists()
        if lost or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_no_path_is_of_one_persons_machine(document: Path) -> None:
    assert _MACHINE_PATH.findall(document.read_text()) == []


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "adr"
    rows = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \|", (folder / "README.md").read_text(), re.M)
    files = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert [file for _, file in rows] == files
    assert [number for number, _ in rows] == [file[:4] for file in files]
