"""The policy service: answers Envoy's rate limit and authorization questions from rows, and
fetches the keys that tokens are checked with."""

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from envoy.service.auth.v3 import external_auth_pb2_grpc
from envoy.service.ratelimit.v3 import rls_pb2_grpc
from prometheus_client import Counter, Gauge, Histogram

from meshbus.bus.mirror import WorldMirror
from meshbus.mixer.quota_objects import TABLES
from meshbus.model import key_sources, module_sources
from meshbus.model.revisions import view_of
from meshbus.model.rows import Trust
from meshbus.model.world import Query, World
from meshbus.runtime.proxy_server import ProxyServer
from meshbus.runtime.service import Context
from meshbus.runtime.settings import SettingsError
from meshbus_policy.authorization import AuthorizationServer
from meshbus_policy.fetch import Fetcher, networks
from meshbus_policy.key_sets import KeySets
from meshbus_policy.modules import Modules
from meshbus_policy.rate_limits import RateLimitServer
from meshbus_policy.rules import Rules, concerned, load_rules

FOLLOWED = key_sources.TOUCHING | module_sources.TOUCHING | {"wasm.chunks"}
LATENCY_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05)


class PolicySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of policy."""

    listen: Annotated[str, msgspec.Meta(description="gRPC for proxies; port 0: any")] = (
        "127.0.0.1:15030"
    )
    advertise: Annotated[
        str, msgspec.Meta(description="HOST:PORT that proxies call; empty: as bound")
    ] = ""
    cells: Annotated[
        int, msgspec.Meta(description="cells that quotas are counted in, at most", ge=1)
    ] = 100_000
    jwks_refresh_s: Annotated[
        float, msgspec.Meta(description="time between fetches of the same keys", ge=1)
    ] = 1200.0
    jwks_allow: Annotated[
        str,
        msgspec.Meta(
            description="networks whose loopback or link-local addresses may be asked for keys, "
            "comma between"
        ),
    ] = ""
    jwks_roots: Annotated[
        str, msgspec.Meta(description="PEM file of further authorities for fetching keys")
    ] = ""
    modules_allow: Annotated[
        str,
        msgspec.Meta(
            description="networks whose loopback or link-local addresses may be asked for modules "
            "of extensions, comma between"
        ),
    ] = ""
    modules_roots: Annotated[
        str, msgspec.Meta(description="PEM file of further authorities for fetching modules")
    ] = ""


def _fetcher(settings: PolicySettings, what: str) -> Fetcher:
    """For `jwks` or `modules`."""
    allow, roots = f"{what}_allow", getattr(settings, f"{what}_roots")
    try:
        allowed = networks(getattr(settings, allow))
    except ValueError as error:
        raise SettingsError(f"MESHBUS_POLICY_{allow.upper()}: {error}") from error
    try:
        return Fetcher(allowed, Path(roots) if roots else None, allow)
    except OSError as error:  # ssl.SSLError too
        raise SettingsError(f"MESHBUS_POLICY_{what.upper()}_ROOTS: {error}") from error


class PolicyService:
    """Serves `ratelimit.v3.RateLimitService` and `auth.v3.Authorization`."""

    name: ClassVar[str] = "policy"
    settings_type: ClassVar[type[msgspec.Struct]] = PolicySettings

    def __init__(self, context: Context[PolicySettings]) -> None:
        self._context = context
        self._mirror = WorldMirror(view=view_of(context.revision))
        self._rules = Rules()
        self._answers = Counter(
            "meshbus_policy_answers",
            "Questions answered, by kind and answer (ok, over_limit, denied, unknown, error).",
            ["kind", "answer"],
            registry=context.metrics,
        )
        self._seconds = Histogram(
            "meshbus_policy_answer_seconds",
            "Time from question to answer inside the service.",
            ["kind"],
            buckets=LATENCY_S,
            registry=context.metrics,
        )
        self._problems = Gauge(
            "meshbus_policy_problems",
            "Parts of rules, handlers, instances and quotas that have no effect.",
            registry=context.metrics,
        )
        self._limits = RateLimitServer(self, context.settings.cells)
        self._checks = AuthorizationServer(self)
        cells = Gauge(
            "meshbus_policy_cells", "Cells that quotas count in.", registry=context.metrics
        )
        cells.set_function(lambda: len(self._limits.cells))
        self._server = ProxyServer(
            context,
            self._mirror,
            reads=(*(f"cfg.{plural}" for plural in TABLES), *sorted(FOLLOWED), "reg.workloads"),
            listen=context.settings.listen,
            advertise=context.settings.advertise,
            register=self._register,
        )
        self._mirror.subscribe(self._moved)
        self._keys = KeySets(
            context,
            self._mirror,
            self._server.writer,
            _fetcher(context.settings, "jwks"),
            context.settings.jwks_refresh_s,
        )
        self._modules = Modules(
            context, self._mirror, self._server.writer, _fetcher(context.settings, "modules")
        )

    # -------------------------------------------------------------- what the servers need

    @property
    def trust(self) -> Trust | None:
        """What callers are checked with."""
        return self._server.trust

    @property
    def trust_domain(self) -> str:
        """Of the workloads that may ask."""
        return self._context.trust_domain

    @property
    def world(self) -> World:
        """All rows."""
        return self._mirror.world

    @property
    def rules(self) -> Rules:
        """The rules in force."""
        return self._rules

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return int(self._context.clock.now() * 1_000_000_000)

    def tick_ns(self) -> int:
        """Nanoseconds that never go back: what windows roll by."""
        return int(self._context.clock.monotonic() * 1_000_000_000)

    def answered(self, kind: str, answer: str, began: float) -> None:
        """Count one answer; `began` is `time.perf_counter()` of the question."""
        self._answers.labels(kind, answer).inc()
        self._seconds.labels(kind).observe(time.perf_counter() - began)

    def debug(self, message: str, **fields: Any) -> None:
        """A line for who looks closely."""
        self._context.log.debug(message, **fields)

    # -------------------------------------------------------------- the service

    async def run(self) -> None:
        """Until cancelled."""
        admin = self._context.admin
        admin.add_ready("proxies", self._server.not_ready)
        admin.add_debug("rules", self._describe)
        admin.add_debug("keys", self._keys.describe)
        admin.add_debug("modules", self._modules.describe)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._server.run())
            await self._server.wait_synced()
            tasks.create_task(self._keys.run())
            tasks.create_task(self._modules.run())

    def _register(self, server: Any) -> None:
        rls_pb2_grpc.add_RateLimitServiceServicer_to_server(self._limits, server)
        external_auth_pb2_grpc.add_AuthorizationServicer_to_server(self._checks, server)

    def _moved(self, world: World, touched: frozenset[Query]) -> None:
        if not concerned(touched):
            return
        try:
            self._rules = load_rules(world, self._context.root_namespace)
        except Exception:  # a row of any shape must not end the follower
            self._context.log.exception("rules cannot be read; those before them stand")
            return
        self._problems.set(len(self._rules.problems))
        for problem in self._rules.problems:
            self._context.log.info(
                "no effect",
                object=f"{problem.plural}/{problem.namespace}/{problem.name}",
                path=problem.path,
                reason=problem.message,
            )

    def _describe(self) -> Any:
        rules = self.rules
        return {
            "quotas": [
                {
                    "rule": counter.rule,
                    "instance": counter.instance,
                    "handler": counter.handler,
                    "max": counter.limit.amount,
                    "valid_ns": counter.limit.valid_ns,
                    "overrides": len(counter.overrides),
                }
                for counter in rules.quotas.counters
            ],
            "checks": [check.rule for check in rules.checks.checks],
            "problems": [problem._asdict() for problem in rules.problems],
            "cells": len(self._limits.cells),
            "evicted": self._limits.cells.evicted,
        }
