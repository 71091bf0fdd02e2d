"""Names of gateways of other networks, looked up for proxies: endpoints of Envoy have addresses.

A name is asked for again when its answer has run out. While nobody answers, what was known last
stands.
Source: pilot/pkg/model/network.go of 1.31 (networkGatewayNameCache), its least and longest times.
"""

import asyncio
import secrets
from collections.abc import Callable
from ipaddress import ip_address

from meshbus_discovery.dns_messages import (
    NOERROR,
    NXDOMAIN,
    Malformed,
    Query,
    Question,
    addresses_of,
    lifetime,
    name_bytes,
)
from meshbus_discovery.dns_upstream import Unanswered, Upstream

LEAST_S = 30.0
MOST_S = 3600.0
_A, _AAAA, _INTERNET = 1, 28, 1
_PAYLOAD = 1232


class GatewayNames:
    """`want` names, `run` until cancelled; `addresses` are those that are known."""

    def __init__(
        self, upstream: Upstream, monotonic: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        """
        Args:
            changed: Called when `addresses` have.
        """
        self._upstream = upstream
        self._monotonic = monotonic
        self._changed = changed
        self._due: dict[str, float] = {}
        self._moved = asyncio.Event()
        self.addresses: dict[str, list[str]] = {}
        """By name, sorted; a name without an entry has never been answered."""

    def want(self, names: tuple[str, ...], held: dict[str, list[str]]) -> None:
        """The names that count from now on. `held`: what is known of them from before."""
        for name in [name for name in self._due if name not in names]:
            del self._due[name]
            self.addresses.pop(name, None)
        for name in names:
            if name not in self._due:
                self._due[name] = self._monotonic()
                if name in held:
                    self.addresses.setdefault(name, held[name])
                self._moved.set()

    async def run(self) -> None:
        """Look up what is due, again and again."""
        while True:
            self._moved.clear()
            now = self._monotonic()
            for name in [name for name, due in self._due.items() if due <= now]:
                await self._look_up(name)
            due = min(self._due.values(), default=now + MOST_S)
            try:
                async with asyncio.timeout(max(0.0, due - self._monotonic())):
                    await self._moved.wait()
            except TimeoutError:
                continue

    async def _look_up(self, name: str) -> None:
        found: list[str] | None = None
        seconds: float = MOST_S
        for kind in (_A, _AAAA):
            try:
                addresses, life = await self._asked(name, kind)
            except (Unanswered, Malformed):
                seconds = LEAST_S
                continue
            found = [*(found or ()), *addresses]
            seconds = min(seconds, life)
        if name not in self._due:
            return
        self._due[name] = self._monotonic() + max(LEAST_S, seconds)
        if found is None or sorted(found) == self.addresses.get(name):
            return
        self.addresses[name] = sorted(found)
        self._changed()

    async def _asked(self, name: str, kind: int) -> tuple[list[str], float]:
        """Addresses of one family, and how long they hold.

        Raises:
            Unanswered, Malformed: Nobody answers, or says so of itself.
        """
        question = Question(name, kind, _INTERNET)
        try:
            wire = name_bytes(name) + kind.to_bytes(2) + _INTERNET.to_bytes(2)
        except ValueError as error:
            raise Unanswered(str(error)) from error
        query = Query(secrets.randbelow(1 << 16), 0x0100, question, wire, _PAYLOAD, True, False)
        message = await self._upstream.ask(query, tcp=False)
        life = lifetime(query, message, most_s=int(MOST_S), negative_s=int(LEAST_S))
        if life.truncated:
            message = await self._upstream.ask(query, tcp=True)
            life = lifetime(query, message, most_s=int(MOST_S), negative_s=int(LEAST_S))
        if life.code not in (NOERROR, NXDOMAIN):
            raise Unanswered(f"code {life.code}")
        return [str(ip_address(raw)) for raw in addresses_of(query, message, kind)], life.seconds
