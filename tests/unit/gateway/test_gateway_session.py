"""One xDS stream against a model client."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from meshbus_xds_gateway.client_refusals import reason_of
from meshbus_xds_gateway.session import HOLD_S, Session
from meshbus_xds_gateway.session_state import ProtocolError
from meshbus_xds_gateway.verdicts import Verdicts
from xds_client import Client, Stream, mesh, res

from meshbus.compile.resources import CDS, ECDS, EDS, LDS, RDS, RTDS, SDS

TYPES = (CDS, EDS, LDS, RDS)


def connected(wanted, client=None, refusals=None, names=("a", "b"), name="p") -> Stream:
    stream = Stream(client or Client(), refusals, name)
    stream.session.update(wanted, 1, stream.now)
    for type_url in TYPES:
        stream.client.open(type_url, () if type_url in (CDS, LDS) else tuple(names))
    stream.settle()
    return stream


def contents(client: Client, type_url: str) -> dict[str, bytes]:
    return {name: body for name, (_, body) in client.held[type_url].items()}


def test_client_gets_what_it_asks_for():
    stream = connected(mesh(cds_a="1", eds_a="1", lds_l="1", rds_a="1", rds_other="1"))
    client = stream.client
    assert set(client.held[CDS]) == {"a"}
    assert set(client.held[LDS]) == {"l"}
    assert set(client.held[RDS]) == {"a"}
    assert client.absent[EDS] == {"b"}
    assert stream.session.converged(7, stream.now) == 7


def test_empty_wildcard_is_answered():
    # Without an answer Envoy never asks for listeners.
    stream = connected(mesh())
    assert (CDS, [], []) in stream.sent()


def test_reconnect_with_versions_sends_only_what_differs():
    wanted = mesh(cds_a="1", cds_b="1", eds_a="1", eds_b="1", lds_l="1", rds_a="1")
    client = connected(wanted).client
    client.received.clear()
    again = connected({**wanted, EDS: mesh(eds_a="1", eds_b="2")[EDS]}, client)
    changed = [s for s in again.sent() if s[1]]
    assert changed == [(EDS, ["b"], [])]
    assert contents(client, EDS)["b"].endswith(b"=2")


def test_what_went_while_away_is_removed():
    client = connected(mesh(cds_a="1", cds_b="1", lds_l="1")).client
    again = connected(mesh(cds_a="1", lds_l="1"), client)
    assert (CDS, [], ["b"]) in again.sent()
    assert set(client.held[CDS]) == {"a"}


def test_one_response_in_flight_and_the_rest_is_merged():
    stream = connected(mesh(eds_a="1", eds_b="1"))
    stream.session.update(mesh(eds_a="2", eds_b="1"), 2, stream.now)
    assert stream.server_writes()
    stream.session.update(mesh(eds_a="3", eds_b="2"), 3, stream.now)
    stream.session.update(mesh(eds_a="4", eds_b="2"), 4, stream.now)
    assert not stream.server_writes()
    assert stream.session.converged(4, stream.now) == 1
    stream.sent()
    stream.settle()
    assert [sorted(s[1]) for s in stream.sent()] == [["a"], ["a", "b"]]
    assert stream.session.converged(4, stream.now) == 4


def test_converged_says_the_version_before_the_oldest_open_change():
    stream = connected(mesh(eds_a="1", eds_b="1"))
    stream.session.update(mesh(eds_a="2", eds_b="1"), 5, stream.now)
    assert stream.server_writes()
    stream.session.update(mesh(eds_a="2", eds_b="2"), 8, stream.now)
    assert stream.session.converged(9, stream.now) == 4
    assert stream.client_reads()
    assert stream.server_reads()
    assert stream.session.converged(9, stream.now) == 7


def test_new_service_is_made_before_routes_lead_to_it():
    stream = connected(mesh(cds_a="1", eds_a="1", lds_l="1", rds_a="1"), names=("a",))
    stream.sent()
    stream.session.update(
        mesh(cds_a="1", cds_n="1", eds_a="1", eds_n="1", lds_l="1", rds_a="2"), 2, stream.now
    )
    for _ in range(3):  # the client takes the cluster but has not asked for its endpoints yet
        stream.server_writes(), stream.client_reads(), stream.server_reads()
    assert [s[0] for s in stream.sent()] == [CDS]
    assert stream.session.converged(2, stream.now) == 1
    stream.client.subscribe(EDS, "n")
    stream.settle()
    assert [s[0] for s in stream.sent()] == [EDS, RDS]


def test_a_client_that_does_not_ask_for_endpoints_is_not_waited_for_for_ever():
    stream = connected(mesh(cds_a="1", eds_a="1", lds_l="1", rds_a="1"), names=("a",))
    start = stream.now
    stream.session.update(
        mesh(cds_a="1", cds_n="1", eds_a="1", eds_n="1", lds_l="1", rds_a="2"), 2, stream.now
    )
    stream.settle()
    assert stream.now == pytest.approx(start + HOLD_S, abs=HOLD_S)
    assert contents(stream.client, RDS)["a"].endswith(b"=2")


def test_removed_last():
    stream = connected(mesh(cds_a="1", cds_b="1", eds_a="1", eds_b="1", lds_l="1", rds_a="1"))
    stream.sent()
    stream.session.update(mesh(cds_a="1", eds_a="1", lds_l="1", rds_a="2"), 2, stream.now)
    stream.settle()
    assert stream.sent() == [(RDS, ["a"], []), (CDS, [], ["b"]), (EDS, [], ["b"])]


def test_listener_that_takes_a_port_over_comes_with_the_removal():
    stream = connected(mesh(cds_a="1", lds_old="1"))
    stream.sent()
    stream.session.update(mesh(cds_a="1", lds_new="1"), 2, stream.now)
    stream.settle()
    assert stream.sent() == [(LDS, ["new"], ["old"])]


def test_changed_cluster_brings_its_endpoints_again():
    stream = connected(mesh(cds_a="1", cds_b="1", eds_a="1", eds_b="1"))
    stream.sent()
    stream.session.update(mesh(cds_a="2", cds_b="1", eds_a="1", eds_b="1"), 2, stream.now)
    stream.settle()
    assert stream.sent() == [(CDS, ["a"], []), (EDS, ["a"], [])]


def test_subscribing_again_sends_again():
    stream = connected(mesh(eds_a="1"))
    stream.sent()
    stream.client.subscribe(EDS, "a")
    stream.settle()
    assert stream.sent() == [(EDS, ["a"], [])]


@pytest.mark.parametrize("partial", [False, True])
def test_refused_resource_is_found_and_the_others_go_on(partial):
    stream = connected(mesh(**{f"cds_c{i}": "1" for i in range(8)}), Client(partial))
    changed = {f"cds_c{i}": "2" for i in range(8)} | {"cds_c5": "bad"}
    stream.session.update(mesh(**changed), 2, stream.now)
    stream.settle()
    held = contents(stream.client, CDS)
    assert {n for n, body in held.items() if body.endswith(b"=2")} == {
        f"c{i}" for i in range(8) if i != 5
    }
    assert held["c5"].endswith(b"=1")
    assert [(r.resource.name, r.proxy, r.sequence) for r in stream.refusals] == [("c5", "p", 2)]
    assert set(stream.session.blocked) == {(CDS, "c5")}
    assert stream.session.status(CDS)[0] == "REJECTED"
    stream.sent()
    stream.session.update(mesh(**{**changed, "cds_c1": "3"}), 3, stream.now)
    stream.settle()
    assert [s[1] for s in stream.sent()] == [["c1"]], "what was refused is not offered again"
    stream.session.update(mesh(**{**changed, "cds_c1": "3", "cds_c5": "4"}), 4, stream.now)
    stream.settle()
    assert contents(stream.client, CDS)["c5"].endswith(b"=4")
    assert not stream.session.blocked


def test_routes_go_one_by_one_for_what_is_refused_once_is_taken_without_effect_the_next_time():
    good, bad = mesh(rds_a="1", rds_b="1"), mesh(rds_a="2", rds_b="bad")
    verdicts = Verdicts()
    client = Client(partial=True, remembers=True)
    stream = connected(good, client, verdicts)
    stream.sent()
    stream.session.update(bad, 2, stream.now)
    stream.settle()
    assert [s[1] for s in stream.sent()] == [["a"], ["b"], ["b"]]
    assert [r.resource.name for r in stream.refusals] == ["b"]
    assert set(stream.session.blocked) == {(RDS, "b")}
    assert contents(client, RDS)["a"].endswith(b"=2")
    assert contents(client, RDS)["b"].endswith(b"=1")
    # The content before it went after it: asked once more, the client looks at it once more.
    again = connected(bad, client, Verdicts())
    assert [r.resource.name for r in again.refusals] == ["b"]
    # What somebody has accepted goes to the others together.
    verdicts.accept(res(RDS, "b", "3"))
    other = connected(good, Client(), verdicts, name="q")
    other.sent()
    other.session.update(mesh(rds_a="2", rds_b="3"), 3, other.now)
    other.settle()
    assert [s[1] for s in other.sent()] == [["a", "b"]]


def test_content_that_two_refuse_goes_to_nobody_else():
    refusals = Verdicts()
    good, bad = mesh(cds_a="1", lds_l="1"), mesh(cds_a="bad", lds_l="1")
    fleet = [connected(good, refusals=refusals, name=f"p{i}") for i in range(3)]
    for stream in fleet:
        stream.sent()
        stream.session.update(bad, 2, stream.now)
        stream.settle()
    first, second, third = fleet
    assert [s[1] for s in first.sent()] == [["a"]]
    assert [s[1] for s in second.sent()] == [["a"]], "asked for a second opinion"
    assert third.sent() == []
    assert all((CDS, "a") in stream.session.blocked for stream in fleet)
    assert all(contents(stream.client, CDS)["a"].endswith(b"=1") for stream in fleet)
    newcomer = connected(bad, refusals=refusals, name="newcomer")
    assert contents(newcomer.client, CDS)["a"].endswith(b"=1"), "the last good one instead"


def test_a_proxy_that_refuses_everything_speaks_for_itself_alone():
    verdicts = Verdicts()
    fleet = [connected(mesh(rds_a="1"), refusals=verdicts, name=f"p{i}") for i in range(3)]
    for stream in fleet:
        stream.sent()
        stream.session.update(mesh(rds_a="2"), 2, stream.now)
    broken, *others = fleet
    assert broken.server_writes()
    assert broken.session.nack(RDS, broken.nonce(RDS), "I am broken", broken.now) is not None
    for stream in others:
        stream.settle()
        assert contents(stream.client, RDS)["a"].endswith(b"=2")
    assert (RDS, "a") not in others[0].session.blocked
    assert not verdicts.refusals()


def test_content_that_another_has_accepted_is_blocked_only_where_it_was_refused():
    refusals = Verdicts()
    connected(mesh(cds_a="2"), refusals=refusals)
    lone = Stream(Client(), refusals, "lone")
    lone.session.update(mesh(cds_a="2"), 1, lone.now)
    lone.client.open(CDS)
    lone.server_reads(), lone.server_writes()
    assert lone.session.nack(CDS, lone.nonce(CDS), "no memory", lone.now) is not None
    other = connected(mesh(cds_a="2"), refusals=refusals)
    assert contents(other.client, CDS)["a"].endswith(b"=2")


def test_two_bad_edits_in_a_row_keep_the_last_good_one_for_newcomers():
    refusals = Verdicts()
    stream = connected(mesh(cds_a="1"), refusals=refusals)
    for sequence, content in ((2, "x-bad"), (3, "y-bad")):
        stream.session.update(mesh(cds_a=content), sequence, stream.now)
        stream.settle()
    newcomer = connected(mesh(cds_a="y-bad"), refusals=refusals, name="newcomer")
    assert contents(newcomer.client, CDS)["a"].endswith(b"=1")


def test_new_content_goes_to_one_proxy_first():
    verdicts = Verdicts()
    fleet = [connected(mesh(rds_a="1"), refusals=verdicts, name=f"p{i}") for i in range(3)]
    for stream in fleet:
        stream.session.update(mesh(rds_a="2"), 2, stream.now)
    first, *others = fleet
    assert first.server_writes()
    assert not any(stream.server_writes() for stream in others)
    assert [s.session.converged(2, s.now) for s in fleet] == [1, 1, 1]
    bystander = connected(mesh(rds_a="1"), refusals=verdicts, name="bystander")
    bystander.session.update(mesh(rds_a="1", cds_b="1"), 2, bystander.now)
    assert not any(stream.woken for stream in fleet)
    first.settle()
    assert all(stream.woken for stream in others), "those who waited for the answer"
    assert not bystander.woken, "and nobody else"
    assert all(stream.server_writes() for stream in others)


def test_proxy_that_starts_while_another_tries_is_not_told_that_there_is_nothing():
    verdicts = Verdicts()
    wanted = mesh(cds_a="1", cds_b="1", lds_l="1")
    first, second = Stream(Client(), verdicts, "p"), Stream(Client(), verdicts, "q")
    for stream in (first, second):
        stream.session.update(wanted, 1, stream.now)
        stream.client.open(CDS)
        stream.server_reads()
    assert first.server_writes()
    assert not second.server_writes()
    first.settle()
    second.settle()
    assert second.sent() == [(CDS, ["a", "b"], [])]


def test_proxies_do_not_wait_for_ever_for_the_first_one():
    verdicts = Verdicts()
    first, second = (connected(mesh(rds_a="1"), refusals=verdicts, name=n) for n in "pq")
    for stream in (first, second):
        stream.session.update(mesh(rds_a="2"), 2, stream.now)
    assert first.server_writes()
    assert not second.server_writes()
    wake = second.session.wake_at(second.now)
    assert wake is not None
    second.now = wake
    assert second.server_writes()


def test_when_the_first_proxy_leaves_another_tries():
    verdicts = Verdicts()
    first, second = (connected(mesh(rds_a="1"), refusals=verdicts, name=n) for n in "pq")
    for stream in (first, second):
        stream.session.update(mesh(rds_a="2"), 2, stream.now)
    assert first.server_writes()
    assert not second.server_writes()
    first.session.close()
    assert second.server_writes()


def test_proxy_that_refused_tries_again_on_a_new_stream():
    verdicts = Verdicts()
    stream = connected(mesh(cds_a="1"), refusals=verdicts)
    stream.session.update(mesh(cds_a="bad"), 2, stream.now)
    stream.settle()
    stream.session.close()
    again = connected(mesh(cds_a="bad"), refusals=verdicts)
    assert (CDS, ["a"], []) in again.sent()
    assert contents(again.client, CDS)["a"].endswith(b"=1")


def test_listener_whose_address_is_in_use_is_offered_again():
    stream = connected(mesh(cds_a="1", lds_a="1"))
    stream.session.update(mesh(cds_a="1", lds_a="1", lds_b="1"), 2, stream.now)
    busy = "Error adding/updating listener(s) b: cannot bind '127.0.0.1:80': Address in use"
    pushed = stream.session.poll(stream.now)
    assert pushed is not None
    assert stream.session.nack(LDS, pushed.nonce, busy, stream.now) is not None
    assert stream.session.poll(stream.now) is None
    assert (LDS, "b") in stream.session.blocked
    for _ in range(2):
        stream.now = stream.session.wake_at(stream.now) or 0
        pushed = stream.session.poll(stream.now)
        assert [r.name for r in pushed.resources] == ["b"]
        again = stream.session.nack(LDS, pushed.nonce, busy, stream.now)
        assert again is None, "told once"
    stream.now = stream.session.wake_at(stream.now) or 0
    stream.settle()
    assert "b" in stream.client.held[LDS]
    assert not stream.session.blocked
    assert stream.session.wake_at(stream.now) is None


def test_secret_that_is_not_there_yet_is_waited_for():
    stream = connected(mesh(cds_a="1"))
    stream.session.update({SDS: {"default": None}}, 2, stream.now)
    stream.client.open(SDS, ("default", "stranger"))
    stream.sent()
    stream.settle()
    assert stream.sent() == [(SDS, [], ["stranger"])]
    assert stream.session.converged(2, stream.now) < 2
    stream.session.update({SDS: {"default": res(SDS, "default")}}, 2, stream.now)
    stream.settle()
    assert stream.sent() == [(SDS, ["default"], [])]
    assert stream.session.converged(2, stream.now) == 2


def test_stale_nonce_changes_nothing():
    stream = connected(mesh(cds_a="1"))
    assert not stream.session.ack(CDS, "99")
    assert stream.session.nack(CDS, "99", "no", 0.0) is None
    assert not stream.session.blocked


def test_limits():
    session = Session("p", Verdicts())
    with pytest.raises(ProtocolError):
        session.subscribe(EDS, ["x" * 5000])
    with pytest.raises(ProtocolError):
        session.subscribe(EDS, (str(i) for i in range(200_001)))
    with pytest.raises(ProtocolError):
        session.subscribe(EDS, [], wildcard=True)
    for i in range(32 - 1):
        session.subscribe(f"type{i}", [])
    with pytest.raises(ProtocolError):
        session.subscribe("one more", [])


NAMES = ("a", "b", "c")
CONTENT = st.sampled_from(["1", "2", "3", "xbad", "ybad"])
ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"), st.sampled_from(TYPES), st.sampled_from(NAMES), CONTENT | st.none()
        ),
        st.tuples(st.just("subscribe"), st.sampled_from((EDS, RDS)), st.sampled_from(NAMES)),
        st.tuples(st.just("unsubscribe"), st.sampled_from((EDS, RDS)), st.sampled_from(NAMES)),
        st.tuples(st.sampled_from(["server_reads", "server_writes", "client_reads"])),
        st.tuples(st.just("sleep"), st.floats(0, 3)),
        st.tuples(st.just("reconnect")),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(ACTIONS, st.sampled_from(((False, False), (True, False), (True, True))), st.booleans())
@example(
    [
        ("subscribe", RDS, "a"),
        ("put", CDS, "a", None),
        ("put", RDS, "a", "xbad"),
        ("subscribe", RDS, "b"),
    ],
    (True, True),
    False,
)
def test_session_never_diverges_from_its_client(actions, kind, shared):
    """Whatever happens in whatever order: in the end the client has what it should have."""
    refusals = Verdicts()
    wanted = mesh(cds_a="1", eds_a="1", lds_a="1", rds_a="1")
    client = Client(*kind)

    def connect() -> Stream:
        stream = Stream(client, refusals if shared else Verdicts())
        stream.session.update(wanted, sequence, stream.now)
        for type_url in TYPES:
            client.open(type_url, tuple(sorted(client.names.get(type_url, set()))))
        return stream

    sequence = 1
    stream = connect()
    for verb, *args in actions:
        if verb == "put":
            type_url, name, content = args
            sequence += 1
            held = dict(wanted[type_url])
            held.pop(name, None)
            if content is not None:
                held[name] = res(type_url, name, content)
            wanted = {**wanted, type_url: held}
            stream.session.update(wanted, sequence, stream.now)
        elif verb == "subscribe":
            client.subscribe(*args)
        elif verb == "unsubscribe":
            client.unsubscribe(*args)
        elif verb == "sleep":
            stream.now += args[0]
        elif verb == "reconnect":
            stream = connect()
        else:
            getattr(stream, verb)()
        if stream.session.rests(sequence):
            assert stream.session.converged(sequence, stream.now) == sequence
            assert stream.session.wake_at(stream.now) is None
            assert stream.session.poll(stream.now) is None
    stream.settle()
    assert stream.session.rests(sequence) or stream.session.wake_at(stream.now) is not None
    for type_url in TYPES:
        for name in NAMES:
            resource = wanted[type_url].get(name)
            has = contents(client, type_url).get(name)
            if type_url in (EDS, RDS) and name not in client.names[type_url]:
                assert has is None
            elif resource is None:
                assert has is None, (type_url, name)
            elif resource.body.endswith(b"bad"):
                assert has is None or not has.endswith(b"bad")
                assert (type_url, name) in stream.session.blocked
            else:
                assert has == resource.body, (type_url, name)
    assert stream.session.converged(sequence, stream.now + 10) == sequence


FLEET_ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"), st.sampled_from(TYPES), st.sampled_from(NAMES), CONTENT | st.none()
        ),
        st.tuples(
            st.sampled_from(["server_reads", "server_writes", "client_reads", "reconnect"]),
            st.integers(0, 2),
        ),
        st.tuples(st.just("sleep"), st.floats(0, 3)),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(FLEET_ACTIONS, st.booleans())
def test_streams_that_share_verdicts_do_not_hold_each_other_up(actions, partial):
    """However trials, refusals and reconnects interleave: each client ends with what is good."""
    verdicts = Verdicts()
    wanted = mesh(cds_a="1", eds_a="1", lds_a="1", rds_a="1")
    clients = [Client(partial) for _ in range(3)]
    now, sequence = 100.0, 1

    def connect(number: int) -> Stream:
        stream = Stream(clients[number], verdicts, f"p{number}")
        stream.now = now
        stream.session.update(wanted, sequence, now)
        for type_url in TYPES:
            stream.client.open(type_url, () if type_url in (CDS, LDS) else NAMES)
        return stream

    fleet = [connect(number) for number in range(3)]
    for verb, *args in actions:
        if verb == "put":
            type_url, name, content = args
            sequence += 1
            held = {n: r for n, r in wanted[type_url].items() if n != name}
            if content is not None:
                held[name] = res(type_url, name, content)
            wanted = {**wanted, type_url: held}
            for stream in fleet:
                stream.session.update(wanted, sequence, now)
        elif verb == "sleep":
            now += args[0]
            for stream in fleet:
                stream.now = now
        elif verb == "reconnect":
            fleet[args[0]].session.close()
            fleet[args[0]] = connect(args[0])
        else:
            getattr(fleet[args[0]], verb)()
    for _ in range(20):
        for stream in fleet:
            stream.settle()
    for client in clients:
        for type_url in TYPES:
            for name in NAMES:
                resource, has = wanted[type_url].get(name), contents(client, type_url).get(name)
                if resource is not None and not resource.body.endswith(b"bad"):
                    assert has == resource.body
                else:
                    assert has is None or not has.endswith(b"bad")


def with_filter(there: bool, **contents: str):
    return {**mesh(**contents), ECDS: {"f": res(ECDS, "f", "1")} if there else {}}


@pytest.mark.parametrize("by_name", [False, True])
def test_a_filter_that_goes_is_left_to_the_client_to_forget(by_name):
    # Listeners that are drained still use it: without configuration it answers 500.
    stream = connected(with_filter(True, cds_a="1", lds_l="1"))
    client = stream.client
    client.open(ECDS, ("f", "g"))
    stream.settle()
    assert set(client.held[ECDS]) == {"f"}
    if by_name:
        stream.session._detail(ECDS, stream.session._types[ECDS])
    stream.session.update(with_filter(False, cds_a="1", lds_l="2"), 2, stream.now)
    stream.settle()
    assert set(client.held[ECDS]) == {"f"}
    assert stream.session.converged(2, stream.now) == 2
    stream.session.update(with_filter(True, cds_a="1", lds_l="3"), 3, stream.now)
    stream.settle()
    assert set(client.held[ECDS]) == {"f"}
    assert stream.session.converged(3, stream.now) == 3


def test_reason_of_a_refusal_is_told_without_the_content():
    assert reason_of("cannot bind '127.0.0.1:80'") == "cannot bind '127.0.0.1:80'"
    content = 'goo.gle/debugproto    \nname: "a"\nload_assignment {\n  policy {\n  }\n}\n'
    head = "Error adding/updating cluster(s) a: "
    assert reason_of(f"{head}{content}: Proto constraint: x: y") == f"{head}Proto constraint: x: y"
    assert "constraint" in reason_of(head + content), "cut by Envoy"
    assert "load_assignment" not in reason_of(head + content)


def test_who_asks_for_runtime_values_that_there_are_not_is_told_so():
    # Envoy waits for them before it asks for anything else.
    stream = Stream(Client(), None, "p")
    stream.session.update(mesh(cds_a="1"), 1, stream.now)
    stream.client.open(RTDS, ("limits",))
    stream.settle()
    assert stream.client.absent[RTDS] == {"limits"}
    stream.session.update({RTDS: {"limits": res(RTDS, "limits", "1")}}, 2, stream.now)
    stream.settle()
    assert set(stream.client.held[RTDS]) == {"limits"}
