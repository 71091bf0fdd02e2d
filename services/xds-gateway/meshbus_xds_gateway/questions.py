"""What the gateway answers over the bus and on its admin port."""

import asyncio
import heapq
from collections.abc import Iterable
from typing import Any

import msgspec

from meshbus.compile.render import render_snapshot
from meshbus.compile.resources import CDS, ECDS, EDS, LDS, RDS, RTDS, SDS, SHORT_NAMES, VHDS
from meshbus.model.requests import (
    CONVERGED,
    PROXIES,
    PROXY_CONFIG,
    ConvergedReply,
    ConvergedRequest,
    ProxiesReply,
    ProxiesRequest,
    ProxyConfigReply,
    ProxyConfigRequest,
    ProxyInfo,
    replica_subject,
)
from meshbus.model.status import ConfigLoss
from meshbus.runtime.calls import CallError, answer
from meshbus.runtime.service import Context
from meshbus_xds_gateway.fleet import Client, Fleet
from meshbus_xds_gateway.nacks import is_undecided, problems_of_client, quarantined, rejections

MAX_WAIT_S = 30.0
MAX_NAMES = 10
_TYPES = (CDS, EDS, LDS, RDS, SDS, ECDS, VHDS, RTDS)
_ASKED_BY_SOME = frozenset({VHDS, RTDS})
_RECHECK_S = 0.05
"""A session may give up waiting for its client without anything else happening."""


class Questions:
    """Answers about the fleet of this replica."""

    def __init__(self, context: Context[Any], fleet: Fleet) -> None:
        self._context = context
        self._fleet = fleet

    async def serve(self) -> None:
        """Answer on the subjects of this replica."""
        bus, pod = self._context.bus, self._context.pod
        await answer(bus, replica_subject(CONVERGED, pod), ConvergedRequest, self.converged)
        await answer(bus, replica_subject(PROXIES, pod), ProxiesRequest, self.proxies)
        await answer(bus, replica_subject(PROXY_CONFIG, pod), ProxyConfigRequest, self.proxy_config)

    async def converged(self, request: ConvergedRequest) -> ConvergedReply:
        """Wait until all proxies have a change, or those that have not have refused it."""
        clock = self._context.clock
        deadline = clock.monotonic() + min(max(request.timeout_s, 0.0), MAX_WAIT_S)
        while True:
            left = deadline - clock.monotonic()
            if left <= 0 or not self._somebody_waits(request.sequence):
                self._fleet.look()
                reply, done = self._converged_now(
                    request.sequence, request.change or request.sequence
                )
                if done and request.objects:
                    return msgspec.structs.replace(reply, losses=self._losses(request.objects))
                if done or left <= 0:
                    return reply
            await self._fleet.changed(min(left, _RECHECK_S))

    def _losses(self, objects: Iterable[str]) -> list[ConfigLoss]:
        wanted = set(objects)
        losses = self._fleet.losses.at(self._fleet.sequence)
        return [loss for loss in losses if loss.object_key in wanted]

    def _somebody_waits(self, sequence: int) -> bool:
        """There is no need to look at all of them yet: found at the first."""
        fleet = self._fleet
        if fleet.sequence < sequence:
            return True
        return any(not client.session.blocked for client in fleet.behind(sequence))

    def _converged_now(self, sequence: int, change: int) -> tuple[ConvergedReply, bool]:
        """The answer as of now; True: it is final."""
        fleet = self._fleet
        refused: list[dict[str, str]] = []
        refusing: set[Client] = set()
        undecided: set[Client] = set()
        for client in sorted(fleet.refusing(), key=_id):
            if is_undecided(client, change, fleet.quarantines):
                undecided.add(client)
            against = rejections(client, change, fleet.quarantines)
            if against:
                refusing.add(client)
                refused.extend(against)
        there = fleet.sequence >= sequence
        waiting = {*fleet.behind(sequence), *undecided} if there else fleet.clients
        behind = [client for client in waiting if client not in refusing]
        done = there and not behind
        reply = ConvergedReply(
            pod=self._context.pod,
            sequence=fleet.sequence,
            total=len(fleet.clients),
            converged=len(fleet.clients) - len(behind) - len(refusing),
            waiting=[client.id for client in heapq.nsmallest(MAX_NAMES, behind, key=_id)],
            rejected=refused[:MAX_NAMES],
            latency_s=fleet.convergence.latency_s(sequence) if done and not refused else None,
        )
        return reply, done

    async def proxies(self, request: ProxiesRequest) -> ProxiesReply:
        """The connected proxies."""
        infos = [
            self._info(client)
            for client in sorted(self._fleet.clients, key=lambda c: (c.id, c.connected))
            if not request.namespace or client.keys.namespace == request.namespace
        ]
        # Of two streams of one proxy the newer counts: the older has not noticed its end.
        newest = {info.id: info for info in infos}
        return ProxiesReply(self._context.pod, list(newest.values()))

    async def proxy_config(self, request: ProxyConfigRequest) -> ProxyConfigReply:
        """What one proxy should have; private keys are not in it.

        Raises:
            CallError: It is not connected here (`not-found`).
        """
        found = [c for c in self._fleet.clients if c.id == request.proxy]
        client = max(found, key=lambda c: c.connected, default=None)
        snapshot = None if client is None else self._fleet.snapshot(client)
        if snapshot is None:
            raise CallError("not-found", f"no proxy {request.proxy} is connected")
        document = await asyncio.to_thread(render_snapshot, snapshot)
        return ProxyConfigReply(request.proxy, self._fleet.sequence, document)

    def debug_proxies(self) -> list[ProxyInfo]:
        """All streams, for `/debug/xds-gateway/proxies`."""
        return [self._info(c) for c in sorted(self._fleet.clients, key=lambda c: c.id)]

    def debug_quarantine(self) -> list[dict[str, Any]]:
        """What is left out, for `/debug/xds-gateway/quarantine`."""
        return quarantined(self._fleet.quarantines)

    def _info(self, client: Client) -> ProxyInfo:
        types = {}
        for type_url in _TYPES:
            status, nonce, error = client.session.status(type_url)
            if nonce or type_url not in _ASKED_BY_SOME:
                types[SHORT_NAMES[type_url]] = {"status": status, "nonce": nonce, "error": error}
        return ProxyInfo(
            id=client.id,
            namespace=client.keys.namespace,
            workload=client.keys.workload,
            type=client.keys.type,
            address=client.address,
            version=client.version,
            gateway=self._context.pod,
            connected=client.connected,
            sequence=self._fleet.converged_at(client),
            types=types,
            problems=problems_of_client(client, self._fleet.quarantines),
        )


def _id(client: Client) -> str:
    return client.id
