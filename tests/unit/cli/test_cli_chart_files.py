"""The chart's files that come from code are current, and its values those of injection."""

from pathlib import Path
from typing import Any

import yaml

from meshbus.cli.chart_files import FOLDER, files
from meshbus.inject.values import DEFAULT_VALUES

CHART = FOLDER.parent


def test_files_made_from_code_are_current() -> None:
    stale = [
        path.name for path, text in files().items() if not path.exists() or path.read_text() != text
    ]
    assert not stale, "run python -m meshbus.cli.chart_files"


def test_defaults_of_injection_are_those_of_the_chart() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(wanted: dict[str, Any], held: dict[str, Any], path: str) -> None:
        for name, value in wanted.items():
            assert name in held, f"{path}{name}"
            if isinstance(value, dict) and value:
                compare(value, held[name], f"{path}{name}.")
            else:
                assert held[name] == value, f"{path}{name}"

    compare(DEFAULT_VALUES, values, "")


def test_profiles_hold_what_their_name_says() -> None:
    profiles = {p.stem.removeprefix("profile-"): yaml.safe_load(p.read_text())
                for p in Path(FOLDER).glob("profile-*.yaml")}  # fmt: skip
    assert set(profiles) == {"demo", "default", "ha", "large", "remote"}
    assert profiles["demo"]["singlePod"]
    assert profiles["ha"]["nats"]["replicas"] == 3
    gateway = [
        profiles[p]["services"]["xds-gateway"]["replicas"] for p in ("default", "ha", "large")
    ]
    assert gateway == sorted(gateway)
