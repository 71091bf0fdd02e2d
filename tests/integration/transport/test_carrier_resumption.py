"""TLS sessions are resumed by processes that share keys (the native carrier; gRPC cannot)."""

import asyncio
import os
import socket
import ssl

import pytest
from carrier_recorder import Recorder
from meshbus_xds_gateway.carrier import TICKET_KEY_BYTES, CarrierError, Limits, Tls
from meshbus_xds_gateway.carrier_choice import make_carrier, native_is_installed
from transport_certificates import Authority

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not native_is_installed(), reason="meshbus_native is not installed"),
]


def shake_hands(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool]:
    """The session of a connection, and whether it was resumed from another."""
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as tls,
    ):
        assert tls.version() == "TLSv1.3"
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        tls.recv(100)  # with SETTINGS comes the ticket
        return tls.session, bool(tls.session_reused)


async def resumed(keys: list[tuple[bytes, ...]], authority: Authority, roots: list[bytes]) -> bool:
    """Whether a session of the first listener is resumed by the second."""
    listeners = [Recorder(make_carrier("native")) for _ in keys]
    context = ssl.create_default_context(cadata=authority.root_pem.decode())
    context.set_alpn_protocols(["h2"])
    session = None
    reused = False
    try:
        for listener, own, client_roots in zip(listeners, keys, roots, strict=True):
            await listener.start(Tls(authority.issue(), client_roots, ticket_keys=own))
        for listener in listeners:
            session, reused = await asyncio.to_thread(shake_hands, listener.port, context, session)
        counters = listeners[-1].carrier.counters()
        assert counters["handshakes_resumed"] == int(reused)
        assert counters["handshakes_full"] == int(not reused)
    finally:
        for listener in listeners:
            await listener.stop()
    return reused


async def test_processes_that_share_keys_resume_each_others_sessions(authority: Authority) -> None:
    old, new, other = (os.urandom(TICKET_KEY_BYTES) for _ in range(3))
    assert await resumed([(old,), (old,)], authority, [b"", b""])
    assert await resumed([(old,), (new, old)], authority, [b"", b""]), "keys may be changed"
    assert not await resumed([(old,), (other,)], authority, [b"", b""])
    assert not await resumed([(), ()], authority, [b"", b""]), "keys of their own"


async def test_a_session_is_worth_nothing_under_other_roots(authority: Authority) -> None:
    key = os.urandom(TICKET_KEY_BYTES)
    roots = [authority.root_pem, Authority().root_pem]
    assert not await resumed([(key,), (key,)], authority, roots)


async def test_a_listener_resumes_after_its_certificate_is_renewed(authority: Authority) -> None:
    listener = Recorder(make_carrier("native"))
    await listener.start(Tls(authority.issue()))
    context = ssl.create_default_context(cadata=authority.root_pem.decode())
    context.set_alpn_protocols(["h2"])
    try:
        session, _ = await asyncio.to_thread(shake_hands, listener.port, context, None)
        listener.carrier.renew(authority.issue())
        _, reused = await asyncio.to_thread(shake_hands, listener.port, context, session)
        assert reused
    finally:
        await listener.stop()


async def test_keys_are_rotated_while_it_listens(authority: Authority) -> None:
    first, second, third = (os.urandom(TICKET_KEY_BYTES) for _ in range(3))
    one, other = Recorder(make_carrier("native")), Recorder(make_carrier("native"))
    context = ssl.create_default_context(cadata=authority.root_pem.decode())
    context.set_alpn_protocols(["h2"])
    try:
        for listener in (one, other):
            await listener.start(Tls(authority.issue(), ticket_keys=(first, second)))
        _, before = await asyncio.to_thread(shake_hands, one.port, context, None)
        assert not before
        one.carrier.rotate_tickets((second, third, first))
        # What it encrypts with now the other has known as the next key.
        session, _ = await asyncio.to_thread(shake_hands, one.port, context, None)
        _, reused = await asyncio.to_thread(shake_hands, other.port, context, session)
        assert reused
        other.carrier.rotate_tickets((third,))
        _, reused = await asyncio.to_thread(shake_hands, other.port, context, session)
        assert not reused, "a key that was dropped decrypts nothing"
        with pytest.raises(CarrierError, match="48 bytes"):
            one.carrier.rotate_tickets((b"x",))
    finally:
        await one.stop()
        await other.stop()


async def test_a_key_of_another_size_is_refused(authority: Authority) -> None:
    carrier = make_carrier("native")
    with pytest.raises(CarrierError, match="48 bytes"):
        await carrier.start(
            "127.0.0.1:0", print, Tls(authority.issue(), ticket_keys=(b"x",)), Limits()
        )
