"""The product page in a real browser: what a person sees."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from standalone import gateway_port, mesh

from meshbus.local.api import MeshApi
from meshbus.local.demo import sample_manifests

pytestmark = [pytest.mark.real, pytest.mark.slow]


def _browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no Chromium is installed")


def _run(browser: str, profile: Path, *arguments: str) -> str:
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            f"--user-data-dir={profile}",
            "--window-size=1280,1000",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_shows_red_stars(tmp_path: Path) -> None:
    browser = _browser()
    with mesh(tmp_path) as home:
        with MeshApi(home) as api:
            change, _ = api.apply(sample_manifests("reviews-v3"))
            assert api.receipt(change).state == "converged"
        url = f"http://127.0.0.1:{gateway_port(home)}/productpage"
        page = _run(browser, tmp_path / "profile", "--dump-dom", url)
        assert "The Comedy of Errors" in page
        assert "★" in page
        assert "red" in page
        shot = tmp_path / "page.png"
        _run(browser, tmp_path / "profile", f"--screenshot={shot}", url)
        width, height = struct.unpack(">II", shot.read_bytes()[16:24])
        assert (width, height) == (1280, 1000)
        assert shot.stat().st_size > 10_000
