"""The directory of a mesh."""

import stat
from pathlib import Path

import pytest
import yaml

from meshbus.local.home import (
    Home,
    HomeError,
    HomeState,
    api_token,
    kubeconfig,
    parse_settings,
    write_bus_seeds,
    write_private,
)


def test_a_home_is_private(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    home.create()
    users = write_bus_seeds(home)
    token = api_token(home)
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    secret = [home.tokens_file, *home.seeds.iterdir()]
    assert len(secret) == 1 + len(users)
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
    assert api_token(home) == token
    assert write_bus_seeds(home) == users


def test_a_home_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="--home"):
        Home(tmp_path / "file" / "h").create()


def test_only_one_supervisor_holds_a_home(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    assert not home.locked()
    assert home.lock() is not None
    assert Home(tmp_path).lock() is None
    assert Home(tmp_path).locked()


def test_state_survives(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    assert home.state() is None
    state = HomeState("ab12cd34", "proxy", {"api": 20001}, "127.130.0.0/22")
    home.keep_state(state)
    assert Home(tmp_path).state() == state


def test_settings() -> None:
    settings = parse_settings(
        "ports: {api: 8080}\nmesh: {trustDomain: example.org}\nservices: {processes: one}", "s"
    )
    assert settings.ports.api == 8080
    assert settings.ports.bus == 0
    assert settings.ip_families == []
    assert parse_settings("ipFamilies: [IPv6, IPv4]", "s").ip_families == ["IPv6", "IPv4"]
    assert settings.trust_domain == "example.org"
    assert settings.root_namespace == "istio-system"
    assert parse_settings("", "s").services.processes == "separate"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ports: {apo: 1}", "apo"),
        ("ports: {api: many}", "ports.api"),
        ("a: [", "s: "),
        ("services: {processes: two}", "separate or one"),
        ("ipFamilies: [IPv5]", "ipFamilies"),
        ("ipFamilies: [IPv6, IPv6]", "twice"),
        ('xds: {plaintext: "0.0.0.0:15010"}', "loopback"),
    ],
)
def test_wrong_settings_are_named(text: str, reason: str) -> None:
    with pytest.raises(HomeError, match=reason):
        parse_settings(text, "s")


def test_private_files_are_whole_and_0600(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_private(path, b"one")
    write_private(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(OSError, match="key"):
        write_private(tmp_path / "key", b"secret")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_kubeconfig_is_one_that_kubectl_reads() -> None:
    document = yaml.safe_load(kubeconfig("https://127.0.0.1:1", "PEM", "secret"))
    assert document["current-context"] == "meshbus"
    assert document["users"][0]["user"] == {"token": "secret"}
    assert document["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"


@pytest.mark.parametrize(
    "text", ["ports: {dns: 99999}", "ports: {api: -1}", "ports: {forwards: {a: 0}}"]
)
def test_a_port_that_there_cannot_be_is_named(text: str) -> None:
    with pytest.raises(HomeError, match=r"s: Expected .*ports\."):
        parse_settings(text, "s")
