"""What a rate limit descriptor says, as attributes. The other end of `meshbus.compile.quota`."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl

from meshbus.mixer.values import Timestamp, Value, parse_ip
from meshbus.mixer.workloads import Peer, host_of, instance_attributes, source_attributes
from meshbus.model.rows import WorkloadInstance
from meshbus.model.world import Query, World

SPEC_ENTRY = "quotaspec"
_MAPS = ("request.headers", "destination.labels")
_BY_HEADER = {
    ":path": "request.path",
    ":authority": "request.host",
    ":method": "request.method",
    ":scheme": "request.scheme",
    "user-agent": "request.useragent",
    "referer": "request.referer",
    "x-request-id": "request.id",
}
_TEXTS = ("destination.", "context.reporter.kind", "connection.requested_server_name")


class Question(NamedTuple):
    """One descriptor."""

    spec: tuple[str, str]
    """(namespace, name) of the QuotaSpec."""
    namespace: str
    """Of the destination."""
    attributes: Mapping[str, Value]


def question_of(entries: Iterable[tuple[str, str]], world: World, now_ns: int) -> Question | None:
    """The question that a descriptor asks; None if it is not one of ours."""
    content = dict(entries)
    namespace, slash, name = content.get(SPEC_ENTRY, "").partition("/")
    if not slash:
        return None
    return Question(
        (namespace, name),
        content.get("destination.namespace", ""),
        _attributes(content, world, now_ns),
    )


def _attributes(content: Mapping[str, str], world: World, now_ns: int) -> dict[str, Value]:
    now = Timestamp(now_ns)
    out: dict[str, Value] = {"request.time": now, "context.time": now, "context.timestamp": now}
    maps: dict[str, dict[str, str]] = {name: {} for name in _MAPS}
    for entry, value in content.items():
        name, bracket, key = entry.partition("[")
        if bracket and name in maps:
            maps[name][key.removesuffix("]")] = value
        elif entry.startswith(_TEXTS):
            out[entry] = value
    out.update(maps)
    out.update(request_attributes(maps["request.headers"]))
    out.update(_peer(content, world))
    out.update(_connection(content, world))
    return out


def request_attributes(headers: Mapping[str, str]) -> dict[str, Value]:
    """The attributes that are read out of headers, pseudo-headers among them."""
    out: dict[str, Value] = {
        _BY_HEADER[name]: value for name, value in headers.items() if name in _BY_HEADER
    }
    path = headers.get(":path")
    if path is not None:
        url_path, _, query = path.partition("?")
        out["request.url_path"] = url_path
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=None)[:256]
        out["request.query_params"] = dict(reversed(pairs))
    content_type = headers.get("content-type", "").lower()
    grpc = content_type.partition(";")[0] in {
        "application/grpc",
        "application/grpc+proto",
        "application/grpc+json",
    }
    out["context.protocol"] = "grpc" if grpc else "http"
    return out


def _peer(content: Mapping[str, str], world: World) -> dict[str, Value]:
    peer = Peer(
        content.get("peer.uri", ""),
        content.get("peer.subject", ""),
        host_of(content.get("peer.address", "")),
    )
    return source_attributes(world, peer) if any(peer) else {}


def _connection(content: Mapping[str, str], world: World) -> dict[str, Value]:
    out: dict[str, Value] = {}
    if "connection.mtls" in content:
        out["connection.mtls"] = content["connection.mtls"] == "true"
    for name in ("destination.port", "request.size"):
        text = content.get(name, "")
        out.pop(name, None)
        if text.isdigit():
            out[name] = int(text)
    address = parse_ip(host_of(content.get("destination.ip", "")))
    if address is not None:
        out["destination.ip"] = address
        found = world.entries(Query("reg.workloads", "address", str(address)))
        if len(found) == 1 and isinstance(found[0].row, WorkloadInstance):
            own = dict(instance_attributes("destination", found[0].row))
            out.update({name: own[name] for name in ("destination.uid", "destination.name")})
    return out
