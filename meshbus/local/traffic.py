"""Requests to Bookinfo, and what came back: by version of reviews, by status."""

import contextlib
import http.client
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

PAGE = "/productpage"
_SERVED_BY = re.compile(r"Reviews served by: <code>reviews-(v\d+)")
TIMEOUT_S = 10.0


class Answer(NamedTuple):
    """What one request got."""

    status: int
    """0: no answer at all."""
    version: str
    """Of reviews, `v1`; empty when the page shows none."""
    body: str


def fetch(
    host: str, port: int, path: str = PAGE, headers: Mapping[str, str] | None = None
) -> Answer:
    """One GET on a connection of its own."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, "", f"{type(error).__name__}: {error}")
    finally:
        connection.close()
    return Answer(answer.status, version_of(body), body)


def version_of(page: str) -> str:
    """Which version of reviews a product page shows."""
    found = _SERVED_BY.search(page)
    return found.group(1) if found else ""


class Traffic:
    """A steady stream of requests from a thread. Use as a context manager."""

    def __init__(self, host: str, port: int, *, per_second: float = 15.0) -> None:
        self._host, self._port = host, port
        self._pause_s = 1 / per_second
        self._lock = threading.Lock()
        self._versions: Counter[str] = Counter()
        self._problems: list[str] = []
        self._end = threading.Event()
        self._running = threading.Event()
        self._running.set()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._running.set()
        self._thread.join(TIMEOUT_S + 1)

    @property
    def versions(self) -> Counter[str]:
        """Good answers so far, by version of reviews."""
        with self._lock:
            return Counter(self._versions)

    @property
    def problems(self) -> list[str]:
        """Requests that went wrong so far."""
        with self._lock:
            return list(self._problems)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is sent meanwhile."""
        self._idle.clear()
        self._running.clear()
        self._idle.wait(TIMEOUT_S)
        try:
            yield
        finally:
            self._running.set()

    def _run(self) -> None:
        while not self._end.is_set():
            if not self._running.is_set():
                self._idle.set()
                self._running.wait()
                continue
            begun = time.monotonic()
            answer = fetch(self._host, self._port)
            with self._lock:
                if answer.status == 200 and answer.version:
                    self._versions[answer.version] += 1
                else:
                    what = answer.body if answer.status in (0, 503) else "the page lacks reviews"
                    self._problems.append(f"{answer.status} {what[:200]}")
            self._end.wait(max(0.0, self._pause_s - (time.monotonic() - begun)))
