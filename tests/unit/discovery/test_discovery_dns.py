"""Mesh DNS: what names mean to whom, on real sockets, with another resolver behind it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from dns_client import AAAA, CNAME, TXT, A, Reply, Zone, ask, question
from hypothesis import given
from hypothesis import strategies as st
from meshbus_discovery.dns_messages import HEADER_BYTES, Malformed, answer, parse_query, refusal
from meshbus_discovery.dns_names import Caller, Names, caller_at, find
from meshbus_discovery.dns_server import MeshDns, addresses
from meshbus_discovery.dns_upstream import Upstream, resolvers_of
from prometheus_client import CollectorRegistry

from meshbus.compile.families import IPV4
from meshbus.model.keys import Key
from meshbus.model.revisions import RevisionView
from meshbus.model.rows import (
    ConfigObject,
    Endpoint,
    EndpointShard,
    MeshConfigRow,
    Row,
    Service,
    ServicePort,
    WorkloadInstance,
)
from meshbus.model.world import Put, World, world_of

C = "Kubernetes"
OWN = Caller("default")
NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3


def service(host: str, namespace: str = "default", **fields: Any) -> tuple[Key, Row]:
    origin = "kubernetes" if host.endswith(".svc.cluster.local") else "external"
    fields = {"origin": origin, "ports": [ServicePort("http", 80, "HTTP")], **fields}
    row = Service(host=host, namespace=namespace, name=host.partition(".")[0], **fields)
    return Key(C, "reg", "services", namespace, host), row


def endpoints(host: str, *found: Endpoint, namespace: str = "default") -> tuple[Key, Row]:
    key = Key(C, "reg", "endpoints", namespace, host, "selected")
    return key, EndpointShard(host, namespace, "selected", list(found))


def pod(name: str, *where: str, ready: bool = True) -> Endpoint:
    return Endpoint(list(where), {"http": 80}, instance=name, ready=ready)


def workload(name: str, address: str, **fields: Any) -> tuple[Key, Row]:
    row = WorkloadInstance(name, "default", name, name, addresses=[address], **fields)
    return Key(C, "reg", "workloads", "default", name), row


def names_in(world: World) -> Names:
    return Names(world)


REVIEWS = "reviews.default.svc.cluster.local"
DB = "db.default.svc.cluster.local"
WORLD = world_of(
    dict(
        [
            service(REVIEWS, addresses=["240.240.0.1", "2001:2::1"]),
            endpoints(REVIEWS, pod("reviews-0", "10.0.0.1", "fd00::1")),
            service(DB, headless=True),
            endpoints(DB, pod("db-0", "10.0.0.7"), pod("db-1", "10.0.0.8", ready=False)),
            service("six.default.svc.cluster.local", addresses=["2001:2::6"]),
            service("alias.default.svc.cluster.local", external_name="Reviews.default.svc."
                    "cluster.local."),
            service("away.default.svc.cluster.local", external_name="www.example.org"),
            service("round.default.svc.cluster.local", external_name="round.default.svc."
                    "cluster.local"),
            service("api.example.com", auto_addresses=["240.240.0.9", "2001:2::9"]),
            service("named.example.com", addresses=["198.51.100.1", "198.51.100.0/24"]),
            service("picked.example.com", headless=True, resolution="NONE"),
            endpoints("picked.example.com", pod("vm-0", "10.0.0.9"), pod("vm-1", "10.0.0.6")),
            service("nobody.example.com", headless=True, resolution="NONE"),
            service("cidr.example.com", addresses=["198.51.100.0/24"]),
            service("*.wild.example.com", addresses=["240.240.0.77"]),
            service("many.default.svc.cluster.local", addresses=[f"10.9.{i // 250}.{i % 250}"
                    for i in range(500)]),
            service("hidden.other.svc.cluster.local", "other", addresses=["240.240.0.8"],
                    export_to=["."]),
            endpoints("hidden.other.svc.cluster.local", pod("hidden-0", "10.0.0.4"),
                      namespace="other"),
            service("shown.other.svc.cluster.local", "other", addresses=["240.240.0.5"]),
            workload("outsider", "127.0.0.1", sidecar=False),
        ]
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "caller", "expected"),
    [
        (REVIEWS, OWN, ("240.240.0.1", "2001:2::1")),
        ("reviews.default.svc", OWN, ("240.240.0.1", "2001:2::1")),
        ("reviews.default", OWN, ("240.240.0.1", "2001:2::1")),
        ("reviews", OWN, ("240.240.0.1", "2001:2::1")),
        ("reviews", Caller("other"), None),
        (REVIEWS, Caller("default", virtual=False), ("10.0.0.1", "fd00::1")),
        (DB, OWN, ("10.0.0.7",)),
        (f"db-0.{DB}", OWN, ("10.0.0.7",)),
        (f"db-1.{DB}", OWN, ("10.0.0.8",)),
        ("db-1.db.default", OWN, ("10.0.0.8",)),
        (f"db-9.{DB}", OWN, "NXDOMAIN"),
        (f"reviews-0.{REVIEWS}", OWN, "NXDOMAIN"),
        ("api.example.com", OWN, ("240.240.0.9", "2001:2::9")),
        ("api.example.com", Caller("default", virtual=False), None),
        ("named.example.com", OWN, ("198.51.100.1",)),
        ("cidr.example.com", OWN, None),
        ("picked.example.com", OWN, ("10.0.0.9", "10.0.0.6")),
        ("vm-0.picked.example.com", OWN, None),
        ("nobody.example.com", OWN, None),
        ("a.b.wild.example.com", OWN, ("240.240.0.77",)),
        ("wild.example.com", OWN, None),
        ("www.example.org", OWN, None),
        ("www.example.org.default.svc.cluster.local", OWN, "NXDOMAIN"),
        ("svc.cluster.local", OWN, ()),
        ("default.svc.cluster.local", OWN, ()),
        ("nobody.svc.cluster.local", OWN, "NXDOMAIN"),
        ("hidden.other.svc.cluster.local", OWN, ("10.0.0.4",)),
        ("reviews", Caller("default", families=IPV4), ("240.240.0.1",)),
        ("hidden.other.svc.cluster.local", Caller("other"), ("240.240.0.8",)),
        ("hidden.other.svc.cluster.local", Caller(), ("10.0.0.4",)),
        ("shown.other", Caller(), ("240.240.0.5",)),
    ],
)
def test_what_a_name_means(name: str, caller: Caller, expected: Any) -> None:
    found = find(names_in(WORLD), name, caller)
    if expected is None:
        assert found is None
    elif expected == "NXDOMAIN":
        assert found is not None
        assert not found.exists
    else:
        assert found is not None
        assert (found.exists, found.addresses) == (True, expected)


class Running:
    """Mesh DNS and the resolver behind it."""

    def __init__(self) -> None:
        self.world: World | None = WORLD
        self.zone = Zone(
            {
                "www.example.org": ["203.0.113.1", "2001:db8::1"],
                "big.example.org": [f"203.0.{i // 250}.{i % 250}" for i in range(400)],
            }
        )
        self.seconds = 1000.0

    def names(self) -> Names | None:
        return None if self.world is None else names_in(self.world)

    async def ask(self, name: str, kind: int = A, *, proxies: bool = False, **how: Any) -> Reply:
        server = self.dns.bound[1 if proxies else 0]
        return await asyncio.to_thread(partial(ask, server, name, kind, **how))


@pytest_asyncio.fixture
async def running() -> AsyncIterator[Running]:
    made = Running()
    await made.zone.start()
    upstream = Upstream([made.zone.address], lambda: made.seconds)
    made.dns = MeshDns(
        [("127.0.0.2", 0)], [("127.0.0.2", 0)], upstream, made.names, CollectorRegistry()
    )
    task = asyncio.create_task(made.dns.run())
    while len(made.dns.bound) < 2:
        await asyncio.sleep(0)
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        made.zone.close()


async def test_both_families_by_both_transports(running: Running) -> None:
    running.world = world_of({k: e for k, e in _rows(WORLD) if k.name != "outsider"})
    for tcp in (False, True):
        four = await running.ask("ReViews.default.svc.cluster.local", tcp=tcp)
        assert (four.code, four.addresses, four.authoritative) == (0, ["240.240.0.1"], True)
        assert four.records[0][0] == "ReViews.default.svc.cluster.local", "case comes back"
        six = await running.ask(REVIEWS, AAAA, tcp=tcp)
        assert six.addresses == ["2001:2::1"]
    missing = await running.ask("six.default.svc.cluster.local")
    assert (missing.code, missing.records) == (NOERROR, []), "the name is there, the family not"
    text = await running.ask(REVIEWS, TXT)
    assert (text.code, text.records) == (NOERROR, [])
    assert running.zone.asked == []


def _rows(world: World) -> list[tuple[Key, Any]]:
    return [(entry.key, entry.row) for table in world.tables() for entry in world.all(table)]


async def test_who_reaches_no_virtual_address_gets_endpoints(running: Running) -> None:
    assert (await running.ask(REVIEWS, proxies=True)).addresses == ["10.0.0.1"]
    assert (await running.ask(REVIEWS)).addresses == ["10.0.0.1"], "127.0.0.1 has no sidecar"
    await running.ask("api.example.com")
    assert running.zone.asked == [("api.example.com", A)]


async def test_aliases_inside_and_outside(running: Running) -> None:
    inside = await running.ask("alias.default.svc.cluster.local")
    assert inside.addresses == ["10.0.0.1"]
    assert inside.records[0][1:] == (CNAME, inside.records[0][2], REVIEWS)
    outside = await running.ask("away.default.svc.cluster.local", AAAA)
    assert outside.addresses == ["2001:db8::1"]
    assert [kind for _, kind, _, _ in outside.records] == [CNAME, AAAA]
    assert (await running.ask("round.default.svc.cluster.local")).code == SERVFAIL


async def test_long_answers_are_cut_and_asked_by_tcp(running: Running) -> None:
    running.world = world_of({k: e for k, e in _rows(WORLD) if k.name != "outsider"})
    name = "many.default.svc.cluster.local"
    for payload in (0, 512, 4096):
        short = await running.ask(name, payload=payload)
        assert (short.truncated, short.records) == (True, [])
    assert len((await running.ask(name, tcp=True)).addresses) == 500
    assert (await running.ask("big.example.org")).truncated
    assert len((await running.ask("big.example.org", tcp=True)).addresses) == 400


async def test_other_names_are_asked_once_and_remembered(running: Running) -> None:
    for _ in range(3):
        assert (await running.ask("www.example.org")).addresses == ["203.0.113.1"]
    assert len(running.zone.asked) == 1
    running.seconds += 20
    assert (await running.ask("www.example.org")).records[0][2] == 40, "less time to live"
    running.seconds += 41
    await running.ask("www.example.org")
    assert len(running.zone.asked) == 2
    unknown = await running.ask("nobody.example.org")
    assert unknown.code == NXDOMAIN


async def test_without_model_or_resolver_nothing_is_made_up(running: Running) -> None:
    running.world = None
    assert (await running.ask(REVIEWS)).code == SERVFAIL
    running.world = WORLD
    running.zone.close()
    assert (await running.ask("www.example.org", tcp=True)).code == SERVFAIL
    assert (await running.ask(REVIEWS)).code == NOERROR


async def test_bad_messages_get_an_error_or_silence(running: Running) -> None:
    def exchange(data: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect(running.dns.bound[0])
            sock.send(data)
            return sock.recv(512)

    whole = question(REVIEWS)
    two = whole[:4] + b"\0\2" + whole[6:]
    assert (await asyncio.to_thread(exchange, two))[3] & 15 == 1
    update = whole[:2] + b"\x28\0" + whole[4:]
    assert (await asyncio.to_thread(exchange, update))[3] & 15 == 4
    assert await running.dns.reply(b"\0\1", "127.0.0.9", False, tcp=False) == b""
    assert (await running.ask(REVIEWS)).code == NOERROR


@given(st.binary(max_size=80))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    try:
        query = parse_query(data)
    except Malformed as error:
        if error.code < 0:
            return
        reply = refusal(data, error.code)
    else:
        reply = answer(query)
    assert len(reply) >= HEADER_BYTES
    assert reply[:2] == data[:2]


def test_settings_are_read_or_named() -> None:
    assert addresses("127.0.0.1:53, [::1]:5353", "dns") == [("127.0.0.1", 53), ("::1", 5353)]
    with pytest.raises(ValueError, match=r"dns: '127\.0\.0\.1'"):
        addresses("127.0.0.1", "dns")
    text = "# x\nnameserver 10.0.0.2\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nsearch a\n"
    assert resolvers_of(text, ["10.0.0.1"]) == [("10.0.0.2", 53), ("fe80::1", 53)]


@pytest.mark.parametrize(
    ("settings", "near", "far"),
    [
        ({}, True, True),
        ({"defaultServiceExportTo": ["."]}, True, False),
        ({"defaultServiceExportTo": ["far"]}, False, True),
        ({"serviceEntryVisibility": {"defaultVisibility": "NAMESPACE"}}, True, True),
        (
            {"serviceEntryVisibility": {"defaultVisibility": "NAMESPACE", "applyToSidecars": True}},
            True,
            False,
        ),
        (
            {"serviceEntryVisibility": {"defaultVisibility": "NONE", "applyToSidecars": True}},
            False,
            False,
        ),
    ],
)
def test_names_are_seen_by_whom_their_services_are(
    settings: dict[str, Any], near: bool, far: bool
) -> None:
    key = Key(C, "mesh", "config", "", "mesh")
    held = service("api.example.com", auto_addresses=["240.240.0.9"])
    world = world_of(dict([held, (key, MeshConfigRow(settings))]))
    for namespace, seen in (("default", near), ("far", far)):
        found = find(names_in(world), "api.example.com", Caller(namespace))
        assert (found is not None and bool(found.addresses)) is seen


def labelled(revision: str) -> dict[str, str]:
    return {"istio.io/rev": revision}


def test_a_name_means_what_the_control_plane_of_the_asker_acts_on() -> None:
    """Two revisions on one bus: a Sidecar, an entry and mesh settings of each, and pods of both;
    whichever discovery is asked."""
    entry = service(
        "api.example.com",
        auto_addresses=["240.240.0.9"],
        labels=labelled("blue"),
        source="cfg.serviceentries/default/api",
    )
    spec = {"egress": [{"hosts": ["./db.default.svc.cluster.local"]}]}
    sidecar = ConfigObject(
        "networking.istio.io/v1", "Sidecar", "default", "default", "u", 1, 0.0,
        labels=labelled("default"), spec=spec,
    )  # fmt: skip
    hosts = [service(REVIEWS, addresses=["240.240.0.1"]), service(DB, addresses=["240.240.0.2"])]
    instances = [
        workload(f"of-{revision or 'none'}", f"10.0.0.{number}", annotations=notes)
        for number, (revision, notes) in enumerate(
            {"default": labelled("default"), "blue": labelled("blue"), "": {}}.items(), 1
        )
    ]
    rows = dict([*hosts, entry, *instances])
    rows[Key(C, "cfg", "sidecars", "default", "default")] = sidecar
    for asked in ("default", "blue"):
        names = Names(world_of(rows), RevisionView(asked, objects=False))
        for address, revision in (
            ("10.0.0.1", "default"),
            ("10.0.0.2", "blue"),
            ("10.0.0.3", asked),
        ):
            caller = caller_at(names.world, address)
            # Where the Sidecar counts reviews is given as to who has no proxy.
            found = find(names, REVIEWS, caller)
            assert found is not None
            virtual = ("240.240.0.1",) if revision == "blue" else ()
            assert found.addresses == virtual, (asked, address)
            mine = find(names, "api.example.com", caller)
            assert (mine is not None) == (revision == "blue"), (asked, address)
        # The Sidecar moves to the other control plane.
        key = Key(C, "cfg", "sidecars", "default", "default")
        moved = msgspec.structs.replace(sidecar, labels=labelled("blue"))
        names.update(*names.world.apply([Put(key, 9, 0.0, moved)]))
        for address, virtual in (("10.0.0.1", ("240.240.0.1",)), ("10.0.0.2", ())):
            found = find(names, REVIEWS, caller_at(names.world, address))
            assert found is not None
            assert found.addresses == virtual, (asked, address)


def test_without_revisions_every_object_counts() -> None:
    held = service("api.example.com", auto_addresses=["240.240.0.9"], labels=labelled("blue"),
                   source="cfg.serviceentries/default/api")  # fmt: skip
    caller = Caller("default", revision="other")
    found = find(Names(world_of(dict([held]))), "api.example.com", caller)
    assert found is not None
    assert found.addresses == ("240.240.0.9",)
