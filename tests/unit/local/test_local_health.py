"""Readiness probes: what counts, and how often."""

import asyncio
import sys
from itertools import islice
from typing import Any

import pytest

from meshbus.local.health import Health, Probed, pauses_s, run_probe


def states(probe: dict[str, int], results: str) -> str:
    """`g` good, `b` bad; out: `H` healthy, `u` not, after each."""
    health, out = Health(probe), ""
    for one in results:
        health.take(Probed(one == "g", one))
        out += "H" if health.healthy else "u"
    return out


@pytest.mark.parametrize(
    ("probe", "results", "expected"),
    [
        ({}, "gbbgbbb", "HHHHHHu"),
        ({"failureThreshold": 1}, "gbg", "HuH"),
        ({"successThreshold": 2}, "ggbgg", "uHHHH"),
        ({"successThreshold": 2, "failureThreshold": 1}, "ggbgg", "uHuuH"),
        ({}, "bbb", "uuu"),
    ],
)
def test_thresholds(probe: dict[str, int], results: str, expected: str) -> None:
    assert states(probe, results) == expected


def test_when_it_is_probed() -> None:
    probe = {"initialDelaySeconds": 7, "periodSeconds": 90}
    assert list(islice(pauses_s(probe), 3)) == [7, 90, 90]
    assert list(islice(pauses_s({}), 3)) == [0, 10, 10]


async def test_each_kind_of_probe() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        good = head.startswith("GET /up ") and "x-probe: 1" in head.lower()
        status = "302 Found" if good else "404 Not Found"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    header, other = [{"name": "x-probe", "value": "1"}], "localhost"
    probes: list[tuple[dict[str, Any], bool]] = [
        ({"httpGet": {"path": "/up", "port": port, "httpHeaders": header}}, True),
        ({"httpGet": {"path": "/down", "port": port}}, False),
        ({"tcpSocket": {"port": port}}, True),
        ({"tcpSocket": {"port": 1}}, False),
        ({"exec": {"command": [sys.executable, "-c", ""]}}, True),
        ({"exec": {"command": [sys.executable, "-c", "raise SystemExit(3)"]}}, False),
        ({"exec": {"command": ["/no/such/program"]}}, False),
        ({"exec": {"command": ["sleep", "30"]}, "timeoutSeconds": 1}, False),
        ({"httpGet": {"path": "/up", "port": port, "httpHeaders": header, "host": other}}, True),
        ({"httpGet": {"path": "/up", "port": port, "scheme": "HTTPS"}}, False),
        ({"tcpSocket": {"port": port, "host": other}}, True),
        ({"grpc": {"port": 1}, "timeoutSeconds": 1}, False),
        ({}, True),
    ]
    for probe, good in probes:
        elsewhere = other in str(probe)
        found = await run_probe(probe, "127.0.0.1" if not elsewhere else "127.0.0.9")
        assert found.good == good, (probe, found)
    server.close()


async def test_the_grpc_health_service() -> None:
    import grpc
    from grpc import aio

    async def check(request: bytes, _: Any) -> bytes:
        return {
            b"": b"\x08\x01",
            b"\x0a\x03bad": b"\x08\x02",
            b"\x0a\xac\x02" + b"s" * 300: b"\x08\x01",
        }.get(request, b"\x08\x03")

    handler = grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(check)}
    )
    server = aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    assert (await run_probe({"grpc": {"port": port}}, "127.0.0.1")).good
    assert not (await run_probe({"grpc": {"port": port, "service": "bad"}}, "127.0.0.1")).good
    assert (await run_probe({"grpc": {"port": port, "service": "s" * 300}}, "127.0.0.1")).good
    await server.stop(0)
