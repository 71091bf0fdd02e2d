"""Ten minutes without the API server, and hours: what must not come of it. Time is virtual."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import structlog
from meshbus_ca.cluster_keys import ClusterKeys
from virtual_time import run_virtually

from meshbus.inject import Injector, Owner
from meshbus.kube.client import Conflict, Gone, KubeUnavailable, NotFound
from meshbus.kube.lease import DEADLINE_S, KubeLease
from meshbus.kube.reflector import Name, Reflector, Source
from meshbus.runtime.kubernetes import Kubernetes

OUTAGE_S = 600.0
LONG_S = 6 * 3600.0


class Server:
    """The API server as a client sees it: objects with versions, a lease, keys; or nothing."""

    def __init__(self) -> None:
        self.down = False
        self.objects: dict[str, int] = {}
        self.oldest = 0
        """Versions before it are forgotten."""
        self.version = 1
        self.lease: dict[str, Any] | None = None
        self.asked: list[float] = []
        self.changed = asyncio.Event()

    def _ask(self) -> None:
        self.asked.append(asyncio.get_running_loop().time())
        if self.down:
            raise KubeUnavailable("Cannot connect")

    def put(self, name: str) -> None:
        self.version += 1
        self.objects[name] = self.version
        self._tell()

    def delete(self, name: str) -> None:
        self.version += 1
        del self.objects[name]
        self._tell()

    def goes(self, *, down: bool) -> None:
        self.down = down
        self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def _document(self, name: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "resourceVersion": str(self.objects[name])}}

    async def get(self, path: str, **query: str | int) -> bytes:
        self._ask()
        documents = {
            "/.well-known/openid-configuration": {"issuer": "https://cluster", "jwks_uri": "x"},
            "/openid/v1/jwks": {"keys": [{"kty": "RSA", "kid": "1", "n": "AQAB", "e": "AQAB"}]},
        }
        return json.dumps(documents[path]).encode()

    async def watch(self, path: str, query: dict[str, Any]) -> AsyncIterator[list[bytes]]:
        self._ask()
        since = int(query.get("resourceVersion", 0))
        if since and since < self.oldest:
            raise Gone(410, "Expired", "too old resource version")
        if not since:
            events = [{"type": "ADDED", "object": self._document(n)} for n in self.objects]
            annotations = {"k8s.io/initial-events-end": "true"}
            end = {"metadata": {"resourceVersion": str(self.version), "annotations": annotations}}
            events.append({"type": "BOOKMARK", "object": end})
            yield [json.dumps(event).encode() for event in events]
        while not self.down:
            await self.changed.wait()
        raise KubeUnavailable("connection lost")

    async def send(self, method: str, path: str, body: Any = None, **_: Any) -> bytes:
        self._ask()
        if method == "GET":
            if self.lease is None:
                raise NotFound(404, "NotFound", path)
            return json.dumps(self.lease).encode()
        held = self.lease["metadata"]["resourceVersion"] if self.lease else ""
        if method == "PUT" and body["metadata"]["resourceVersion"] != held:
            raise Conflict(409, "Conflict", path)
        self.version += 1
        self.lease = json.loads(json.dumps(body))
        assert self.lease is not None
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return b"{}"


class Told:
    """What a sink was told."""

    def __init__(self) -> None:
        self.puts: list[str] = []
        self.deletes: list[str] = []

    def put(self, name: Name, value: Any) -> None:
        self.puts.append(name[1])

    def delete(self, name: Name) -> None:
        self.deletes.append(name[1])

    def malformed(self, name: Name, error: str) -> None:
        raise AssertionError(error)


async def away(server: Server, seconds: float) -> None:
    server.goes(down=True)
    await asyncio.sleep(seconds)


def test_nothing_is_withdrawn_and_the_end_is_one_diff() -> None:
    async def work() -> None:
        server, told = Server(), Told()
        for name in ("same", "changed", "gone"):
            server.put(name)
        reflector: Reflector[Any] = Reflector(
            server,  # type: ignore[arg-type]
            Source("/api/v1/things"),
            msgspec.json.decode,
            told,
        )
        task = asyncio.create_task(reflector.run())
        await reflector.wait_synced()
        assert sorted(told.puts) == ["changed", "gone", "same"]
        told.puts.clear()
        began = len(server.asked)
        await away(server, OUTAGE_S)
        assert (told.puts, told.deletes, reflector.synced) == ([], [], True)
        assert reflector.problem
        # It asks again and again, and no more often than every few seconds.
        assert OUTAGE_S / 15 < len(server.asked) - began < OUTAGE_S / 4
        # Meanwhile things have changed, and the history of them is forgotten.
        server.put("changed")
        server.delete("gone")
        server.oldest = server.version
        server.goes(down=False)
        await asyncio.sleep(30)
        assert (told.puts, told.deletes) == (["changed"], ["gone"])
        assert reflector.problem == ""
        task.cancel()

    run_virtually(work())


def test_who_writes_statuses_stops_in_time_and_goes_on() -> None:
    async def work() -> None:
        server = Server()
        clock = asyncio.get_running_loop().time
        lease = KubeLease(
            server,  # type: ignore[arg-type]
            namespace="istio-system",
            name="meshbus-config",
            holder="config-0",
            now=clock,
            monotonic=clock,
        )
        task = asyncio.create_task(lease.run())
        await lease.wait_held()
        await away(server, DEADLINE_S + 1)
        assert not lease.held, "another replica might be let have it"
        await asyncio.sleep(OUTAGE_S)
        assert not lease.held
        server.goes(down=False)
        await asyncio.sleep(5)
        assert lease.held
        assert server.lease is not None
        assert server.lease["spec"]["leaseTransitions"] == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtually(work())


class Clock:
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def test_tokens_of_pods_are_checked_for_as_long_as_it_lasts() -> None:
    """The keys that were read stand; nothing of them ends by itself."""

    async def work() -> None:
        server = Server()
        kubernetes = Kubernetes(server, "default", (), "istio-system")  # type: ignore[arg-type]
        log = structlog.get_logger("test")
        keys = ClusterKeys(kubernetes, Clock(), log)
        changes: list[int] = []
        task = asyncio.create_task(keys.run(lambda: changes.append(1)))
        await asyncio.sleep(1)
        held = keys.issuers
        assert [one.issuer for one in held] == ["https://cluster"]
        await away(server, LONG_S)
        assert keys.issuers == held
        server.goes(down=False)
        await asyncio.sleep(120)
        assert (keys.issuers, changes) == (held, [1])
        task.cancel()

    run_virtually(work())


def test_a_token_that_the_kubelet_cannot_renew_outlives_it() -> None:
    """The kubelet renews at 80 % of a token's life: what is left then is longer than an outage."""
    pod = {"metadata": {}, "spec": {"containers": [{"name": "web", "image": "w"}]}}
    spec = Injector({}).inject(pod, Owner("apps/v1", "Deployment", "web", "shop")).pod["spec"]
    token = next(v for v in spec["volumes"] if v["name"] == "istio-token")
    (source,) = token["projected"]["sources"]
    assert source["serviceAccountToken"]["expirationSeconds"] * 0.2 > 10 * OUTAGE_S
