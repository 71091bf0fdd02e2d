"""A config service on a real nats-server, and a stock kubectl that uses it."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "config"))

from config_harness import TOKEN, make_context, running


@dataclass
class Kubectl:
    """kubectl with the kubeconfig of one mesh."""

    binary: str
    kubeconfig: Path
    folder: Path

    async def start(
        self, *args: str, env: dict[str, str] | None = None, stdin: bool = False
    ) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            self.binary,
            *args,
            env={
                **os.environ,
                "KUBECONFIG": str(self.kubeconfig),
                "HOME": str(self.folder),
                **(env or {}),
            },
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(
        self,
        *args: str,
        env: dict[str, str] | None = None,
        text: str | None = None,
        code: int | None = 0,
    ) -> str:
        """Output, stdout then stderr; `code` None takes any exit code."""
        process = await self.start(*args, env=env, stdin=text is not None)
        async with asyncio.timeout(60):
            out, err = await process.communicate(text.encode() if text is not None else None)
        output = out.decode() + err.decode()
        if code is not None:
            assert process.returncode == code, f"kubectl {' '.join(args)}:\n{output}"
        return output

    async def apply(self, *documents: dict, code: int | None = 0, flags: tuple[str, ...] = ()):
        text = yaml.safe_dump_all(documents)
        return await self.run("apply", "-f", "-", *flags, text=text, code=code)


@pytest_asyncio.fixture
async def kubectl(bus_for, tmp_path) -> AsyncIterator[Kubectl]:
    binary = shutil.which("kubectl")
    if binary is None:
        pytest.skip("kubectl is not installed")
    context = make_context(await bus_for("config"), tmp_path)
    async with running(context):
        where = msgspec.json.decode((context.state / "api.json").read_bytes())
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "mesh",
                    "contexts": [{"name": "mesh", "context": {"cluster": "mesh", "user": "ann"}}],
                    "clusters": [
                        {
                            "name": "mesh",
                            "cluster": {
                                "server": where["url"],
                                "certificate-authority": where["ca"],
                            },
                        }
                    ],
                    "users": [{"name": "ann", "user": {"token": TOKEN}}],
                }
            )
        )
        yield Kubectl(binary, kubeconfig, tmp_path)
