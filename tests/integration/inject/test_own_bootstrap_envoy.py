"""A bootstrap of one's own, in a real Envoy that is started as injection starts that of a pod."""

import json
import subprocess
from pathlib import Path

import httpx
import pytest
from gateway_mesh import envoy_binary, free_port
from started_envoy import arguments, until

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_envoy_starts_from_a_file_of_ones_own(tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    where = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps({"node": {"id": "mine", "cluster": "c"}, "admin": {"address": where}})
    )
    args = arguments({"customConfigFile": str(file), "concurrency": 1})
    assert "--config-yaml" not in args

    def info() -> dict[str, object]:
        try:
            found: dict[str, object] = httpx.get(
                f"http://127.0.0.1:{port}/server_info", trust_env=False
            ).json()
        except httpx.TransportError:
            return {}
        return found

    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([envoy_binary(), *args], stdout=log, stderr=log)
    try:
        until(lambda: info().get("state") == "LIVE", "Envoy runs")
        told = info()["node"]
        assert isinstance(told, dict)
        assert told["id"] == "mine"
    finally:
        process.terminate()
        process.wait()
