"""Requests to an API server: bytes in, bytes out. What they mean is for who asks.

Lists and watches are decoded straight into trimmed structs; the models of the Kubernetes client
take sixty times as long and twelve times the memory.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import aiohttp
import msgspec

from meshbus.kube.access import Access

REQUEST_S = 10.0
"""How long one request may take, but for watches."""
SILENCE_S = 90.0
"""How long a watch may say nothing: bookmarks come about once a minute."""
_CONNECT_S = 5.0
_WRITES_PER_S, _WRITES_BURST = 50.0, 100.0
_LIST_S = 60.0

JSON = "application/json"
_ACCEPTED = f"{JSON}, application/jwk-set+json"
"""The keys of tokens are served as the latter alone."""
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class KubeError(Exception):
    """A request that was not carried out.

    KubeError
    ├── KubeUnavailable   nobody answered, or the server is not able to: try again
    └── KubeRefused       the server's answer is no
        ├── Gone          410: what the request continues is no longer kept: list again
        ├── Conflict      409: somebody else was first, or it is there already
        └── NotFound      404: there is no such object, or no such kind
    """


class KubeUnavailable(KubeError):
    """Try again, not before `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class KubeRefused(KubeError):
    """The server's answer is no."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message or reason or str(code))
        self.code = code
        self.reason = reason


class Gone(KubeRefused):
    """410."""


class Conflict(KubeRefused):
    """409."""


class NotFound(KubeRefused):
    """404."""


class Status(msgspec.Struct):
    """`meta/v1 Status`, as far as it is read."""

    code: int = 0
    reason: str = ""
    message: str = ""


_status = msgspec.json.Decoder(Status)


def refusal(code: int, body: bytes) -> KubeRefused:
    """The error of an answer, or of an event of a watch."""
    try:
        said = _status.decode(body)
    except msgspec.MsgspecError:
        said = Status(message=body[:200].decode("utf-8", "replace"))
    kinds: dict[int, type[KubeRefused]] = {404: NotFound, 409: Conflict, 410: Gone}
    return kinds.get(code, KubeRefused)(code, said.reason, said.message)


class KubeClient:
    """One API server, as one user. Safe to share between tasks of one loop."""

    def __init__(self, access: Access, agent: str = "meshbus") -> None:
        self._access = access
        self._agent = agent
        self._session: aiohttp.ClientSession | None = None
        self._tokens = _WRITES_BURST
        self._refilled = time.monotonic()
        self.connected = True
        """The last request was answered."""

    async def get(self, path: str, **query: str | int) -> bytes:
        """Read.

        Raises:
            KubeError: It was not carried out.
        """
        return await self.send("GET", path, query=query)

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = JSON,
        query: Mapping[str, str | int] | None = None,
        timeout_s: float = 0.0,
    ) -> bytes:
        """One request; `body` is sent as JSON.

        Raises:
            KubeError: It was not carried out, or, when it is KubeUnavailable, it is not known.
        """
        if method != "GET":
            await self._pace()
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": content_type} if data is not None else {}
        limit = timeout_s or (_LIST_S if method == "GET" else REQUEST_S)
        timeout = aiohttp.ClientTimeout(total=limit, sock_connect=_CONNECT_S)
        try:
            async with self._open().request(
                method,
                self._access.server + path,
                params=dict(query or {}),
                data=data,
                headers={**self._headers(), **headers},
                timeout=timeout,
                ssl=self._access.tls or False,
            ) as response:
                content = await response.read()
                self._judge(response, content)
                return content
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.connected = False
            raise KubeUnavailable(f"{method} {path}: {_text(error)}") from error

    async def watch(
        self, path: str, query: Mapping[str, str | int]
    ) -> AsyncGenerator[list[bytes], None]:
        """Lines of a watch, as they come together, until the server ends it; first none, when it
        is open.

        Raises:
            KubeError: It could not be opened, or broke.
        """
        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_S, sock_read=SILENCE_S)
        rest = b""
        try:
            async with self._open().get(
                self._access.server + path,
                params=dict(query),
                headers=self._headers(),
                timeout=timeout,
                ssl=self._access.tls or False,
            ) as response:
                if response.status >= 300:
                    self._judge(response, await response.read())
                self.connected = True
                yield []
                async for chunk in response.content.iter_any():
                    lines = (rest + chunk).split(b"\n") if rest else chunk.split(b"\n")
                    rest = lines.pop()
                    if lines:
                        yield lines
        except aiohttp.SocketTimeoutError:
            return  # Nothing was said for long: whoever watches asks again, and finds out.
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.connected = False
            raise KubeUnavailable(f"watch {path}: {_text(error)}") from error

    async def close(self) -> None:
        """End connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # ------------------------------------------------------------------ inside

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
            self._session = aiohttp.ClientSession(connector=connector, read_bufsize=2**20)
        return self._session

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": _ACCEPTED, "User-Agent": self._agent}
        authorization = self._access.authorization(time.monotonic())
        if authorization:
            headers["Authorization"] = authorization
        return headers

    def _judge(self, response: aiohttp.ClientResponse, content: bytes) -> None:
        self.connected = True
        code = response.status
        if code < 300:
            return
        if code == 401:
            self._access.refused()
        if code == 429 or code >= 500:
            wait = response.headers.get("Retry-After", "")
            error = refusal(code, content)
            raise KubeUnavailable(
                f"{response.method} {response.url.path}: {code} {error}",
                float(wait) if wait.isdigit() else 0.0,
            )
        raise refusal(code, content)

    async def _pace(self) -> None:
        """Bound the writes per second: the server has other clients."""
        while True:
            now = time.monotonic()
            self._tokens = min(_WRITES_BURST, self._tokens + (now - self._refilled) * _WRITES_PER_S)
            self._refilled = now
            if self._tokens >= 1:
                self._tokens -= 1
                return
            await asyncio.sleep((1 - self._tokens) / _WRITES_PER_S)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def object_path(
    group: str, version: str, plural: str, namespace: str = "", name: str = "", sub: str = ""
) -> str:
    """The path of a collection or of one object."""
    base = f"/apis/{group}/{version}" if group else f"/api/{version}"
    parts = [base]
    if namespace:
        parts.append(f"namespaces/{namespace}")
    parts.append(plural)
    parts += [part for part in (name, sub) if part]
    return "/".join(parts)


def decoded(content: bytes) -> Any:
    """The JSON of an answer."""
    return msgspec.json.decode(content)
