"""A real Envoy takes both of its documents together, whoever says how many connections it takes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gateway_mesh import envoy_binary
from started_envoy import arguments

from meshbus.inject.bootstrap import FOLDER, bootstrap_files

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"connectionSettings": {"globalDownstreamConnectionLimit": 7}},
        {"connectionSettings": {"listenerConnectionLimit": 7}, "runtimeValues": {"a.b": "1"}},
        {"runtimeValues": {"overload.global_downstream_max_connections": "9"}},
    ],
)
def test_the_documents_fit_together(tmp_path: Path, config: dict[str, Any]) -> None:
    for name, text in bootstrap_files(str(tmp_path)).items():
        (tmp_path / name).write_text(text)
    args = [arg.replace(FOLDER, str(tmp_path)) for arg in arguments(config)]
    document = json.loads(args[3])
    assert args[0] == "-c"
    assert args[2] == "--config-yaml"
    text = json.dumps(document).replace("$(INSTANCE_IP)", "127.0.0.1")
    command = [envoy_binary(), "--mode", "validate", *args[:3], text, "--disable-hot-restart"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "OK" in result.stdout + result.stderr
