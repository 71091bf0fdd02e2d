"""Dashboards ask for metrics that there are."""

import re
from pathlib import Path

import pytest

from meshbus.cli.dashboards import DASHBOARDS, Dashboard

SOURCES = Path(__file__).parents[3]
OF_PYTHON = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
SUFFIXES = ("_total", "_bucket")


def exported() -> set[str]:
    """Names of metrics in the code of the services, as Prometheus shows them."""
    found = set(OF_PYTHON)
    for folder in ("meshbus", "services"):
        for path in (SOURCES / folder).rglob("*.py"):
            if path.name == "dashboards.py":
                continue
            for name in re.findall(r'"((?:meshbus|istio)_[a-z0-9_]+)"', path.read_text()):
                found |= {name, *(name.removesuffix("_total") + suffix for suffix in SUFFIXES)}
            # Those of what is followed are made in a loop.
            if 'f"meshbus_kube_{name}"' in path.read_text():
                found |= {f"meshbus_kube_{name}" for name in ("objects", "malformed", "invalid")}
    return found


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.name)
def test_metrics_are_there(dashboard: Dashboard) -> None:
    asked = {
        name
        for panel in dashboard.panels
        for query, _ in panel.queries
        for name in re.findall(r"\b((?:meshbus|istio|process)_[a-z0-9_]+)", query)
    }
    assert asked
    assert asked <= exported()


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.name)
def test_variables_are_asked_for(dashboard: Dashboard) -> None:
    used = {
        name
        for panel in dashboard.panels
        for query, _ in panel.queries
        for name in re.findall(r"\$(\w+)", query)
    }
    assert used == {name for name, _ in dashboard.choices}
