"""A model of an xDS delta client, and resources to give it."""

from collections import deque
from dataclasses import dataclass, field

from envoy.service.discovery.v3 import discovery_pb2
from meshbus_xds_gateway.delta import DeltaProtocol
from meshbus_xds_gateway.session import Session
from meshbus_xds_gateway.verdicts import Refusal, Verdicts

from meshbus.compile.resources import CDS, ECDS, EDS, LDS, RDS, Resource, resource_of

BAD = "bad"


def res(type_url: str, name: str, content: str = "1") -> Resource:
    return resource_of(type_url, name, f"{type_url}{name}={content}".encode())


def mesh(**contents: str) -> dict[str, dict[str, Resource]]:
    """`cds_a="1"` and the like, by type and name; all four types are always there."""
    out: dict[str, dict[str, Resource]] = {CDS: {}, EDS: {}, LDS: {}, RDS: {}}
    short = {"cds": CDS, "eds": EDS, "lds": LDS, "rds": RDS}
    for key, content in contents.items():
        kind, name = key.split("_", 1)
        out[short[kind]][name] = res(short[kind], name, content)
    return out


@dataclass
class Client:
    """Holds what it was sent; refuses responses with a content that ends in `bad`.

    `partial`: like Envoy, it keeps the good resources of a response that it refuses. `remembers`:
    like Envoy, it does not look again at routes and extensions that are what came last.
    """

    partial: bool = False
    remembers: bool = False
    last: dict[tuple[str, str], bytes] = field(default_factory=dict)
    held: dict[str, dict[str, tuple[str, bytes]]] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)
    absent: dict[str, set[str]] = field(default_factory=dict)
    received: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    to_server: deque[bytes] = field(default_factory=deque)

    def open(self, type_url: str, names: tuple[str, ...] = ()) -> None:
        """The first request of a type, with what it holds of an earlier stream."""
        self.names[type_url] = set(names)
        held = self.held.setdefault(type_url, {})
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url,
            resource_names_subscribe=names,
            initial_resource_versions={n: v for n, (v, _) in held.items() if v},
        )
        self.to_server.append(request.SerializeToString())

    def subscribe(self, type_url: str, *names: str) -> None:
        self.names[type_url].update(names)
        self._say(type_url, subscribe=names)

    def unsubscribe(self, type_url: str, *names: str) -> None:
        self.names[type_url].difference_update(names)
        for name in names:
            self.held[type_url].pop(name, None)
            self.last.pop((type_url, name), None)
        self._say(type_url, unsubscribe=names)

    def _say(self, type_url: str, subscribe=(), unsubscribe=()) -> None:
        self.to_server.append(
            discovery_pb2.DeltaDiscoveryRequest(
                type_url=type_url,
                resource_names_subscribe=subscribe,
                resource_names_unsubscribe=unsubscribe,
            ).SerializeToString()
        )

    def take(self, message: bytes) -> None:
        response = discovery_pb2.DeltaDiscoveryResponse.FromString(message)
        type_url = response.type_url
        self.received.append(
            (type_url, [r.name for r in response.resources], list(response.removed_resources))
        )
        again = self._came_last(response) if self.remembers else set()
        refused = [
            r.name
            for r in response.resources
            if r.resource.value.endswith(b"bad") and r.name not in again
        ]
        reply = discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url, response_nonce=response.nonce
        )
        if refused:
            reply.error_detail.message = f"no: {refused[0]}"
        if not refused or self.partial:
            for resource in response.resources:
                applied = resource.name not in refused and resource.name not in again
                if applied and self._wants(type_url, resource.name):
                    # Of a refused response Envoy applies what is good, but notes no version.
                    version = resource.version if not refused else ""
                    self.held[type_url][resource.name] = (version, resource.resource.value)
                    self.absent.setdefault(type_url, set()).discard(resource.name)
        if not refused:
            for name in response.removed_resources:
                self.held[type_url].pop(name, None)
                self.absent.setdefault(type_url, set()).add(name)
        self.to_server.append(reply.SerializeToString())

    def _came_last(self, response) -> set[str]:
        """Names of what it takes without effect."""
        if response.type_url not in (RDS, ECDS):
            return set()
        out = set()
        for resource in response.resources:
            place = (response.type_url, resource.name)
            if self.last.get(place) == resource.resource.value:
                out.add(resource.name)
            self.last[place] = resource.resource.value
        return out

    def _wants(self, type_url: str, name: str) -> bool:
        return type_url in (CDS, LDS) or name in self.names[type_url]


class Stream:
    """A client and a session with queues between them."""

    def __init__(self, client: Client, refusals: Verdicts | None = None, name: str = "p") -> None:
        self.client = client
        self.woken = 0
        """How often the session has asked to be polled."""
        self.session = Session(name, refusals or Verdicts(), self)
        self.protocol = DeltaProtocol(self.session)
        self.to_client: deque[bytes] = deque()
        self.refusals: list[Refusal] = []
        self.now = 100.0
        client.to_server.clear()

    def set(self) -> None:
        """Called by the session."""
        self.woken += 1

    def server_reads(self) -> bool:
        if not self.client.to_server:
            return False
        request = self.protocol.decode(self.client.to_server.popleft())
        refusal = self.protocol.receive(request, self.now)
        if refusal is not None:
            self.refusals.append(refusal)
        return True

    def server_writes(self) -> bool:
        push = self.session.poll(self.now)
        if push is None:
            return False
        self.to_client.append(self.protocol.encode(push))
        return True

    def nonce(self, type_url: str) -> str:
        """Of the last response of a type."""
        return self.session.status(type_url)[1]

    def client_reads(self) -> bool:
        if not self.to_client:
            return False
        self.client.take(self.to_client.popleft())
        return True

    def settle(self, limit: int = 500) -> None:
        """Until nobody has anything to say; fails when that does not come."""
        for _ in range(limit):
            moved = self.server_reads() or self.server_writes() or self.client_reads()
            if not moved:
                wake = self.session.wake_at(self.now)
                if wake is None:
                    return
                self.now = wake
        raise AssertionError("they never stop talking")

    def sent(self) -> list[tuple[str, list[str], list[str]]]:
        """What the client received since the last call."""
        out, self.client.received = self.client.received, []
        return out
