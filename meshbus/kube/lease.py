"""Who of several replicas acts: a Lease of the cluster, held by one of them.

Clocks of machines are not compared: a lease that somebody else holds has ended when this replica
has seen it unchanged for its whole duration, by its own clock.
Source: coordination.k8s.io/v1 Lease, as leader election of Kubernetes' own components uses it.
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from meshbus.bus.backoff import Backoff
from meshbus.kube.client import Conflict, KubeClient, KubeError, NotFound, object_path

DURATION_S = 15
RENEW_S = 2.0
DEADLINE_S = 10.0
"""A holder that could not renew for so long stops acting, well before others may."""
_REQUEST_S = 3.0
_RETRY_S = 2.0

log = structlog.get_logger("kube")


class KubeLease:
    """One lease, wanted by one replica. `run` it, and act while `held`."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        holder: str,
        now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._client = client
        self._collection = object_path("coordination.k8s.io", "v1", "leases", namespace)
        self._path = f"{self._collection}/{name}"
        self._namespace, self._name, self._holder = namespace, name, holder
        self._now, self._monotonic = now, monotonic
        self._renewed = float("-inf")
        self._ours = False
        self._seen: tuple[str, float] = ("", float("-inf"))
        self._changed = asyncio.Event()
        self.holder = ""
        """Who had it when we last looked."""

    @property
    def held(self) -> bool:
        """It is ours, by our own clock, with time to spare."""
        return self._ours and self._monotonic() - self._renewed < DEADLINE_S

    async def wait_held(self) -> None:
        """Until it is ours."""
        while not self.held:
            self._changed.clear()
            await self._changed.wait()

    async def run(self) -> None:
        """Hold it whenever it can be had, until cancelled."""
        backoff = Backoff(_RETRY_S, _RETRY_S)
        try:
            while True:
                try:
                    self._ours = await self._once()
                except KubeError as error:
                    log.debug("lease not renewed", lease=self._name, error=str(error))
                if self._ours:
                    self._changed.set()
                await asyncio.sleep(RENEW_S if self._ours else backoff.next_s())
        finally:
            if self._ours:
                self._ours = False
                with contextlib.suppress(KubeError, TimeoutError):
                    async with asyncio.timeout(1):
                        await self._release()

    async def _once(self) -> bool:
        """Take or renew it, if that is possible now."""
        started = self._monotonic()
        try:
            lease = msgspec.json.decode(
                await self._client.send("GET", self._path, timeout_s=_REQUEST_S)
            )
        except NotFound:
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name, "namespace": self._namespace},
                "spec": self._spec({}),
            }
            return await self._store("POST", self._collection, body, started)
        spec = lease.get("spec") or {}
        self.holder = str(spec.get("holderIdentity") or "")
        version = str(lease["metadata"]["resourceVersion"])
        if self._seen[0] != version:
            self._seen = (version, started)
        if self.holder not in ("", self._holder):
            duration = float(spec.get("leaseDurationSeconds") or DURATION_S)
            if started - self._seen[1] < duration:
                return False
        lease["spec"] = self._spec(spec)
        return await self._store("PUT", self._path, lease, started)

    def _spec(self, before: dict[str, Any]) -> dict[str, Any]:
        moment = datetime.fromtimestamp(self._now(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ours = before.get("holderIdentity") == self._holder
        return {
            **before,
            "holderIdentity": self._holder,
            "leaseDurationSeconds": DURATION_S,
            "acquireTime": before.get("acquireTime", moment) if ours else moment,
            "renewTime": moment,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if ours else 1),
        }

    async def _store(self, method: str, path: str, body: Any, started: float) -> bool:
        try:
            await self._client.send(method, path, body, timeout_s=_REQUEST_S)
        except Conflict:
            return False
        self._renewed = started
        self.holder = self._holder
        return True

    async def _release(self) -> None:
        """Give it up, so that another replica need not wait for it to end."""
        lease = msgspec.json.decode(await self._client.get(self._path))
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") == self._holder:
            lease["spec"] = {**spec, "holderIdentity": "", "leaseDurationSeconds": 1}
            await self._client.send("PUT", self._path, lease)
