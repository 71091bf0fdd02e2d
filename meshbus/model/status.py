"""STATUS and EVENTS: liveness, acks, progress. Never an input of compile.

Subjects: `s.<cluster>.<service>.<instance>.<what>`; the last message per subject is the state, the
stream is in memory, so writers repeat theirs after a reconnect and on a slow timer.
"""

import msgspec

from meshbus.model.keys import escape_token


class InstanceReport(msgspec.Struct, frozen=True):
    """One workload instance as its supervisor sees it: `s.<cluster>.local.<node>.i-<ns>~<name>`.

    Discovery turns ready instances into `reg.workloads` and `reg.endpoints` rows.
    """

    namespace: str
    name: str
    """Instance name, unique in the namespace: `reviews-v1-0`."""
    workload: str
    """Name of the Workload object."""
    service_account: str
    labels: dict[str, str]
    addresses: list[str]
    app_address: str
    ports: list[tuple[str, int]]
    """(name, port)."""
    sidecar: bool
    gateway: bool
    capture: str
    http_proxy_port: int
    http_proxy_address: str
    dual_stack: bool
    locality: str
    ready: bool
    """The process runs and takes connections."""
    draining: bool = False
    """It is about to end: nobody new is to come, who is there may go on."""
    gone: bool = False
    """It was stopped on purpose: its rows are removed (a dead one stays, not ready)."""
    network: str = ""
    dns: bool = False
    """Its application asks mesh DNS."""


class ProxyProblem(msgspec.Struct, frozen=True):
    """A resource that a proxy refused."""

    proxy: str
    type_url: str
    resources: list[str]
    objects: list[str]
    """`Kind namespace/name` of the objects that the refused resources came from."""
    object_keys: list[str]
    """Row keys (`cfg.virtualservices/default/reviews`) of the same."""
    message: str
    sequence: int
    """Model version of the refused push."""
    left_out: bool = False
    """The objects are left out where they were refused; everything else of the resource goes on."""


class ConfigLoss(msgspec.Struct, frozen=True):
    """A part of an object that has no effect, and at which proxies."""

    object_key: str
    """Row key of the object (`cfg.virtualservices/default/reviews`)."""
    path: str
    """The part: `spec.http[0].match`."""
    message: str
    proxies: int
    """How many connected proxies it has no effect at."""
    example: str
    """One of them."""
    sequence: int
    """Model version that this is found in."""


class GatewayReport(msgspec.Struct, frozen=True):
    """What one gateway replica knows: `s.<cluster>.xds-gateway.<pod>.report`, each second while it
    moves."""

    pod: str
    sequence: int
    """Model version that its snapshots are made of."""
    proxies: int
    """Connected now."""
    converged: int
    """Smallest version that every connected proxy has converged at (`sequence` when idle)."""
    problems: list[ProxyProblem] = []
    cpu: float = 0.0
    """Share of the time that its thread of Python is at work, to a tenth."""
    memory: float = 0.0
    """Share of the memory that it may use, to a tenth."""
    waiting: int = 0
    """Streams that wait to be admitted."""
    losses: list[ConfigLoss] = []


class Progress(msgspec.Struct, frozen=True):
    """How far a service that derives rows has come: `s.<cluster>.<service>.<pod>.progress`.

    Every row up to `read` is reflected in MODEL by version `wrote`.
    """

    service: str
    read: int
    wrote: int


def status_subject(cluster: str, service: str, instance: str, what: str) -> str:
    """The STATUS subject of one report."""
    parts = (cluster, service, instance, what)
    return "s." + ".".join(escape_token(part) for part in parts)


def event_subject(cluster: str, kind: str, namespace: str, name: str, verb: str) -> str:
    """The EVENTS subject of one CloudEvent."""
    parts = (cluster, kind, namespace, name, verb)
    return "events.v1." + ".".join(escape_token(part) for part in parts)
