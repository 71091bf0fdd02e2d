"""Guides of traffic, as a reader follows them: each command, and what the guide says it prints."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from guide_text import Command, Manifest, commands_and_files, same
from standalone import end_mesh

from meshbus.local.home import Home

pytestmark = [pytest.mark.real, pytest.mark.slow]
GUIDES = Path(__file__).parents[2] / "docs" / "guides"
TOOLS = ("curl", "openssl", "kubectl")
PORTS = {
    "default/edge:8080": ("PORT", "HTTP"),
    "default/edge:8443": ("HTTPS",),
}
"""How guides call the ports on localhost that `up` prints."""
APART = "Kubernetes Ingress|TCP by weight|The nearest first|WebSocket and gRPC"
"""Sections with meshes and ports of their own, which tests of tasks follow."""


class Reader:
    """Somebody who follows guides in a shell, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._exports = [
            f'export PATH="{Path(sys.executable).parent}:$PATH" COLUMNS=200',
            "export KUBECONFIG=$PWD/mesh/kubeconfig",
        ]

    def follow(self, guide: str) -> None:
        """Do all that a guide says."""
        text = re.sub(rf"^## ({APART})$.*?(?=^## |\Z)", "", guide, flags=re.MULTILINE | re.DOTALL)
        steps = commands_and_files(text)
        for step in steps:
            if isinstance(step, Manifest) and step.file:
                (self.folder / step.file).write_text(step.text)
        for step in steps:
            if isinstance(step, Command):
                self._run(step)
            elif not step.file:
                self._route(step.text)

    def _route(self, http: str) -> None:
        """The routes of the guide's VirtualService change."""
        indented = "".join(f"  {line}\n" for line in http.splitlines())
        head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: shop}\n"
        hosts = "spec:\n  hosts: [shop, shop.example.com]\n  gateways: [mesh, edge]\n"
        (self.folder / "routes.yaml").write_text(head + hosts + indented)
        self._run(Command("meshbus apply -f routes.yaml --wait", ()))

    def _run(self, step: Command) -> None:
        if step.text.startswith("export "):
            self._exports.append(step.text)
            return
        forwards = self.folder / "mesh" / "run" / "forwards" / "forwards.json"
        known = json.loads(forwards.read_text()) if forwards.exists() else {}
        names = [f"{n}={p}" for where, p in known.items() for n in PORTS.get(where, ())]
        text = re.sub(r"localhost:PORT\b", "localhost:$PORT", step.text)
        done = subprocess.run(
            ["bash", "-c", "\n".join([*self._exports, *names, text])],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        # curl waits for more of a WebSocket than there is.
        assert done.returncode == 0 or "--max-time" in text, f"{text}\n{done.stdout}{done.stderr}"
        if step.output:
            printed = (done.stdout + done.stderr).splitlines()
            assert same(step.output, printed), f"{text}\n{done.stdout}{done.stderr}"


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
)
@pytest.mark.parametrize(
    "guides",
    [("traffic", "edge"), ("traffic", "scope")],
    ids="+".join,
)
def test_a_guide_does_what_it_says(guides: tuple[str, ...], tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    try:
        for guide in guides:
            reader.follow((GUIDES / f"{guide}.md").read_text())
    finally:
        end_mesh(Home(tmp_path / "mesh"))
