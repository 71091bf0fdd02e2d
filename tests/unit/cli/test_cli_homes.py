"""Which mesh a command is about."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from meshbus.cli.main import app


@pytest.mark.parametrize("way", ["option", "environment"])
def test_down_ends_the_mesh_that_is_meant(way: str, tmp_path: Path) -> None:
    option = ["--home", str(tmp_path / "one")] if way == "option" else []
    named = tmp_path / ("other" if way == "option" else "one")
    result = CliRunner().invoke(app, ["down", *option], env={"MESHBUS_HOME": str(named)})
    assert result.exit_code == 0
    assert f"nothing runs in {tmp_path / 'one'}" in result.stderr


def test_a_mesh_that_is_not_there_is_looked_for_where_the_environment_says(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["proxy-status"], env={"MESHBUS_HOME": str(tmp_path)})
    assert result.exit_code != 0
    assert f"no mesh runs in {tmp_path}" in result.stderr
