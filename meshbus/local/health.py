"""Readiness probes of a WorkloadGroup: HTTP, TCP, a command, gRPC.

Source: Kubernetes, probes; networking WorkloadGroup, ReadinessProbe.
"""

import asyncio
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import httpx

_SERVING = 1
_MAX_OUTPUT = 500


class Probed(NamedTuple):
    """What one probe found."""

    good: bool
    message: str


class Health:
    """Healthy or not, after so many probes of one kind in a row. Pure."""

    def __init__(self, probe: Mapping[str, Any]) -> None:
        self._successes = int(probe.get("successThreshold") or 1)
        self._failures = int(probe.get("failureThreshold") or 3)
        self._row = 0
        self._last: bool | None = None
        self.healthy = False
        self.message = "not probed yet"

    def take(self, found: Probed) -> bool:
        """Take a result; whether it has changed anything."""
        self._row = self._row + 1 if found.good == self._last else 1
        self._last = found.good
        before = (self.healthy, self.message)
        if self._row >= (self._successes if found.good else self._failures):
            self.healthy = found.good
            self.message = found.message
        return (self.healthy, self.message) != before


def pauses_s(probe: Mapping[str, Any]) -> Iterator[float]:
    """Time before the first probe, then that between probes, without end."""
    yield float(probe.get("initialDelaySeconds") or 0)
    while True:
        yield float(probe.get("periodSeconds") or 10)


async def run_probe(probe: Mapping[str, Any], host: str) -> Probed:
    """Probe once.

    Args:
        host: Address of the application.
    """
    timeout_s = float(probe.get("timeoutSeconds") or 1)
    try:
        async with asyncio.timeout(timeout_s):
            if "httpGet" in probe:
                return await _http(probe["httpGet"], host, timeout_s)
            if "tcpSocket" in probe:
                return await _tcp(probe["tcpSocket"], host)
            if "exec" in probe:
                return await _command(list(probe["exec"].get("command") or ()))
            if "grpc" in probe:
                return await _grpc(probe["grpc"], host, timeout_s)
    except TimeoutError:
        return Probed(False, f"no answer within {timeout_s:g} s")
    except (OSError, httpx.HTTPError, ssl.SSLError, ValueError) as error:
        return Probed(False, str(error) or type(error).__name__)
    return Probed(True, "")


async def _http(probe: Mapping[str, Any], host: str, timeout_s: float) -> Probed:
    scheme = str(probe.get("scheme") or "HTTP").lower()
    where = _in_url(str(probe.get("host") or host))
    path = str(probe.get("path") or "/")
    url = f"{scheme}://{where}:{probe['port']}/{path.lstrip('/')}"
    headers = {str(h["name"]): str(h.get("value") or "") for h in probe.get("httpHeaders") or ()}
    # As kubelet: whoever probes does not check certificates, and redirects are a good answer.
    async with httpx.AsyncClient(verify=False, timeout=timeout_s, trust_env=False) as client:  # noqa: S501
        answer = await client.get(url, headers=headers)
    return Probed(200 <= answer.status_code < 400, f"{url} answers {answer.status_code}")


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _tcp(probe: Mapping[str, Any], host: str) -> Probed:
    _, writer = await asyncio.open_connection(str(probe.get("host") or host), int(probe["port"]))
    writer.close()
    return Probed(True, "a connection was taken")


async def _command(command: list[str]) -> Probed:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    text = output.decode(errors="replace").strip()[-_MAX_OUTPUT:]
    return Probed(process.returncode == 0, text or f"exit code {process.returncode}")


async def _grpc(probe: Mapping[str, Any], host: str, timeout_s: float) -> Probed:
    """`grpc.health.v1.Health/Check`; its messages have one field each."""
    import grpc

    service = str(probe.get("service") or "").encode()
    request = b"\x0a" + _varint(len(service)) + service if service else b""
    async with grpc.aio.insecure_channel(
        f"{_in_url(host)}:{probe['port']}", options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        try:
            reply = await channel.unary_unary("/grpc.health.v1.Health/Check")(
                request, timeout=timeout_s
            )
        except grpc.RpcError as error:
            return Probed(False, f"gRPC: {error.code().name}")
    serving = len(reply) >= 2 and reply[0] == 8 and reply[1] == _SERVING
    return Probed(serving, "SERVING" if serving else "not serving")


def _varint(number: int) -> bytes:
    """Source: Protocol Buffers, encoding: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
