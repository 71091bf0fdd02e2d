"""`authz check` as JSON: the question that is asked, the answer that is given.

```
{"from": "NS/SA", "to": "NS/WORKLOAD", "port": 0, "method": "GET", "path": "/", "host": "",
 "headers": {}, "claims": {}, "sourceIp": "", "remoteIp": "", "sni": ""}
{"outcome": "denied", "status": 403, "because": "...", "rule": {...}, "provider": "",
 "audited": {...}, "dryRun": [{"action", "outcome", "rule"}]}
```
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from meshbus.api.addresses import is_ip
from meshbus.api.kinds import table_of
from meshbus.compile.authorization_check import Answer, Question, RuleMatched, check
from meshbus.compile.engine import Engine
from meshbus.compile.offline import find_instance, object_of_document
from meshbus.compile.proxy_keys import SIDECAR, ProxyKeys, proxy_of_instance
from meshbus.compile.written import fields, pairs
from meshbus.model.keys import Key
from meshbus.model.rows import MeshConfigRow, Row, Service
from meshbus.model.world import Put, Query, World

MAX_OBJECTS = 500
_GROUPS = ("security.istio.io", "authentication.istio.io", "rbac.istio.io", "mesh.istio.io")


class CheckRequest(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """The question as it travels."""

    to: str
    """`NAMESPACE/WORKLOAD`, or an instance."""
    from_: str = msgspec.field(name="from", default="")
    """`NAMESPACE/SERVICE_ACCOUNT`; empty: plain text."""
    port: int = 0
    """Of the workload; 0: the first that speaks HTTP."""
    method: str = "GET"
    path: str = "/"
    host: str = ""
    headers: dict[str, str] = {}
    claims: dict[str, Any] | None = None
    """Of a valid token."""
    source_ip: str = ""
    remote_ip: str = ""
    sni: str = ""
    objects: list[dict[str, Any]] = []
    """Documents that hold as if they were applied."""


@dataclasses.dataclass(frozen=True, slots=True)
class Proposal:
    """A world in which proposed policies hold."""

    world: World
    refused: list[str] = dataclasses.field(default_factory=list)
    """Documents that cannot be proposed, and why."""


def proposed(world: World, cluster: str, documents: list[dict[str, Any]]) -> Proposal:
    """The world as if these policies were applied."""
    rows: dict[Key, Row] = {}
    refused = []
    for index, document in enumerate(documents):
        try:
            row = object_of_document(document)
        except ValueError as error:
            refused.append(f"objects[{index}]: {error}")
            continue
        if row.api_version.partition("/")[0] not in _GROUPS:
            refused.append(f"objects[{index}]: {row.kind} cannot be proposed, policies alone can")
        elif row.kind == "MeshConfig":
            rows[Key(cluster, "mesh", "config", "", "mesh")] = MeshConfigRow(dict(row.spec))
        else:
            rows[
                Key(cluster, "cfg", table_of(row.api_version, row.kind), row.namespace, row.name)
            ] = row
    changed, _ = world.apply(Put(key, world.sequence, 0.0, row) for key, row in rows.items())
    return Proposal(changed, refused)


def answer_of(world: World, request: CheckRequest) -> dict[str, Any]:
    """The answer about a workload of this world.

    Raises:
        ValueError: The question is not one; the message names the field.
        LookupError: There is no such workload.
    """
    target = _target(world, request.to)
    return document_of(check(Engine(world), target, question_of(request)))


def _target(world: World, name: str) -> ProxyKeys:
    """A workload, an instance, or a workload of a service."""
    try:
        return find_instance(world, name)
    except LookupError:
        namespace, _, short = name.rpartition("/")
        namespace = namespace or "default"
        for entry in world.entries(Query("reg.services", "namespace", namespace)):
            service: Service = entry.row
            if service.name == short and service.selector:
                for found in world.entries(Query("reg.workloads", "namespace", namespace)):
                    if service.selector.items() <= found.row.labels.items():
                        return proxy_of_instance(found.row)
        described = _described(world, namespace, short)
        if described is None:
            raise
        return described


_TEMPLATES = ("cfg.deployments", "cfg.statefulsets", "cfg.daemonsets", "cfg.replicasets")


def _described(world: World, namespace: str, name: str) -> ProxyKeys | None:
    """A workload that manifests describe and of which no instance is there: by its own name, or by
    that of a service that selects it."""
    selectors = [
        e.row.selector
        for e in world.entries(Query("reg.services", "namespace", namespace))
        if e.row.name == name and e.row.selector
    ]
    for table in _TEMPLATES:
        for entry in world.entries(Query(table, "namespace", namespace)):
            template = fields(entry.row.spec.get("template"))
            labels = pairs(fields(template.get("metadata")).get("labels"))
            selected = any(selector.items() <= dict(labels).items() for selector in selectors)
            if entry.row.name == name or selected:
                account = fields(template.get("spec")).get("serviceAccountName")
                return ProxyKeys(
                    type=SIDECAR,
                    name=entry.row.name,
                    namespace=namespace,
                    labels=labels,
                    service_account=str(account or "default"),
                    workload=entry.row.name,
                )
    return None


def question_of(request: CheckRequest) -> Question:
    """The question.

    Raises:
        ValueError: A field is not what it should be.
    """
    caller = None
    if request.from_:
        namespace, slash, account = request.from_.partition("/")
        if not (slash and namespace and account) or "/" in account:
            raise ValueError(f"from: NAMESPACE/SERVICE_ACCOUNT, not {request.from_!r}")
        caller = (namespace, account)
    if not 0 <= request.port <= 65535:
        raise ValueError(f"port: {request.port} is not a port")
    if not request.path.startswith("/") and request.path != "*":
        raise ValueError(f"path: must begin with /, not {request.path!r}")
    for name, value in (("sourceIp", request.source_ip), ("remoteIp", request.remote_ip)):
        if value and not is_ip(value):
            raise ValueError(f"{name}: {value!r} is not an address")
    return Question(
        caller=caller,
        port=request.port,
        method=request.method,
        path=request.path,
        host=request.host,
        headers=request.headers,
        claims=request.claims,
        source_ip=request.source_ip or "127.0.0.1",
        remote_ip=request.remote_ip,
        sni=request.sni,
    )


def document_of(answer: Answer) -> dict[str, Any]:
    """The answer as JSON."""
    return {
        "outcome": answer.outcome,
        "status": answer.status,
        "because": answer.because,
        "rule": _rule(answer.rule),
        "provider": answer.provider,
        "audited": _rule(answer.audited),
        "dryRun": [
            {"action": action, "outcome": outcome, "rule": _rule(rule)}
            for action, outcome, rule in answer.dry_run
        ],
    }


def _rule(rule: RuleMatched | None) -> Mapping[str, Any] | None:
    if rule is None:
        return None
    return {
        "action": rule.action,
        "kind": rule.kind,
        "namespace": rule.namespace,
        "name": rule.policy,
        "rule": rule.rule,
        "id": rule.name,
    }
