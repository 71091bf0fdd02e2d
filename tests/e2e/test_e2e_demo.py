"""The demo, in both capture modes, as CI and a person run it."""

import os
import shutil
from pathlib import Path

import pytest
from standalone import meshbus, remaining

from meshbus.local.home import Home

pytestmark = [pytest.mark.real, pytest.mark.slow]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("iptables-restore") is None,
    reason="capture mode netns needs root and iptables",
)


@pytest.mark.parametrize(
    "capture", ["proxy", pytest.param("netns", marks=[pytest.mark.root, needs_root])]
)
def test_every_step_of_the_demo_does_what_it_promises(tmp_path: Path, capture: str) -> None:
    home = Home(tmp_path / "h")
    result = meshbus("demo", "--check", "--capture", capture, "--home", str(home.path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every step did what it promised" in result.stdout
    assert result.stdout.count("live on 7 of 7 proxies in") >= 8
    assert remaining(home) == []
    state = home.state()
    assert state is not None
    assert not list(Path("/sys/class/net").glob(f"mb{state.id}*"))
    assert not list(Path("/run").glob(f"**/mb-{state.id}-*"))
    assert not Path(f"/run/meshbus-{state.id}").exists()
