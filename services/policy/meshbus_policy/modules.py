"""Modules of extensions: fetched, kept as rows in pieces, never given up while somebody names them.

The leader fetches what objects name: once, and again when an object with imagePullPolicy Always has
changed. A failure is tried again, later each time; what was fetched before stands.
"""

import contextlib
import hashlib
from collections.abc import Set
from typing import Any

import msgspec
from prometheus_client import Counter

from meshbus.bus.interface import BusError
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.writer import ModelWriter, Write
from meshbus.model.keys import Key
from meshbus.model.module_sources import TOUCHING, ModuleSource, Need, needed_modules
from meshbus.model.requests import PULL_SECRET, CredentialReply, CredentialRequest
from meshbus.model.rows import WasmChunk, WasmModule
from meshbus.runtime.calls import CallError, call
from meshbus.runtime.sealed import SealError, recipient
from meshbus.runtime.service import Context
from meshbus_policy.fetch import Fetcher, FetchError
from meshbus_policy.fetching import Keeper
from meshbus_policy.registries import MAX_MODULE_BYTES, Logins, fetch_module, logins_of

MAX_MODULES = 64
MAX_ALL_BYTES = 4 * MAX_MODULE_BYTES
CHUNK_BYTES = 512 * 1024
NEVER_S = 10 * 365 * 86400.0


class Modules(Keeper):
    """Keeps the rows of `wasm.modules` and `wasm.chunks`."""

    def __init__(
        self, context: Context[Any], mirror: WorldMirror, writer: ModelWriter, fetcher: Fetcher
    ) -> None:
        super().__init__(
            context,
            mirror,
            writer,
            fetcher,
            touching=TOUCHING,
            fetches=Counter(
                "meshbus_policy_module_fetches",
                "Attempts to fetch modules, by outcome (good, failed).",
                ["outcome"],
                registry=context.metrics,
            ),
            refresh_s=NEVER_S,
            at_once=1,  # each may be large
        )
        self._needed: dict[str, tuple[Key, Need]] = {}

    def _row(self, key: Key) -> WasmModule | None:
        row = self._mirror.world.get(key)
        return row if isinstance(row, WasmModule) else None

    def describe(self) -> Any:
        """For `/debug`: what there is."""
        return [
            {"url": e.row.url, "sha256": e.row.sha256, "error": e.row.error}
            for e in self._mirror.world.all("wasm.modules")
        ]

    async def _review(self, now: float) -> None:
        needed = dict(sorted(needed_modules(self._mirror.world).items())[:MAX_MODULES])
        await self._drop(needed.keys())
        # Another text is another thing to be done: what was tried before is tried at once.
        self._needed = {f"{key}\n{need.asked}": (key, need) for key, need in needed.items()}
        self._schedule.keep(dict.fromkeys(self._needed), now)
        for name, (key, need) in self._needed.items():
            row = self._row(key)
            if row is not None and row.sha256 and row.asked == need.asked:
                self._schedule.done(name, now, good=True)

    async def _drop(self, keep: Set[Key]) -> None:
        """Rows that nobody needs any more."""
        world = self._mirror.world
        gone: list[Write] = [(e.key, None) for e in world.all("wasm.modules") if e.key not in keep]
        used = {e.row.sha256 for e in world.all("wasm.modules") if e.key in keep}
        gone += [(e.key, None) for e in world.all("wasm.chunks") if e.key.name not in used]
        for start in range(0, len(gone), 500):
            with contextlib.suppress(BusError):
                await self._commit(gone[start : start + 500])

    async def _fetch(self, name: str) -> bool:
        key, need = self._needed[name]
        source = need.source
        known = self._row(key) or WasmModule(source.url)
        row = self._same(need)
        writes: list[Write] = []
        if row is None:
            try:
                logins = await self._logins(source)
                module = await fetch_module(self._fetcher, source.url, source.sha256, logins)
                held = sum(len(e.row.data) for e in self._mirror.world.all("wasm.chunks"))
                if held + len(module) > MAX_ALL_BYTES:
                    raise FetchError(f"all modules together have more than {MAX_ALL_BYTES} bytes")
            except FetchError as error:
                row = msgspec.structs.replace(known, error=str(error)[:500])
                self._context.log.warning("module not fetched", url=source.url, error=str(error))
            else:
                row, writes = self._pieces(need, module)
            self._fetches.labels("failed" if row.error else "good").inc()
        if row != known or self._row(key) is None:
            # The pieces first, so that whoever reads finds it whole; each by itself, for together
            # they may be more than a batch takes.
            for write in (*writes, (key, row)):
                await self._commit([write])
        return not row.error

    def _same(self, need: Need) -> WasmModule | None:
        """What another object has that asks for the very same."""
        for entry in self._mirror.world.all("wasm.modules"):
            row: WasmModule = entry.row
            if row.asked == need.asked and row.sha256 and not row.error:
                return row
        return None

    def _pieces(self, need: Need, module: bytes) -> tuple[WasmModule, list[Write]]:
        """The row of a module, and its pieces."""
        cluster, digest = self._context.cluster, hashlib.sha256(module).hexdigest()
        pieces = [module[i : i + CHUNK_BYTES] for i in range(0, len(module), CHUNK_BYTES)]
        writes: list[Write] = [
            (Key(cluster, "wasm", "chunks", "", digest, str(index)), WasmChunk(piece))
            for index, piece in enumerate(pieces)
        ]
        now = self._context.clock.now()
        return WasmModule(need.source.url, digest, len(pieces), need.asked, now), writes

    async def _logins(self, source: ModuleSource) -> Logins:
        if not source.secret:
            return {}
        namespace, _, name = source.secret.partition("/")
        own = recipient()
        request = CredentialRequest(namespace, name, own.public_key)
        try:
            reply = await call(self._context.bus, PULL_SECRET, request, CredentialReply)
            return logins_of(msgspec.json.decode(own.open(reply.sealed), type=dict[str, str]))
        except CallError as error:
            raise FetchError(f"imagePullSecret: {error.message}") from error
        except (SealError, msgspec.MsgspecError) as error:
            raise FetchError("imagePullSecret: the answer cannot be opened") from error
