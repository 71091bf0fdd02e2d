"""Sessions of clients that ask: virtual hosts by VHDS, clusters beside a wildcard."""

from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from meshbus_xds_gateway.asked import MAX_ASKED, MAX_ASKED_BYTES
from meshbus_xds_gateway.classes import Classes
from meshbus_xds_gateway.delta import asked_names
from meshbus_xds_gateway.node import asks_safely
from meshbus_xds_gateway.session_state import ProtocolError
from meshbus_xds_gateway.verdicts import Verdicts
from xds_client import Client, Stream, mesh, res

from meshbus.compile.proxy_keys import ProxyKeys
from meshbus.compile.resources import CDS, EDS, LDS, RDS, VHDS, Resource
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Service, ServicePort
from meshbus.model.world import Put, world_of

FIRST = "~"


class Envoy(Client):
    """A client that keeps virtual hosts as Envoy does: it drops those of a route configuration that
    it does not have, though it notes their versions, and asks for those that it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts: dict[str, dict[str, bytes]] = {}
        """By route configuration and authority."""
        self.asked: set[str] = set()

    def connect(self) -> None:
        for type_url in (CDS, LDS):
            self.open(type_url)
        self.open(RDS, tuple(sorted(self.names.get(RDS, ()))))
        self.open(VHDS, tuple(sorted(self.asked)))

    def watch(self, table: str) -> None:
        if table not in self.names[RDS]:
            self.subscribe(RDS, table)

    def drop(self, table: str) -> None:
        """The last listener of a route configuration goes."""
        if table in self.names[RDS]:
            self.unsubscribe(RDS, table)
            self.hosts.pop(table, None)
            gone = sorted(n for n in self.asked if n.startswith(f"{table}/"))
            self.asked.difference_update(gone)
            if gone:
                self.unsubscribe(VHDS, *gone)

    def request(self, table: str, authority: str) -> None:
        """A request that finds no route."""
        if table in self.hosts and authority not in self.hosts[table]:
            self.asked.add(f"{table}/{authority}")
            self.subscribe(VHDS, f"{table}/{authority}")

    def take(self, message: bytes) -> None:
        response = discovery_pb2.DeltaDiscoveryResponse.FromString(message)
        super().take(message)
        for resource in response.resources:
            table, _, authority = resource.name.rpartition("/")
            if response.type_url == RDS and resource.name in self.names[RDS]:
                self.hosts.setdefault(resource.name, {})
            elif response.type_url == VHDS and table in self.hosts:
                self.hosts[table][authority] = resource.resource.value
        if response.type_url == VHDS:
            for name in response.removed_resources:
                table, _, authority = name.rpartition("/")
                self.hosts.get(table, {}).pop(authority, None)

    def _wants(self, type_url: str, name: str) -> bool:
        return type_url == VHDS or super()._wants(type_url, name)


class Asking(Stream):
    """A stream whose server answers every authority, as a fleet does."""

    def __init__(self, client: Envoy, verdicts: Verdicts, world: "World") -> None:
        super().__init__(client, verdicts)
        self.world = world
        self.asked: set[str] = set()

    def give(self) -> None:
        wanted = {**self.world.contents, VHDS: self.world.hosts(self.asked)}
        self.session.update(wanted, self.world.sequence, self.now)

    def server_reads(self) -> bool:
        if self.client.to_server:
            request = self.protocol.decode(self.client.to_server[0])
            names = asked_names(request)
            if request.type_url == VHDS and names is not None:
                self.asked = self.asked.difference(names[1]) | names[0]
                self.give()
        return super().server_reads()


class World:
    """Route configurations and what virtual hosts say."""

    def __init__(self) -> None:
        self.sequence = 1
        self.contents: dict[str, dict[str, Resource]] = mesh(cds_a="1", eds_a="1", lds_a="1")
        self.tables: dict[str, str] = {}
        self.says: dict[str, str] = {}

    def put(self, table: str, content: str | None) -> None:
        self.sequence += 1
        self.tables.pop(table, None)
        if content is not None:
            self.tables[table] = content
        routes = {t: res(RDS, t, c) for t, c in self.tables.items()}
        self.contents = {**self.contents, RDS: routes}

    def hosts(self, asked: set[str]) -> dict[str, Resource]:
        names = {f"{table}/{FIRST}" for table in self.tables}
        names |= {name for name in asked if name.rpartition("/")[0] in self.tables}
        return {n: res(VHDS, n, self.says.get(n.rpartition("/")[2], "0")) for n in sorted(names)}


def running(world: World, client: Envoy, verdicts: Verdicts | None = None) -> Asking:
    stream = Asking(client, verdicts or Verdicts(), world)
    stream.give()
    client.connect()
    return stream


def test_virtual_hosts_come_after_their_route_configuration_and_the_first_unasked():
    world, client = World(), Envoy()
    world.put("80", "1")
    client.names[RDS] = {"80"}
    stream = running(world, client)
    stream.settle()
    kinds = [(kind, names) for kind, names, _ in stream.sent() if kind in (RDS, VHDS)]
    assert kinds == [(RDS, ["80"]), (VHDS, ["80/~"])]
    client.request("80", "a")
    stream.settle()
    assert stream.sent() == [(VHDS, ["80/a"], [])]


def test_a_new_route_configuration_brings_its_hosts_though_they_were_sent_before():
    world, client = World(), Envoy()
    client.names[RDS] = set()
    stream = running(world, client)
    stream.settle()
    world.put("9090", "1")
    stream.give()
    stream.settle()
    assert client.hosts == {}, "what came for it before it was there is lost"
    client.watch("9090")
    stream.settle()
    assert set(client.hosts["9090"]) == {FIRST}


def test_hosts_wait_for_the_route_configuration_that_is_on_its_way():
    world, client = World(), Envoy()
    world.put("80", "1")
    client.names[RDS] = {"80"}
    stream = running(world, client)
    stream.settle()
    client.request("80", "a")
    world.put("80", "2")
    stream.give()
    while stream.server_reads() or stream.server_writes():
        pass
    assert len(stream.to_client) == 1, "the route configuration, and nothing beside it"
    stream.settle()
    assert {"a", FIRST} == set(client.hosts["80"])


def test_asking_again_is_answered_again():
    world, client = World(), Envoy()
    world.put("80", "1")
    client.names[RDS] = {"80"}
    stream = running(world, client)
    client.hosts["80"] = {}
    client.request("80", "a")
    stream.settle()
    stream.sent()
    client.subscribe(VHDS, "80/a")
    stream.settle()
    assert stream.sent() == [(VHDS, ["80/a"], [])]


def test_a_wildcard_that_has_nothing_is_answered():
    client = Client()
    stream = Stream(client)
    client.open(VHDS)
    stream.session.update(mesh(), 1, stream.now)
    stream.settle()
    assert stream.sent() == [(VHDS, [], [])]


def test_a_cluster_by_name_beside_the_wildcard():
    """As on-demand CDS asks for it: sent, sent again when asked again, and its absence is told."""
    client = Client()
    stream = Stream(client)
    stream.session.update(mesh(cds_a="1"), 1, stream.now)
    client.open(CDS)
    client.open(LDS)
    stream.settle()
    stream.sent()
    stream.session.update(mesh(cds_a="1", cds_b="1"), 2, stream.now)
    client.subscribe(CDS, "b")
    stream.settle()
    assert stream.sent() == [(CDS, ["b"], [])]
    client.subscribe(CDS, "nobody")
    stream.settle()
    assert stream.sent() == [(CDS, [], ["nobody"])]
    stream.session.update(mesh(cds_a="1", cds_b="1", cds_nobody="1"), 3, stream.now)
    stream.settle()
    assert stream.sent() == [(CDS, ["nobody"], [])]


@pytest.mark.parametrize(
    ("version", "safe"),
    [("1.40.0", True), ("1.41.2", True), ("2.0.0", True), ("1.39.9", False), ("0.0.0", False)],
)
def test_only_envoys_that_lose_nothing_are_let_ask(version: str, safe: bool) -> None:
    assert asks_safely(version) is safe


TABLES = st.sampled_from(["80", "90"])
WORDS = st.sampled_from(["a", "b", "c"])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("table"), TABLES, st.sampled_from(["1", "2"]) | st.none()),
        st.tuples(st.just("says"), WORDS, st.sampled_from(["1", "2", "3"])),
        st.tuples(st.just("request"), TABLES, WORDS),
        st.tuples(st.just("request"), TABLES, WORDS),
        st.tuples(st.just("watch"), TABLES),
        st.tuples(st.just("drop"), TABLES),
        st.tuples(st.sampled_from(["server_reads", "server_writes", "client_reads"])),
        st.tuples(st.just("settle")),
        st.tuples(st.just("reconnect")),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(ACTIONS)
def test_who_asks_has_what_it_asked_for(actions: list[tuple[Any, ...]]) -> None:
    """Whatever happens in whatever order: each route configuration that the client has is in use,
    and its virtual hosts say what they should."""
    world, client, verdicts = World(), Envoy(), Verdicts()
    world.put("80", "1")
    client.names[RDS] = {"80"}
    stream = running(world, client, verdicts)
    for verb, *args in actions:
        if verb == "table":
            world.put(*args)
            stream.give()
        elif verb == "says":
            world.says[args[0]] = args[1]
            world.sequence += 1
            stream.give()
        elif verb == "reconnect":
            stream = running(world, client, verdicts)
        elif verb in ("request", "watch", "drop"):
            getattr(client, verb)(*args)
        else:
            getattr(stream, verb)()
    stream.settle()
    for table in client.names[RDS] & world.tables.keys():
        hosts = client.hosts[table]
        assert FIRST in hosts
        for name in client.asked:
            if name.startswith(f"{table}/"):
                authority = name.rpartition("/")[2]
                assert hosts[authority] == res(VHDS, name, world.says.get(authority, "0")).body
    assert stream.session.converged(world.sequence, stream.now + 10) == world.sequence


def test_types_that_are_asked_for_by_name_alone_take_no_wildcard():
    for type_url in (EDS, RDS):
        client = Client()
        stream = Stream(client)
        stream.session.update(mesh(eds_a="1", rds_a="1"), 1, stream.now)
        client.open(type_url)
        stream.settle()
        assert stream.sent() == []


# --------------------------------------------------------------------------- who has asked for what


class Member:
    """A client as classes need it."""

    def __init__(self, name: str) -> None:
        told = 'proxyMetadata: {MESHBUS_VIRTUAL_HOSTS: "on-demand", MESHBUS_CLUSTERS: "on-demand"}'
        self.keys = ProxyKeys("sidecar", name, "default", proxy_config=told, may_ask=True)


def named(name: str, text: str) -> dict[Key, Any]:
    host = f"{name}.default.svc.cluster.local"
    service = Service(host, "default", name, "kubernetes", [ServicePort("http", 80, "HTTP")])
    answer = {"directResponse": {"status": 200, "body": {"string": text}}}
    networking = "networking.istio.io/v1"
    return {
        Key("c", "reg", "services", "default", host): service,
        Key("c", "cfg", "virtualservices", "default", name): ConfigObject(
            networking,
            "VirtualService",
            "default",
            name,
            name,
            1,
            0.0,
            spec={"hosts": [host], "http": [answer]},
        ),
    }


def classes() -> Classes:
    made = Classes(lambda what: pytest.fail(what))
    made.update(world_of({**named("a", "1"), **named("b", "1"), **named("c", "1")}), ())
    return made


def given_to(held: Classes, member: Any) -> dict[str, Any]:
    proxies = held.class_of(member)
    assert proxies is not None
    return held.contents_for(member, proxies, proxies.contents)


def test_clients_that_have_asked_for_the_same_hold_one_content():
    held = classes()
    one, two = Member("one"), Member("two")
    for member, names in ((one, ("80/a", "80/b")), (two, ("80/b", "80/a"))):
        held.join(member)  # type: ignore[arg-type]
        for name in names:
            held.asked.ask(member, VHDS, [name], [])  # type: ignore[arg-type]
    first, second = given_to(held, one), given_to(held, two)
    assert first[VHDS] is second[VHDS]
    assert set(first[VHDS]) == {"80/~", "80/a", "80/b"}


def test_a_change_concerns_those_who_have_asked_for_it():
    held = classes()
    members = {name: Member(name) for name in "ab"}
    for name, member in members.items():
        held.join(member)  # type: ignore[arg-type]
        held.asked.ask(member, VHDS, [f"80/{name}"], [])  # type: ignore[arg-type]
        given_to(held, member)
    held.changed()
    puts = [Put(key, 2, 0.0, row) for key, row in named("a", "2").items()]
    world, touched = held.engine.world.apply(puts)
    held.update(world, touched)
    held.engine.advance()
    _, clients, _ = held.changed()
    assert clients == {members["a"]}


def test_what_nobody_asks_for_any_more_is_let_go():
    held = classes()
    member = Member("one")
    held.join(member)  # type: ignore[arg-type]
    given_to(held, member)
    before = held.engine.size()
    held.asked.ask(member, VHDS, ["80/a", "80/nobody"], [])  # type: ignore[arg-type]
    held.asked.ask(member, CDS, ["outbound|80||a.default.svc.cluster.local"], [])  # type: ignore[arg-type]
    contents = given_to(held, member)
    assert "80/nobody" in contents[VHDS]
    assert "outbound|80||a.default.svc.cluster.local" in contents[CDS]
    held.asked.ask(member, VHDS, [], ["80/a", "80/nobody"])  # type: ignore[arg-type]
    assert set(given_to(held, member)[VHDS]) == {"80/~"}
    assert held.engine.size() == before


def test_a_stream_asks_for_so_many_and_no_more():
    held = classes()
    member = Member("one")
    held.join(member)  # type: ignore[arg-type]
    names = [f"80/{number}" for number in range(MAX_ASKED + 1)]
    held.asked.ask(member, VHDS, names[1:], [])  # type: ignore[arg-type]
    held.asked.ask(member, VHDS, names[1:], [])  # type: ignore[arg-type]
    with pytest.raises(ProtocolError):
        held.asked.ask(member, VHDS, names[:1], [])  # type: ignore[arg-type]


def test_what_a_stream_asks_for_has_a_size():
    held = classes()
    member = Member("one")
    held.join(member)  # type: ignore[arg-type]
    half = "a" * (MAX_ASKED_BYTES // 2)
    held.asked.ask(member, VHDS, [f"80/{half}"], [])  # type: ignore[arg-type]
    with pytest.raises(ProtocolError):
        held.asked.ask(member, VHDS, [f"80/b{half}"], [])  # type: ignore[arg-type]
    held.asked.ask(member, VHDS, [], [f"80/{half}"])  # type: ignore[arg-type]
    held.asked.ask(member, VHDS, [f"80/b{half}"], [])  # type: ignore[arg-type]


def test_a_client_whose_class_is_another_one_keeps_what_it_has_asked_for():
    held = classes()
    member = Member("one")
    held.join(member)  # type: ignore[arg-type]
    held.asked.ask(member, VHDS, ["80/a", "80/nobody"], [])  # type: ignore[arg-type]
    before = given_to(held, member)[VHDS]
    closed = {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}
    key = Key("c", "cfg", "sidecars", "default", "default")
    row = ConfigObject(
        "networking.istio.io/v1", "Sidecar", "default", "d", "d", 1, 0.0, spec=closed
    )
    world, touched = held.engine.world.apply([Put(key, 2, 0.0, row)])
    held.update(world, touched)
    held.engine.advance()
    _, clients, _ = held.changed()
    assert clients == {member}
    after = given_to(held, member)[VHDS]
    assert set(after) == set(before)
    assert after.get("80/a") is before.get("80/a")
    assert after.get("80/nobody") is not before.get("80/nobody"), "it is refused now"
    held.leave(member)  # type: ignore[arg-type]
    assert held.engine.size() == 0
