"""Fetching keys of tokens: when, from where, and what is kept of an answer."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

import pytest
from meshbus_policy.fetch import MAX_BYTES, MAX_REDIRECTS, Fetcher, FetchError, forbidden, networks
from meshbus_policy.fetching import FIRST_RETRY_S, LAST_RETRY_S, Schedule
from meshbus_policy.key_sets import fetch_keys, fetched_well, timeout_of

from meshbus.compile.key_sets import public_key_set
from meshbus.model.key_sources import Need
from meshbus.model.rows import KeySet

EC = {"kty": "EC", "crv": "P-256", "x": "eA", "y": "eQ", "kid": "one"}
KEYS = json.dumps({"keys": [EC]})
LOOPBACK = networks("127.0.0.0/8")


# --------------------------------------------------------------------------- when


def test_each_source_is_due_at_once_and_then_after_a_while() -> None:
    schedule = Schedule(100, lambda: 0.5)
    schedule.keep({"a": None, "b": fetched_well(KeySet("b", KEYS, fetched=50))}, now=100)
    assert schedule.due(100) == ["a"], "b was fetched before this process began"
    schedule.done("a", 100, good=True)
    assert schedule.due(149) == []
    assert schedule.due(150) == ["b"]
    assert schedule.due(200) == ["b", "a"]
    schedule.keep({"a": None}, now=200)
    assert schedule.due(1000) == ["a"], "nobody needs b any more"


def test_failures_back_off_with_jitter_up_to_a_limit() -> None:
    waits = []
    for chance in (0.0, 1.0):
        schedule = Schedule(100_000, lambda chance=chance: chance)
        schedule.keep({"a": None}, now=0)
        now, seen = 0.0, []
        for _ in range(20):
            schedule.done("a", now, good=False)
            seen.append(schedule.next_at(0) - now)
            now = schedule.next_at(0)
        waits.append(seen)
    least, most = waits
    assert (least[0], most[0]) == (FIRST_RETRY_S / 2, FIRST_RETRY_S)
    assert (least[-1], most[-1]) == (LAST_RETRY_S / 2, LAST_RETRY_S)
    assert most == sorted(most)


def test_a_failing_source_is_tried_at_once_by_a_new_leader_and_a_clock_set_back_does_no_harm() -> (
    None
):
    schedule = Schedule(100, lambda: 0.5)
    failing = fetched_well(KeySet("a", KEYS, fetched=95, error="away", failing_since=96))
    schedule.keep({"a": failing, "b": fetched_well(KeySet("b", KEYS, fetched=9_000))}, now=100)
    assert schedule.due(100) == ["a"]
    assert schedule.due(200) == ["a", "b"]


# --------------------------------------------------------------------------- what is kept


def test_only_what_is_public_is_kept() -> None:
    private = {**EC, "d": "c2VjcmV0", "x5u": "https://a"}
    shared = {"kty": "oct", "k": "c2VjcmV0"}
    kept = public_key_set(json.dumps({"keys": [private, shared, {"kty": "new"}, 7]}))
    assert json.loads(kept) == {"keys": [EC]}
    for nothing in ("", "[]", "{", json.dumps({"keys": [shared]}), json.dumps({"keys": {}})):
        assert public_key_set(nothing) == ""


# --------------------------------------------------------------------------- from where


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("127.0.0.1", True),
        ("169.254.169.254", True),
        ("0.0.0.0", True),
        ("224.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:169.254.169.254", True),
        ("fe80::1", True),
        ("10.0.0.1", False),
        ("93.184.215.14", False),
        ("2606:2800::1", False),
    ],
)
def test_addresses(address: str, refused: bool) -> None:
    assert forbidden(address, []) is refused
    assert not forbidden(address, networks("0.0.0.0/0,::/0"))


def of(issuer: str, *timeouts: str) -> Need:
    return Need(frozenset({issuer}), frozenset(timeouts))


def test_the_longest_time_that_a_rule_allows() -> None:
    assert timeout_of(of("i")) == 5
    assert timeout_of(of("i", "1s", "2500ms")) == 2.5
    assert timeout_of(of("i", "1h")) == 30
    assert timeout_of(of("i", "nonsense")) == 5


Answer = Callable[[str], bytes]


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """A server that answers with whatever `answer` gives for a path; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(head.split(b" ")[1].decode()))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def ok(body: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return (head + body).encode()


def redirect(to: str) -> bytes:
    head = f"HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    return head.encode()


async def test_loopback_is_not_asked_unless_it_may_be() -> None:
    asked = []

    def answer(path: str) -> bytes:
        asked.append(path)
        return ok(KEYS)

    async with serving(answer) as url:
        for written in (url, url.replace("127.0.0.1", "localhost")):
            with pytest.raises(FetchError, match="jwks_allow"):
                await Fetcher([]).get(f"{written}/keys", 5)
        assert not asked
        assert await Fetcher(LOOPBACK).get(f"{url}/keys", 5) == KEYS.encode()


async def test_redirects_are_followed_a_few_times_and_looked_at_each_time() -> None:
    def answer(path: str) -> bytes:
        left = int(path.rpartition("/")[2])
        return redirect(f"/{left - 1}") if left else ok(KEYS)

    async with serving(answer) as url:
        assert await Fetcher(LOOPBACK).get(f"{url}/{MAX_REDIRECTS}", 5) == KEYS.encode()
        with pytest.raises(FetchError, match="redirects"):
            await Fetcher(LOOPBACK).get(f"{url}/{MAX_REDIRECTS + 1}", 5)
    for target in ("http://169.254.169.254/", "file:///etc/passwd", "http://[::1]:1/"):
        async with serving(lambda _path, target=target: redirect(target)) as url:
            with pytest.raises(FetchError):
                await Fetcher(LOOPBACK).get(f"{url}/", 5)


@pytest.mark.parametrize(
    "answer",
    [
        ok("x" * (MAX_BYTES + 1)),
        b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
        b"nonsense\r\n\r\n",
        b"",
    ],
)
async def test_other_answers_are_failures(answer: bytes) -> None:
    async with serving(lambda _path: answer) as url:
        with pytest.raises(FetchError):
            await Fetcher(LOOPBACK).get(f"{url}/", 5)


@pytest.mark.parametrize("url", ["https://", "ftp://a", "http://a\x00b/", "http://nobody.invalid/"])
async def test_urls_that_cannot_be_asked_are_failures(url: str) -> None:
    with pytest.raises(FetchError):
        await Fetcher([]).get(url, 5)


async def test_who_does_not_answer_is_given_up() -> None:
    async with serving(lambda _path: b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"[:20]) as url:
        hanging = await asyncio.start_server(lambda _r, _w: asyncio.sleep(60), "127.0.0.1", 0)
        port = hanging.sockets[0].getsockname()[1]
        with pytest.raises(FetchError, match="no answer"):
            await Fetcher(LOOPBACK).get(f"http://127.0.0.1:{port}/", 0.2)
        hanging.close()
        with pytest.raises(FetchError):
            await Fetcher(LOOPBACK).get(url, 5)


async def test_openid_configuration_leads_to_the_keys() -> None:
    place = "/.well-known/openid-configuration"

    def answer(path: str) -> bytes:
        if path == "/keys":
            return ok(KEYS)
        return ok(json.dumps({"issuer": issuer, "jwks_uri": f"{base}/keys"}))

    async with serving(answer) as base:
        issuer = base
        fetcher = Fetcher(LOOPBACK)
        found = await fetch_keys(fetcher, base + place, of(base))
        assert json.loads(found) == {"keys": [EC]}
        with pytest.raises(FetchError, match="another issuer"):
            await fetch_keys(fetcher, base + place, of("https://you"))
    for wrong in (
        "[]",
        "{",
        json.dumps({"issuer": "i"}),
        json.dumps({"issuer": "i", "jwks_uri": 7}),
    ):
        async with serving(lambda _path, wrong=wrong: ok(wrong)) as base:
            with pytest.raises(FetchError, match="OpenID"):
                await fetch_keys(fetcher, base + place, of("i"))
