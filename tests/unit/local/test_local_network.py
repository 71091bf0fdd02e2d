"""Where everything of a home is, by the families that it has."""

import ipaddress

import pytest

from meshbus.local.addresses import MAX_INSTANCES
from meshbus.local.home import Family, HomeState
from meshbus.local.network import HomeNetwork, host_port, network_of

BLOCK, BLOCK6 = "127.130.0.0/22", "fd6d:6573:1:2::/64"


def network(capture: str, *families: Family) -> HomeNetwork:
    block6 = BLOCK6 if "IPv6" in families else ""
    return network_of(HomeState("ab12cd34", capture, {}, BLOCK, block6, list(families)))


@pytest.mark.parametrize("families", [("IPv4",), ("IPv6",), ("IPv4", "IPv6")])
def test_addresses_on_loopback_are_those_of_no_other_instance(families: tuple[Family, ...]) -> None:
    home = network("proxy", *families)
    seen: set[str] = set()
    for index in range(MAX_INSTANCES):
        given = home.instance(index)
        own = [*given.inbound, given.application]
        assert len(set(own)) == len(families) + 1
        assert not seen & set(own)
        seen |= set(own)
    blocks = [ipaddress.ip_network(b) for b in (BLOCK, BLOCK6)]
    assert all(any(ipaddress.ip_address(a) in b for b in blocks) for a in seen)
    assert {":" in address for address in seen} == {family == "IPv6" for family in families}


def test_namespaces_have_one_address_of_each_family_beside_the_bridge() -> None:
    both = network("netns", "IPv4", "IPv6")
    assert both.instance(0) == (("127.130.0.4", "fd6d:6573:1:2::4"), "")
    assert both.bridges == ("127.130.0.1", "fd6d:6573:1:2::1")
    assert both.resolvers == ("127.130.0.2", "fd6d:6573:1:2::2")
    six = network("netns", "IPv6")
    assert six.instance(3) == (("fd6d:6573:1:2::7",), "")
    assert (six.bridges, six.prefix(six.bridges[0])) == (("fd6d:6573:1:2::1",), 64)


def test_the_first_family_reaches_the_control_plane() -> None:
    assert network("proxy", "IPv6").loopback == "::1"
    assert network("proxy", "IPv4", "IPv6").proxies_reach == "127.0.0.1"
    assert network("proxy", "IPv6", "IPv4").loopbacks == ("::1", "127.0.0.1")
    assert network("netns", "IPv6", "IPv4").proxies_reach == "fd6d:6573:1:2::1"


def test_a_home_of_before_has_the_families_of_its_blocks() -> None:
    assert network_of(HomeState("a", "netns", {}, BLOCK, BLOCK6)).families == ("IPv4", "IPv6")
    assert network_of(HomeState("a", "proxy", {}, BLOCK)).families == ("IPv4",)


def test_ports_stand_behind_brackets() -> None:
    assert host_port("::1", 80) == "[::1]:80"
    assert host_port("127.0.0.1", "80") == "127.0.0.1:80"
