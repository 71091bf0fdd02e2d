"""From settings of a home to what it is made of."""

import socket
from pathlib import Path
from typing import NamedTuple

import pytest

from meshbus.local.begin import OwnAddresses, prepare
from meshbus.local.home import Home, HomeError
from meshbus.local.network import network_of


class Machine(NamedTuple):
    """A machine with some addresses, all ports of which are free."""

    present: tuple[str, ...]
    may_add: bool = False

    def is_free(self, port: int, host: str) -> bool:
        return host in self.present

    def can_add(self) -> bool:
        return self.may_add


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "h")
    made.create()
    return made


def test_families_are_those_of_the_settings(home: Home) -> None:
    machine = Machine(("127.0.0.1", "::1"), may_add=True)
    assert network_of(prepare(home, "proxy", machine)).families == ("IPv4",)
    home.settings_file.write_text("ipFamilies: [IPv6, IPv4]")
    first = prepare(home, "proxy", machine)
    assert network_of(first).families == ("IPv6", "IPv4")
    assert prepare(home, "proxy", machine) == first
    home.settings_file.write_text("ipFamilies: [IPv6]")
    assert network_of(prepare(home, "proxy", machine)).loopbacks == ("::1",)


def test_a_machine_without_a_family_is_told(home: Home) -> None:
    home.settings_file.write_text("ipFamilies: [IPv4, IPv6]")
    with pytest.raises(HomeError, match=r"settings\.yaml: ipFamilies: this machine has no IPv6"):
        prepare(home, "proxy", Machine(("127.0.0.1",)))


def test_who_cannot_add_addresses_is_told_which_to_add(home: Home) -> None:
    home.settings_file.write_text("ipFamilies: [IPv6]")
    with pytest.raises(HomeError, match="ip -6 addr add fd6d:6573:") as refused:
        prepare(home, "proxy", Machine(("127.0.0.1", "::1")))
    first = str(refused.value).partition("ip -6 addr add ")[2].partition("/")[0]
    second = first[:-1] + "5"
    state = prepare(home, "proxy", Machine(("::1", first, second)))
    assert network_of(state).instance(0) == ((first,), second)


def test_a_fixed_port_that_another_program_has_is_told(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        home.settings_file.write_text(f"ports: {{api: {port}}}")
        with pytest.raises(HomeError, match=rf"port {port} \(settings\.yaml: ports\.api\)"):
            prepare(home, "proxy")
    assert prepare(home, "proxy").ports["api"] == port


def test_a_port_that_was_chosen_and_is_taken_now_is_chosen_again(home: Home) -> None:
    before = prepare(home, "proxy").ports["bus"]
    with socket.create_server(("127.0.0.1", before)):
        assert prepare(home, "proxy").ports["bus"] != before


def test_this_machine_has_its_loopback_address_and_not_anybodys() -> None:
    assert OwnAddresses().is_free(0, "127.0.0.1")
    assert not OwnAddresses().is_free(0, "192.0.2.1")
