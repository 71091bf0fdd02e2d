"""Commands that were typed wrong: what they say, how they end, that they have begun nothing."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from meshbus.cli.main import app
from meshbus.cli.objects import _print_results
from meshbus.cli.proxies import ConfigType, config_type


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["up", "-f", "absent.yaml"], "absent.yaml: No such file or directory", 2),
        (["up", "--capture", "magic"], "--capture: proxy or netns, not 'magic'", 2),
        (["up", "-f", "bad.yaml"], "bad.yaml:2: document 0: not YAML", 1),
        (["proxy-config", "banana", "edge-0"], "clusters, listeners", 2),
        (["workload", "run", "x", "--address", "127.9.9.1", "--application", "a"], "proxy", 2),
        (["workload", "run", "x", "--address", "127.9.9.1", "--capture", "proxy"], "listens", 2),
        (["workload", "run", "x", "--address", "vm.example"], "--address: 'vm.example'", 2),
        (
            ["workload", "run", "x", "--address", "10.0.0.1", "--address", "10.0.0.2"],
            "--address: one of each family",
            2,
        ),
    ],
)
def test_wrong_use(
    arguments: list[str], says: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("a: [\n]]")
    environment = {"MESHBUS_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    result = CliRunner().invoke(app, arguments, env=environment)
    assert (result.exit_code, result.stdout) == (code, "")
    assert says in result.stderr
    assert not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_one_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["up", "--home", str(tmp_path / "file")])
    assert result.exit_code == 1
    assert "choose another directory with --home" in result.stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("clusters", ConfigType.CLUSTERS),
        ("cluster", ConfigType.CLUSTERS),
        ("Listener", ConfigType.LISTENERS),
        ("ecds", ConfigType.EXTENSIONS),
        ("all", ConfigType.ALL),
    ],
)
def test_types_have_the_names_of_istioctl_too(text: str, found: ConfigType) -> None:
    assert config_type(text) is found


def test_there_is_no_type_without_a_name() -> None:
    with pytest.raises(typer.BadParameter):
        config_type("")


def test_what_was_named_on_the_command_line_has_no_place_in_a_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    head = {"file": "", "line": 0, "index": 0, "kind": "Secret", "name": "edge"}
    refused = {**head, "error": {"message": "not found"}}
    _print_results([{**head, "action": "deleted", "warnings": ["Gateway a names it"]}, refused])
    told = capsys.readouterr()
    assert told.out == "secret/edge deleted\n"
    assert told.err == ("warning: secret/edge: Gateway a names it\nerror: secret/edge: not found\n")
