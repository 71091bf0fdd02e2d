"""`envoy.service.auth.v3.Authorization`: checks of rules."""

import time
from collections.abc import Mapping
from typing import Any

from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.type.v3 import http_status_pb2

from meshbus.mixer.checks import INTERNAL, OK, judge
from meshbus.mixer.program import Bag
from meshbus.mixer.values import Timestamp, Value, parse_ip
from meshbus.mixer.workloads import Peer, find_peer, instance_attributes, source_attributes
from meshbus.model.world import World
from meshbus.runtime.proxy_server import require_workload
from meshbus_policy.descriptors import request_attributes
from meshbus_policy.rate_limits import Policy

HTTP_STATUS: Mapping[int, int] = {
    0: 200, 1: 408, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 412, 10: 409,
    11: 400, 12: 501, 13: 500, 14: 503, 15: 500, 16: 401,
}  # fmt: skip
"""HTTP status of a google.rpc code. Source: Mixer 1.4's client (istio/proxy, check_data)."""


class AuthorizationServer(external_auth_pb2_grpc.AuthorizationServicer):  # type: ignore[misc]
    """Answers `Check`. A request that no rule concerns is allowed."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """Allowed, or denied with the status that Mixer's client answered with."""
        began = time.perf_counter()
        caller = await require_workload(context, self._policy.trust_domain, self._policy.trust)
        policy = self._policy
        attributes = attributes_of(request.attributes, caller, policy.world, policy.now_ns())
        namespace = str(attributes.get("destination.namespace", ""))
        verdict = judge(policy.rules.checks, namespace, Bag(attributes))
        if verdict.code == OK:
            policy.answered("check", "ok", began)
            return external_auth_pb2.CheckResponse()
        response = external_auth_pb2.CheckResponse()
        response.status.code = verdict.code
        response.status.message = verdict.message
        body = f"{_NAMES.get(verdict.code, 'UNKNOWN')}:{verdict.message}"
        status = http_status_pb2.HttpStatus(code=HTTP_STATUS.get(verdict.code, 500))
        if verdict.code == INTERNAL:
            # Not a decision: the fail mode of Envoy's filter applies.
            response.error_response.status.CopyFrom(status)
            response.error_response.body = body
            policy.answered("check", "error", began)
            return response
        response.denied_response.status.CopyFrom(status)
        response.denied_response.body = body
        policy.answered("check", "denied", began)
        return response


_NAMES = {
    1: "CANCELLED", 2: "UNKNOWN", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND",
    6: "ALREADY_EXISTS", 7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION", 10: "ABORTED", 11: "OUT_OF_RANGE", 12: "UNIMPLEMENTED",
    13: "INTERNAL", 14: "UNAVAILABLE", 15: "DATA_LOSS", 16: "UNAUTHENTICATED",
}  # fmt: skip


def attributes_of(asked: Any, caller: str, world: World, now_ns: int) -> dict[str, Value]:
    """The attributes of an `AttributeContext`.

    Args:
        asked: The AttributeContext.
        caller: SPIFFE id of the proxy that asks: the destination.
    """
    http = asked.request.http
    headers = dict(http.headers.items())
    headers.setdefault(":path", http.path)
    headers.setdefault(":authority", http.host)
    headers.setdefault(":method", http.method)
    headers.setdefault(":scheme", http.scheme)
    now = Timestamp(now_ns)
    out: dict[str, Value] = {
        "request.headers": headers,
        "request.time": now,
        "context.time": now,
        "context.reporter.kind": "inbound",
        "connection.mtls": bool(asked.source.principal),
        **request_attributes(headers),
    }
    source = asked.source.address.socket_address.address
    uri = asked.source.principal if asked.source.principal.startswith("spiffe://") else ""
    out.update(source_attributes(world, Peer(uri, "", source)))
    address = asked.destination.address.socket_address
    own = Peer(caller, "", address.address)
    account = own.account
    if account is not None:
        out["destination.namespace"], out["destination.serviceAccount"] = account
    out["destination.principal"] = own.principal
    ip = parse_ip(address.address)
    if ip is not None:
        out["destination.ip"] = ip
        out["destination.port"] = int(address.port_value)
    row = find_peer(world, own)
    if row is not None:
        out.update(instance_attributes("destination", row))
    given = asked.context_extensions.items()
    out.update({n: text for n, text in given if n.startswith(("destination.service.", "api."))})
    return out
