"""From settings of a home to what it is made of."""

from pathlib import Path

import pytest

from meshbus.local import begin
from meshbus.local.home import Home, HomeError
from meshbus.local.network import network_of


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for finder in ("find_nats_server", "find_envoy"):
        monkeypatch.setattr(begin, finder, lambda: "found")
    made = Home(tmp_path / "h")
    made.create()
    return made


def addresses(monkeypatch: pytest.MonkeyPatch, *present: str) -> None:
    """The machine has these addresses."""
    monkeypatch.setattr(begin, "can_bind", lambda address: address in present)
    monkeypatch.setattr(begin, "port_is_free", lambda port, host="": host in ("", *present))


def test_families_are_those_of_the_settings(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses(monkeypatch, "127.0.0.1", "::1")
    monkeypatch.setattr(begin, "_check_loopback", lambda home, state: None)
    assert network_of(begin.prepare(home, "proxy")).families == ("IPv4",)
    home.settings_file.write_text("ipFamilies: [IPv6, IPv4]")
    first = begin.prepare(home, "proxy")
    assert network_of(first).families == ("IPv6", "IPv4")
    assert begin.prepare(home, "proxy") == first
    home.settings_file.write_text("ipFamilies: [IPv6]")
    assert network_of(begin.prepare(home, "proxy")).loopbacks == ("::1",)


def test_a_machine_without_a_family_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses(monkeypatch, "127.0.0.1")
    home.settings_file.write_text("ipFamilies: [IPv4, IPv6]")
    with pytest.raises(HomeError, match=r"settings\.yaml: ipFamilies: this machine has no IPv6"):
        begin.prepare(home, "proxy")


def test_who_cannot_add_addresses_is_told_which_to_add(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses(monkeypatch, "127.0.0.1", "::1")
    monkeypatch.setattr(begin.shutil, "which", lambda name: None)
    home.settings_file.write_text("ipFamilies: [IPv6]")
    with pytest.raises(HomeError, match="ip -6 addr add fd6d:6573:") as refused:
        begin.prepare(home, "proxy")
    first = str(refused.value).partition("ip -6 addr add ")[2].partition("/")[0]
    second = first[:-1] + "5"
    addresses(monkeypatch, "::1", first, second)
    assert network_of(begin.prepare(home, "proxy")).instance(0) == ((first,), second)
