"""What both carriers keep, seen by a gRPC client."""

import asyncio
import os
import ssl

import grpc
import pytest
from carrier_recorder import PATIENCE_S, Recorder
from grpc import aio
from meshbus_xds_gateway.carrier import (
    Carrier,
    CarrierError,
    Certificate,
    Closed,
    Limits,
    Opened,
    Signal,
    Status,
    Tls,
)
from meshbus_xds_gateway.carrier_choice import make_carrier
from raw_http2 import END_HEADERS, HEADERS, Peer, frame, request_headers
from transport_certificates import Authority

pytestmark = pytest.mark.real

PATH = "/any.Service/Method"
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 1 << 26)]


def connect(recorder: Recorder, credentials: grpc.ChannelCredentials | None = None) -> aio.Channel:
    target = f"localhost:{recorder.port}"
    if credentials is None:
        return aio.insecure_channel(target, _OPTIONS)
    return aio.secure_channel(target, credentials, _OPTIONS)


async def read(call: aio.StreamStreamCall) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        data: bytes = await call.read()
        return data


async def test_a_call_from_its_beginning_to_its_end(recorder: Recorder) -> None:
    await recorder.start()
    async with connect(recorder) as channel:
        metadata = [("authorization", "Bearer t"), ("x-bin", b"\x00\xff"), ("x-empty", "")]
        call = channel.stream_stream(PATH)(metadata=metadata)
        await call.write(b"first")
        await call.write(b"")
        await call.done_writing()
        (stream,) = await recorder.opened()
        await recorder.told(stream, Signal.HALF_CLOSED)
        opened, *rest = recorder.events[stream]
        assert isinstance(opened, Opened)
        assert opened.path == PATH
        assert set(metadata) <= set(opened.metadata)
        assert {name for name, _ in opened.metadata} <= {
            "authorization",
            "x-bin",
            "x-empty",
            "user-agent",
        }
        host, _, port = opened.peer.rpartition(":")
        assert host in ("127.0.0.1", "[::1]")
        assert port.isdigit()
        assert opened.certificate is None
        assert rest == [b"first", b"", Signal.HALF_CLOSED]
        recorder.carrier.send([(b"one", [stream]), (b"", [stream]), (b"three", [stream])])
        recorder.carrier.close(stream, Status.OK)
        assert [await read(call) for _ in range(3)] == [b"one", b"", b"three"]
        assert await read(call) is aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        await recorder.closed(stream)


async def test_one_message_reaches_all_its_streams(recorder: Recorder) -> None:
    await recorder.start()
    async with connect(recorder) as channel:
        calls = [channel.stream_stream(PATH)() for _ in range(20)]
        for number, call in enumerate(calls):
            await call.write(str(number).encode())
        streams = await recorder.opened(20)
        for stream in streams:
            await recorder.message(stream)
        gone = max(streams) + 1000
        recorder.carrier.send([(b"all", [gone, *streams]), (b"some", streams[:5])])
        assert {await read(call) for call in calls} == {b"all"}
        some = [c for n, c in enumerate(calls) if str(n).encode() in said(recorder, streams[:5])]
        assert [await read(call) for call in some] == [b"some"] * 5
        for call in calls:
            call.cancel()


def said(recorder: Recorder, streams: list[int]) -> list[bytes]:
    return [recorder.messages(stream)[0] for stream in streams]


async def test_a_call_ends_with_its_status_and_text(recorder: Recorder) -> None:
    await recorder.start()
    async with connect(recorder) as channel:
        for begun in (False, True):
            call = channel.stream_stream(PATH)()
            await call.write(b"hello")
            stream = (await recorder.opened(1 + begun))[-1]
            await recorder.message(stream)
            if begun:
                recorder.carrier.send([(b"before", [stream])])
            text = "no: 100% größer\n"
            recorder.carrier.close(stream, Status.PERMISSION_DENIED, text)
            recorder.carrier.send([(b"after", [stream])])
            if begun:
                assert await read(call) == b"before"
            with pytest.raises(aio.AioRpcError) as caught:
                await read(call)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert caught.value.details() == text
            await recorder.closed(stream)


async def test_large_messages_both_ways(recorder: Recorder) -> None:
    await recorder.start()
    up, down = os.urandom(12 << 20), os.urandom(30 << 20)
    async with connect(recorder) as channel:
        call = channel.stream_stream(PATH)()
        await call.write(up)
        (stream,) = await recorder.opened()
        assert await recorder.message(stream) == [up]
        recorder.carrier.send([(down, [stream])])
        assert await read(call) == down
        call.cancel()
        await recorder.closed(stream)


async def test_a_message_over_the_limit_ends_the_call(recorder: Recorder) -> None:
    await recorder.start(limits=Limits(max_message_bytes=1000))
    async with connect(recorder) as channel:
        call = channel.stream_stream(PATH)()
        await call.write(b"x" * 1000)
        (stream,) = await recorder.opened()
        await recorder.message(stream)
        await call.write(b"x" * 1001)
        with pytest.raises(aio.AioRpcError) as caught:
            await read(call)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await recorder.closed(stream)
        assert recorder.messages(stream) == [b"x" * 1000]


async def test_compressed_messages_are_refused(recorder: Recorder) -> None:
    await recorder.start()

    def talk() -> grpc.StatusCode:
        # Not grpc.aio: it says INTERNAL when the answer is there before its message has left.
        with grpc.insecure_channel(f"localhost:{recorder.port}", _OPTIONS) as channel:
            requests = iter([b"x" * 10_000])
            call = channel.stream_stream(PATH)(requests, compression=grpc.Compression.Gzip)
            return call.code()

    for _ in range(5):
        assert await asyncio.to_thread(talk) is grpc.StatusCode.UNIMPLEMENTED
        assert not any(recorder.messages(stream) for stream in recorder.events)


async def test_streams_beyond_the_limit_are_refused(recorder: Recorder) -> None:
    await recorder.start(limits=Limits(max_streams=3))
    async with connect(recorder) as channel:
        calls = [channel.stream_stream(PATH)() for _ in range(3)]
        for call in calls:
            await call.write(b"hello")
        streams = await recorder.opened(3)
        with pytest.raises(aio.AioRpcError) as caught:
            await read(channel.stream_stream(PATH)())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        calls[0].cancel()
        await recorder.until(
            lambda: any(isinstance(recorder.events[s][-1], Closed) for s in streams)
        )
        again = channel.stream_stream(PATH)()
        await again.write(b"hello")
        await recorder.opened(4)
        for call in [*calls, again]:
            call.cancel()


async def test_too_much_metadata_is_refused(recorder: Recorder) -> None:
    await recorder.start(limits=Limits(max_metadata_bytes=4096))
    async with connect(recorder) as channel:
        with pytest.raises(aio.AioRpcError):
            await read(channel.stream_stream(PATH)(metadata=[("x", "y" * 5000)]))
        # gRPC shows the call without the header, then ends it.
        shown = len(recorder.events)
        for stream in recorder.events:
            await recorder.closed(stream)
            assert not recorder.messages(stream)
        call = channel.stream_stream(PATH)(metadata=[("x", "y" * 500)])
        await call.write(b"fits")
        stream = (await recorder.opened(shown + 1))[-1]
        assert await recorder.message(stream) == [b"fits"]
        call.cancel()


async def test_a_cancelled_call_is_told(recorder: Recorder) -> None:
    await recorder.start()
    async with connect(recorder) as channel:
        call = channel.stream_stream(PATH)()
        await call.write(b"hello")
        (stream,) = await recorder.opened()
        call.cancel()
        await recorder.closed(stream)
        # Nothing of it is left, and what comes late hurts nobody.
        recorder.carrier.send([(b"late", [stream])])
        recorder.carrier.close(stream, Status.OK)
        recorder.carrier.pause(stream)
        recorder.carrier.resume(stream)
        await recorder.until(lambda: recorder.carrier.counters()["streams"] == 0)


async def test_a_peer_that_does_not_read_is_told_and_holds_up_nobody(recorder: Recorder) -> None:
    await recorder.start()
    piece = os.urandom(1 << 20)
    async with connect(recorder) as channel, connect(recorder) as other:
        call = channel.stream_stream(PATH)()
        await call.write(b"slow")
        (stream,) = await recorder.opened()
        quick = other.stream_stream(PATH)()
        await quick.write(b"quick")
        beside = (await recorder.opened(2))[1]
        sent = 0
        while Signal.BLOCKED not in recorder.events[stream]:
            recorder.carrier.send([(piece, [stream, beside])])
            sent += 1
            assert await read(quick) == piece
            assert sent < 100, "no limit seen"
        assert Signal.WRITABLE not in recorder.events[stream]
        assert Signal.BLOCKED not in recorder.events[beside] or await writable(recorder, beside)
        for _ in range(sent):
            assert await read(call) == piece
        await recorder.told(stream, Signal.WRITABLE)
        recorder.carrier.send([(b"on", [stream])])
        assert await read(call) == b"on"
        call.cancel()
        quick.cancel()


async def writable(recorder: Recorder, stream: int) -> bool:
    await recorder.told(stream, Signal.WRITABLE)
    return True


async def test_a_paused_stream_is_not_read(recorder: Recorder) -> None:
    await recorder.start()
    piece = os.urandom(1 << 20)
    async with connect(recorder) as channel:
        call = channel.stream_stream(PATH)()
        await call.write(b"hello")
        (stream,) = await recorder.opened()
        await recorder.message(stream)
        recorder.carrier.pause(stream)

        async def write() -> None:
            for _ in range(64):
                await call.write(piece)

        writing = asyncio.create_task(write())
        # The other direction goes on; by its end what was going to arrive has arrived.
        for _ in range(50):
            recorder.carrier.send([(b"down", [stream])])
            assert await read(call) == b"down"
        assert len(recorder.messages(stream)) < 10
        assert not writing.done()
        recorder.carrier.resume(stream)
        await recorder.message(stream, 65)
        await writing
        call.cancel()


async def test_stop_lets_streams_end_and_ends_those_that_do_not(transport: str) -> None:
    recorder = Recorder(make_carrier(transport))
    await recorder.start()
    async with connect(recorder) as channel, connect(recorder) as late:
        one, two = channel.stream_stream(PATH)(), channel.stream_stream(PATH)()
        await one.write(b"one")
        await two.write(b"two")
        first, second = await recorder.opened(2)
        await recorder.message(first)
        stopping = asyncio.create_task(recorder.carrier.stop(0.5))
        recorder.carrier.close(first, Status.OK)
        await stopping
        assert isinstance(recorder.events[first][-1], Closed)
        assert isinstance(recorder.events[second][-1], Closed)
        with pytest.raises(aio.AioRpcError) as caught:
            await read(late.stream_stream(PATH)())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        codes = sorted([(await one.code()).name, (await two.code()).name])
        assert "OK" in codes
        assert codes != ["OK", "OK"]


async def test_tls_and_a_newer_certificate(recorder: Recorder, authority: Authority) -> None:
    await recorder.start(Tls(authority.issue()))
    credentials = grpc.ssl_channel_credentials(authority.root_pem)

    async def talk(count: int) -> None:
        async with connect(recorder, credentials) as channel:
            call = channel.stream_stream(PATH)()
            await call.write(b"hello")
            await recorder.opened(count)
            call.cancel()

    await talk(1)
    first = await served(recorder)
    recorder.carrier.renew(authority.issue())
    assert await served(recorder) != first
    await talk(2)
    kept = await served(recorder)
    with pytest.raises(CarrierError):
        recorder.carrier.renew(Certificate(b"no key", b"no certificate"))
    assert await served(recorder) == kept
    async with connect(recorder) as plain:
        with pytest.raises(aio.AioRpcError) as caught:
            await read(plain.stream_stream(PATH)())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_crowd_that_comes_at_once_is_served_whole(recorder: Recorder) -> None:
    await recorder.start(limits=Limits(max_streams_per_connection=5000))
    peer = await Peer.connect(recorder.port)
    opening = b"".join(
        frame(HEADERS, END_HEADERS, 2 * number + 1, request_headers()) for number in range(4000)
    )
    await peer.send(opening)
    await recorder.opened(4000)
    await peer.close()


async def test_hundreds_of_handshakes(recorder: Recorder, authority: Authority) -> None:
    await recorder.start(Tls(authority.issue()))
    seen = set()
    for number in range(20):
        if number == 10:
            recorder.carrier.renew(authority.issue())
        seen |= set(await asyncio.gather(*(served(recorder) for _ in range(20))))
    assert len(seen) == 2


async def served(recorder: Recorder) -> bytes:
    """The certificate that a connection is shown now."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", recorder.port, ssl=context)
    der: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return der


async def test_client_certificates(recorder: Recorder, authority: Authority) -> None:
    tls = Tls(authority.issue(), authority.root_pem, require_client=True)
    await recorder.start(tls)
    client = authority.issue("client")
    credentials = grpc.ssl_channel_credentials(authority.root_pem, client.key_pem, client.chain_pem)
    async with connect(recorder, credentials) as channel:
        call = channel.stream_stream(PATH)()
        await call.write(b"hello")
        (stream,) = await recorder.opened()
        opened = recorder.events[stream][0]
        assert isinstance(opened, Opened)
        assert opened.certificate == ssl.PEM_cert_to_DER_cert(client.chain_pem.decode())
        call.cancel()
    for wrong in (
        grpc.ssl_channel_credentials(authority.root_pem),
        grpc.ssl_channel_credentials(authority.root_pem, *stranger()),
    ):
        async with connect(recorder, wrong) as channel:
            with pytest.raises(aio.AioRpcError) as caught:
                await read(channel.stream_stream(PATH)())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(recorder.events) == 1


def stranger() -> tuple[bytes, bytes]:
    """A key and a certificate that the test's authority has not signed."""
    other = Authority().issue("client")
    return other.key_pem, other.chain_pem


async def test_an_address_that_cannot_be_used_is_said(transport: str, authority: Authority) -> None:
    first, second = make_carrier(transport), make_carrier(transport)
    port = await first.start("127.0.0.1:0", lambda _: None, None, Limits())
    try:
        with pytest.raises(CarrierError, match=str(port)):
            await second.start(f"127.0.0.1:{port}", lambda _: None, None, Limits())
        with pytest.raises(CarrierError):
            await second.start("nowhere.invalid:0", lambda _: None, None, Limits())
        broken = Tls(Certificate(b"no key", authority.issue().chain_pem))
        with pytest.raises(CarrierError):
            await second.start("127.0.0.1:0", lambda _: None, broken, Limits())
    finally:
        await first.stop(0)


async def test_two_listen_on_one_port(transport: str) -> None:
    limits = Limits(reuse_port=True)
    both: list[Carrier] = [make_carrier(transport), make_carrier(transport)]
    seen: list[set[int]] = [set(), set()]
    port = await both[0].start("127.0.0.1:0", lambda b: seen[0].update(dict(b)), None, limits)
    await both[1].start(f"127.0.0.1:{port}", lambda b: seen[1].update(dict(b)), None, limits)
    channels = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not all(seen):
                channel = aio.insecure_channel(f"127.0.0.1:{port}", _OPTIONS)
                channels.append(channel)
                await channel.stream_stream(PATH)().write(b"hello")
                await asyncio.sleep(0)
    finally:
        for channel in channels:
            await channel.close()
        for carrier in both:
            await carrier.stop(0)
