"""Quotas at a workload's inbound side: the rate limit filter and the descriptors it asks about.

One descriptor stands for one QuotaSpec bound to the service that is called. It carries the
attributes that decide about the spec's charges, and no others: the policy service evaluates rules,
dimensions and overrides (`meshbus.mixer.quota`) and counts.

| entry | value |
|---|---|
| `quotaspec` | `NAMESPACE/NAME` of the spec |
| an attribute, `MAP[key]` for one value of a map | its value; left out where it has none |
| `peer.uri`, `peer.subject`, `peer.address` | who calls, if attributes of the source are needed |

A policy service that cannot be reached grants: Mixer's client does so with quotas whatever the
mesh's fail policy is.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from envoy.config.core.v3 import config_source_pb2
from envoy.config.ratelimit.v3 import rls_pb2
from envoy.config.route.v3 import route_components_pb2 as rc_pb2
from envoy.extensions.filters.http.ratelimit.v3 import rate_limit_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.rate_limit_descriptors.expr.v3 import expr_pb2

from meshbus.compile.engine import Reader
from meshbus.compile.findings import Finding
from meshbus.compile.proxy_keys import ProxyKeys
from meshbus.compile.settings import mesh
from meshbus.compile.telemetry import grpc_service, has_service
from meshbus.compile.values import any_of, seconds
from meshbus.mixer.objects import Problem
from meshbus.mixer.quota import QuotaConfig
from meshbus.mixer.quota_objects import SPECS, TABLES, load_quotas
from meshbus.model.keys import Key
from meshbus.model.world import Query

DOMAIN = "meshbus"
SPEC_ENTRY = "quotaspec"
TIMEOUT_S = 0.2

_HEADERS = {
    "request.path": ":path",
    "request.url_path": ":path",
    "request.query_params": ":path",
    "request.host": ":authority",
    "request.method": ":method",
    "request.scheme": ":scheme",
    "request.useragent": "user-agent",
    "request.referer": "referer",
    "request.id": "x-request-id",
    "context.protocol": "content-type",
}
"""Attributes that are a header, or are read out of one by the policy service."""
_PEER = {
    "peer.uri": "connection.uri_san_peer_certificate",
    "peer.subject": "connection.subject_peer_certificate",
    "peer.address": "source.address",
}
_EXPRESSIONS = {
    "connection.mtls": "connection.mtls",
    "connection.requested_server_name": "connection.requested_server_name",
    "destination.ip": "destination.address",
    "destination.port": "destination.port",
    "destination.uid": "destination.address",
    "destination.name": "destination.address",
    "request.size": "request.size",
}
"""Attributes that Envoy knows, by their names in its CEL; a pod's name is found by its address."""
_AT_POLICY = frozenset({"request.time", "context.time", "context.timestamp"})
"""Known where they are evaluated."""
_SOURCE = ("source.", "origin.")
_DESTINATION = ("destination.", "context.reporter.kind")
_HEADER_NAME = re.compile(r":?[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@dataclass(frozen=True)
class QuotaLimits:
    """What quotas add to one inbound port of a workload."""

    rate_limits: list[Any] = field(default_factory=list)
    """Route `RateLimit`s, put on the inbound virtual host; the filter asks nobody without them."""
    findings: tuple[Finding, ...] = ()
    """What of the mesh's quotas has no effect."""


@dataclass(frozen=True)
class Quotas:
    """Quotas of the whole mesh."""

    config: QuotaConfig
    specs: dict[tuple[str, str], Key]
    """Keys of the QuotaSpecs by (namespace, name)."""
    findings: tuple[Finding, ...]
    """What cannot be used."""


def quotas(reader: Reader) -> Quotas:
    """Node: every object that has a part in quotas, read and compiled."""
    rows = {}
    keys: dict[tuple[str, str, str], Key] = {}
    for plural in TABLES:
        entries = reader.entries(Query(f"cfg.{plural}", "all", None))
        rows[plural] = [entry.row for entry in entries]
        keys.update({(plural, e.row.namespace, e.row.name): e.key for e in entries})
    config = load_quotas(rows, reader.node(mesh).root_namespace)
    specs = {key[1:]: row_key for key, row_key in keys.items() if key[0] == SPECS}
    return Quotas(config, specs, tuple(_finding(problem, keys) for problem in config.problems))


def _finding(problem: Problem, keys: dict[tuple[str, str, str], Key]) -> Finding:
    key = keys[(problem.plural, problem.namespace, problem.name)]
    return Finding(key, problem.path, problem.message)


def quotas_count(reader: Reader) -> bool:
    """Node: there may be something to say of quotas at a port: one is there, or one is wrong."""
    if not reader.node(mesh).policy_checks:
        return False
    known = reader.node(quotas)
    return bool(known.specs or known.findings)


def inbound_quota(
    reader: Reader, proxy: ProxyKeys, services: tuple[tuple[str, str, str, int], ...]
) -> QuotaLimits:
    """Node: what quotas ask for at one port of this proxy.

    Args:
        services: (host, name, namespace, port) of the services that the port belongs to; a spec
            that is bound to several of them counts once, for the first.
    """
    if not reader.node(mesh).policy_checks:
        return QuotaLimits()
    known = reader.node(quotas)
    config = known.config
    bound: dict[tuple[str, str], tuple[str, str, str]] = {}
    for host, name, namespace, _ in services:
        for spec in config.specs_for(host, name, namespace):
            if config.counts(spec, proxy.namespace):
                bound.setdefault(spec, (host, name, namespace))
    asked = has_service(reader, "policy")
    findings = list(known.findings)
    for spec in bound:
        reasons = [
            f"{name} is not known when quotas are decided: expressions find it absent"
            for name in _unknown(config, spec, proxy.namespace)
        ]
        if not asked:
            reasons.append("there is no policy service to ask: nothing is counted")
        findings += [Finding(known.specs[spec], "spec.rules", reason) for reason in reasons]
    if not asked:
        return QuotaLimits([], tuple(findings))
    limits = [
        rc_pb2.RateLimit(actions=_actions(config, spec, proxy, service))
        for spec, service in sorted(bound.items())
    ]
    return QuotaLimits(limits, tuple(findings))


def quota_filters(reader: Reader) -> list[hcm_pb2.HttpFilter]:
    """Filters of server-side connection managers that ask the policy service, before the router.

    With a policy service they are always there: a listener that changes leaves open connections on
    their old filters, so what comes and goes are the rate limits of the route (DESIGN §5).
    """
    return [_filter()] if reader.node(has_service, "policy") else []


@cache
def _filter() -> hcm_pb2.HttpFilter:
    config = rate_limit_pb2.RateLimit(
        domain=DOMAIN,
        timeout=seconds(TIMEOUT_S),
        failure_mode_deny=False,
        rate_limited_as_resource_exhausted=True,
        rate_limit_service=rls_pb2.RateLimitServiceConfig(
            grpc_service=grpc_service("policy"),
            transport_api_version=config_source_pb2.ApiVersion.V3,
        ),
    )
    return hcm_pb2.HttpFilter(name="envoy.filters.http.ratelimit", typed_config=any_of(config))


# --------------------------------------------------------------------------- descriptors


def _actions(
    config: QuotaConfig,
    spec: tuple[str, str],
    proxy: ProxyKeys,
    service: tuple[str, str, str],
) -> list[rc_pb2.RateLimit.Action]:
    named = config.references_of(spec, proxy.namespace)
    entries = {SPEC_ENTRY: _constant(SPEC_ENTRY, f"{spec[0]}/{spec[1]}")}
    for key, value in _destination(named, proxy, service):
        if value:
            entries[key] = _constant(key, value)
    for name, part in sorted(named, key=str):
        if name.startswith(_SOURCE):
            entries.update({entry: _expression(entry, text) for entry, text in _PEER.items()})
        elif name == "request.headers" and part is not None and _HEADER_NAME.fullmatch(part):
            entries[f"{name}[{part}]"] = _header(f"{name}[{part}]", part)
        elif name in _HEADERS:
            header = _HEADERS[name]
            entries[f"request.headers[{header}]"] = _header(f"request.headers[{header}]", header)
        elif name in _EXPRESSIONS:
            entry = "destination.ip" if name in {"destination.uid", "destination.name"} else name
            entries[entry] = _expression(entry, _EXPRESSIONS[name])
    return [entries[key] for key in sorted(entries)]


def _unknown(config: QuotaConfig, spec: tuple[str, str], namespace: str) -> list[str]:
    """Attributes that a spec asks for and that nothing here can tell."""
    out = []
    for name, part in config.references_of(spec, namespace):
        if name == "request.headers" and (part is None or not _HEADER_NAME.fullmatch(part)):
            out.append(f"{name}[...] whose key is not a constant name of a header")
        elif not (
            name == "request.headers"
            or name in _HEADERS
            or name in _EXPRESSIONS
            or name in _AT_POLICY
            or name.startswith((*_SOURCE, *_DESTINATION))
        ):
            out.append(name)
    return sorted(out)


def _destination(
    named: Iterable[tuple[str, str | None]], proxy: ProxyKeys, service: tuple[str, str, str]
) -> Iterable[tuple[str, str]]:
    """What is known of the destination now: the same for all replicas of the workload."""
    host, name, namespace = service
    workload = {
        "destination.namespace": proxy.namespace,
        "destination.serviceAccount": proxy.service_account,
        "destination.workload.name": proxy.workload,
        "destination.workload.namespace": proxy.namespace,
        "destination.workload.uid": f"istio://{proxy.namespace}/workloads/{proxy.workload}",
        "destination.service.host": host,
        "destination.service.name": name,
        "destination.service.namespace": namespace,
        "destination.service.uid": f"istio://{namespace}/services/{name}",
        "context.reporter.kind": "inbound",
    }
    yield "destination.namespace", proxy.namespace
    for attribute, key in named:
        if attribute in workload:
            yield attribute, workload[attribute]
        elif attribute == "destination.labels":
            for label, value in proxy.labels:
                if key in {None, label}:
                    yield f"{attribute}[{label}]", value


def _constant(key: str, value: str) -> rc_pb2.RateLimit.Action:
    return rc_pb2.RateLimit.Action(
        generic_key=rc_pb2.RateLimit.Action.GenericKey(descriptor_key=key, descriptor_value=value)
    )


def _header(key: str, header: str) -> rc_pb2.RateLimit.Action:
    return rc_pb2.RateLimit.Action(
        request_headers=rc_pb2.RateLimit.Action.RequestHeaders(
            header_name=header, descriptor_key=key, skip_if_absent=True
        )
    )


def _expression(key: str, text: str) -> rc_pb2.RateLimit.Action:
    config = expr_pb2.Descriptor(descriptor_key=key, skip_if_error=True, text=text)
    action = rc_pb2.RateLimit.Action()
    action.extension.name = "envoy.rate_limit_descriptors.expr"
    action.extension.typed_config.CopyFrom(any_of(config))
    return action
