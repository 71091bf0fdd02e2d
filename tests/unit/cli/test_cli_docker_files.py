"""Images are built elsewhere; here what they copy is there, and they keep to a few rules."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]
FILES = sorted((TOP / "deploy" / "docker").glob("*/Dockerfile"))


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line.strip() for line in text.splitlines()]
    return [
        (line.split(None, 1)[0].upper(), line.split(None, 1)[1])
        for line in lines
        if line and not line.startswith("#")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_what_is_copied_is_there(path: Path) -> None:
    for name, rest in instructions(path):
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (TOP / source).exists(), source


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_images_are_pinned_clean_and_run_as_they_should(path: Path) -> None:
    held = instructions(path)
    assert {name for name, _ in held} <= {
        "ARG", "FROM", "RUN", "COPY", "USER", "ENV", "WORKDIR", "ENTRYPOINT",
    }  # fmt: skip
    for name, rest in held:
        if name == "FROM" and "$" not in rest:
            assert re.search(r":[\w.-]+", rest), f"{rest}: no tag"
            assert ":latest" not in rest
        if name == "RUN" and "apt-get install" in rest:
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists" in rest
    assert held[-1][0] == "ENTRYPOINT"
    assert held[-1][1].startswith("["), "signals reach the program itself"
    users = [rest for name, rest in held if name == "USER"]
    if path.parent.name in ("control-plane", "proxy"):
        assert users[-1] == "1337:1337"


def test_the_scripts_of_images_may_be_run() -> None:
    for script in (TOP / "deploy" / "docker").glob("*/meshbus-*"):
        assert script.stat().st_mode & 0o111, script
        assert script.read_text().startswith("#!/bin/sh\n")
