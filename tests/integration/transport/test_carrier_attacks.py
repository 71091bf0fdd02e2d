"""Peers that break HTTP/2 or wear the server down: it ends them, and serves the others.

Error codes: RFC 9113, section 7. How strictly a violation is answered is the carrier's; that memory
stays bounded and that others are served is the contract's.
"""

import asyncio
import contextlib
import resource

import pytest
from carrier_recorder import Recorder
from grpc import aio
from meshbus_xds_gateway.carrier import Closed, Limits, Status
from raw_http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Peer,
    frame,
    literal,
    message,
    request_headers,
)

pytestmark = pytest.mark.real

PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, CALM = 1, 3, 6, 11


def memory_mb() -> float:
    """The most that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def still_serves(recorder: Recorder) -> None:
    before = set(recorder.events)
    async with aio.insecure_channel(
        f"127.0.0.1:{recorder.port}", [("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        call = channel.stream_stream("/any.Service/Method")()
        await call.write(b"well")
        await recorder.until(
            lambda: any(recorder.messages(s) == [b"well"] for s in set(recorder.events) - before)
        )
        call.cancel()


async def test_rapid_reset(recorder: Recorder) -> None:
    await recorder.start()
    peer = await Peer.connect(recorder.port)
    before = memory_mb()
    reading = asyncio.create_task(peer.goaway_code())
    for first in range(1, 40_001, 200):
        burst = b"".join(
            frame(HEADERS, END_HEADERS, stream, request_headers())
            + frame(RST_STREAM, 0, stream, (8).to_bytes(4))
            for stream in range(first, first + 200, 2)
        )
        if not await peer.send(burst):
            break
    await peer.close()
    code = await reading
    await recorder.until(lambda: all(isinstance(e[-1], Closed) for e in recorder.events.values()))
    if recorder.carrier.name == "native":
        assert code in (CALM, None), "None: the socket was reset before it was read"
        assert len(recorder.events) < 1000
    assert memory_mb() - before < 50
    await still_serves(recorder)


async def test_continuation_flood(recorder: Recorder) -> None:
    await recorder.start()
    peer = await Peer.connect(recorder.port)
    before = memory_mb()
    await peer.send(frame(HEADERS, 0, 1, request_headers()))
    more = frame(CONTINUATION, 0, 1, literal("x", "y" * 100) * 100)
    sent = 0
    while await peer.send(more * 16) and sent < 64 << 20:
        sent += 16 * len(more)
    await peer.close()
    if recorder.carrier.name == "grpc" and sent >= 64 << 20:
        pytest.xfail("gRPC keeps a header block that does not end, whatever its size")
    # What the kernel's buffers take until the reset arrives counts as sent, too.
    assert sent < 16 << 20, "a connection may send headers without end"
    assert memory_mb() - before < 50
    await still_serves(recorder)


async def test_bad_frames_end_the_connection(recorder: Recorder) -> None:
    await recorder.start()
    window = frame(WINDOW_UPDATE, 0, 0, (0x7FFF_FFFF).to_bytes(4))
    opened = frame(HEADERS, END_HEADERS, 1, request_headers())
    cases = {
        "window over its maximum": (window + window, {FLOW_CONTROL_ERROR}),
        "frame over its size": (
            opened + frame(DATA, 0, 1, b"x" * 20_000),
            {FRAME_SIZE_ERROR, PROTOCOL_ERROR},
        ),
        "settings with a stream": (frame(SETTINGS, 0, 1), {PROTOCOL_ERROR}),
        "ping of seven bytes": (frame(PING, 0, 0, b"1234567"), {FRAME_SIZE_ERROR, PROTOCOL_ERROR}),
        "continuation of nothing": (
            frame(CONTINUATION, END_HEADERS, 1, request_headers()),
            {PROTOCOL_ERROR},
        ),
        "even stream": (frame(HEADERS, END_HEADERS, 2, request_headers()), {PROTOCOL_ERROR}),
        "broken header block": (
            frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
            {PROTOCOL_ERROR, 9},
        ),
    }
    if recorder.carrier.name == "grpc":
        # gRPC lets these pass.
        del cases["window over its maximum"], cases["even stream"]
    for what, (frames, codes) in cases.items():
        peer = await Peer.connect(recorder.port)
        await peer.send(frames)
        code = await peer.goaway_code()
        assert peer.closed, what
        if recorder.carrier.name == "native":
            assert code in codes, what
        await peer.close()
    await still_serves(recorder)


async def test_no_http2_at_all(recorder: Recorder) -> None:
    await recorder.start()
    for start in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\0" * 64, PREFACE[:10]):
        reader, writer = await asyncio.open_connection("127.0.0.1", recorder.port)
        writer.write(start)
        if start == PREFACE[:10]:
            writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
    await still_serves(recorder)
    assert len(recorder.events) == 1


@pytest.mark.parametrize("kind", ["ping", "settings"])
async def test_flood_of_frames_that_want_an_answer(recorder: Recorder, kind: str) -> None:
    await recorder.start()
    peer = await Peer.connect(recorder.port)
    before = memory_mb()
    one = frame(PING, 0, 0, b"12345678") if kind == "ping" else frame(SETTINGS, 0, 0)
    many, sent = one * 4000, 0
    # It reads nothing: the server stops reading too, or ends it. Both bound its memory.
    with_patience = asyncio.timeout(2)
    try:
        async with with_patience:
            while await peer.send(many) and sent < 64 << 20:
                sent += len(many)
    except TimeoutError:
        pass
    peer.writer.transport.abort()
    assert memory_mb() - before < 50
    await still_serves(recorder)


async def test_peer_that_gives_no_window_holds_up_nobody(recorder: Recorder) -> None:
    await recorder.start()
    peer = await Peer.connect(recorder.port, (INITIAL_WINDOW_SIZE, 0))
    await peer.open(1)
    (stream,) = await recorder.opened()
    data = b"x" * 100_000
    before = memory_mb()
    for _ in range(2000):
        recorder.carrier.send([(data, [stream])])
    await still_serves(recorder)
    # One message, shared: what waits costs its place in a queue, not its size.
    assert memory_mb() - before < 50
    peer.writer.transport.abort()
    await recorder.closed(stream)


async def test_message_that_does_not_end(recorder: Recorder) -> None:
    await recorder.start()
    peer = await Peer.connect(recorder.port)
    await peer.open(1)
    (stream,) = await recorder.opened()
    await peer.send(frame(DATA, END_STREAM, 1, message(b"whole") + message(b"half of it")[:-3]))
    assert await recorder.message(stream) == [b"whole"]
    while not isinstance(recorder.events[stream][-1], Closed):
        recorder.carrier.close(stream, Status.OK)
        await recorder.closed(stream)
    assert recorder.messages(stream) == [b"whole"]
    await peer.close()


async def test_abrupt_end_of_the_connection(recorder: Recorder) -> None:
    await recorder.start()
    peers = [await Peer.connect(recorder.port) for _ in range(10)]
    for peer in peers:
        await peer.open(1)
        await peer.send(frame(DATA, 0, 1, message(b"hello")))
    streams = await recorder.opened(10)
    for stream in streams:
        await recorder.message(stream)
    for peer in peers:
        peer.writer.transport.abort()
    for stream in streams:
        await recorder.closed(stream)
    await recorder.until(lambda: recorder.carrier.counters()["streams"] == 0)


@pytest.mark.slow
async def test_peer_that_answers_no_ping_is_dropped(recorder: Recorder) -> None:
    await recorder.start(limits=Limits(keepalive_s=1, keepalive_timeout_s=1))
    silent, polite = await Peer.connect(recorder.port), await Peer.connect(recorder.port)
    await silent.open(1)
    (stream,) = await recorder.opened()
    await polite.open(1)
    other = (await recorder.opened(2))[1]

    async def answer() -> None:
        while (ping := await polite.until(PING)) is not None:
            await polite.send(frame(PING, ACK, 0, ping[3]))

    answering = asyncio.create_task(answer())
    await recorder.closed(stream)
    assert not isinstance(recorder.events[other][-1], Closed)
    answering.cancel()
    await silent.close()
    await polite.close()


@pytest.mark.slow
async def test_a_closed_stream_does_not_wait_for_ever_for_its_peer(recorder: Recorder) -> None:
    await recorder.start(limits=Limits(keepalive_timeout_s=1))
    peer = await Peer.connect(recorder.port, (INITIAL_WINDOW_SIZE, 0))
    await peer.open(1)
    (stream,) = await recorder.opened()
    recorder.carrier.send([(b"x" * 1000, [stream])])
    recorder.carrier.close(stream, Status.OK)
    await recorder.closed(stream)
    await peer.close()


async def test_connections_beyond_the_limit_are_closed(recorder: Recorder) -> None:
    if recorder.carrier.name == "grpc":
        pytest.skip("gRPC has no limit of connections")
    await recorder.start(limits=Limits(max_connections=2))
    held = [await Peer.connect(recorder.port) for _ in range(2)]
    for peer in held:
        assert await peer.until(SETTINGS)
    refused = await Peer.connect(recorder.port)
    assert await refused.next() is None
    await held[0].close()
    await still_serves(recorder)
    for peer in (held[1], refused):
        await peer.close()


async def test_a_stream_that_leaves_takes_its_connection_along(recorder: Recorder) -> None:
    if recorder.carrier.name == "grpc":
        pytest.skip("gRPC cannot end one connection")
    await recorder.start()
    peer = await Peer.connect(recorder.port)
    await peer.open(1)
    (stream,) = await recorder.opened()
    recorder.carrier.close(stream, Status.OK, leave=True)
    while (found := await peer.next()) is not None:
        if found[0] == PING and not found[1] & ACK:
            await peer.send(frame(PING, ACK, 0, found[3]))
    kinds = [kind for kind, *_ in peer.frames]
    assert kinds.index(GOAWAY) >= 0
    assert [f for f in peer.frames if f[0] == HEADERS and f[1] & END_STREAM]
    await peer.close()
