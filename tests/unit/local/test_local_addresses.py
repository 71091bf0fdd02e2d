"""Addresses and ports of a home."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshbus.local import addresses as a

TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0400827F:2378 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 0100007F:2379 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 2
   2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3
"""


@given(st.lists(st.integers(0, 30), max_size=60))
def test_the_book_gives_each_instance_its_own_index(steps: list[int]) -> None:
    book = a.AddressBook()
    held: dict[str, int] = {}
    for step in steps:
        name = f"default/i-{step % 10}"
        if step % 3 == 0:
            book.release(name)
            held.pop(name, None)
        else:
            index = book.index_of(name)
            assert held.setdefault(name, index) == index
    assert len(set(held.values())) == len(held)


def test_the_book_is_full_at_its_limit() -> None:
    book = a.AddressBook({f"default/i-{n}": n for n in range(a.MAX_INSTANCES)})
    with pytest.raises(ValueError, match="more than 500 instances"):
        book.index_of("default/one-more")


def test_a_block_is_stable_and_avoids_what_is_used() -> None:
    first = a.choose_block("/srv/mesh", a.LOOPBACK_RANGE, [])
    assert first == a.choose_block("/srv/mesh", a.LOOPBACK_RANGE, [])
    assert first.subnet_of(a.LOOPBACK_RANGE)
    other = a.choose_block("/srv/mesh", a.LOOPBACK_RANGE, [first.network_address + 5])
    assert not other.overlaps(first)
    with pytest.raises(ValueError, match="no free block"):
        a.choose_block("/srv/mesh", a.BRIDGE_RANGE, [IPv4Network("10.0.0.0/8")])


def test_homes_have_different_ipv6_networks() -> None:
    assert a.choose_block6("/a") != a.choose_block6("/b")
    assert a.choose_block6("/a").subnet_of(a.BRIDGE6_RANGE)


def test_listeners_are_read_from_the_table_of_the_kernel() -> None:
    assert a.listening_addresses(TCP) == [IPv4Address("0.0.0.0"), IPv4Address("127.130.0.4")]


def test_ports_are_not_those_of_outgoing_connections() -> None:
    port = a.choose_port([], lambda port: True)
    assert port in a.PORT_RANGE
    assert a.PORT_RANGE.stop <= 32768
    with pytest.raises(ValueError, match="no free port"):
        a.choose_port([], lambda port: False)
