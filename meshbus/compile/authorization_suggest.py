"""Policies that allow what was observed and nothing else, to be run dry first.

For each service one ALLOW policy: each caller may do what it did. What the policies would refuse of
what was observed is found by asking them.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from meshbus.compile.authorization_check import DENIED, Question, check
from meshbus.compile.authorization_questions import proposed
from meshbus.compile.engine import Engine
from meshbus.compile.proxy_keys import ProxyKeys, proxy_of_instance
from meshbus.model.requests import ObservedCall
from meshbus.model.rows import Service, WorkloadInstance
from meshbus.model.world import Query, World

_OF_A_VERSION = frozenset({"version", "app.kubernetes.io/version", "pod-template-hash"})
MAX_OPERATIONS = 30
"""Of one caller; more are allowed by method alone."""


class Suggestion(NamedTuple):
    """What is suggested, and what it would do."""

    policies: list[dict[str, Any]]
    """Documents that run dry: `istio.io/dry-run`."""
    would_deny: list[dict[str, Any]]
    """Calls that were let in and would not be."""
    left_out: list[str]
    """Workloads without a suggestion, and why."""


class _Place(NamedTuple):
    namespace: str
    name: str
    selector: tuple[tuple[str, str], ...]


def suggest(world: World, cluster: str, calls: Iterable[ObservedCall]) -> Suggestion:
    """Policies for workloads of this world that were called."""
    grouped: dict[_Place, list[ObservedCall]] = defaultdict(list)
    targets: dict[tuple[str, str], ProxyKeys] = {}
    left_out: dict[str, None] = {}
    held = []
    for call in calls:
        row = _instance(world, call.namespace, call.workload)
        name = f"{call.namespace}/{call.workload}"
        if row is None:
            left_out[f"{name}: it is gone"] = None
        elif row.gateway:
            left_out[f"{name}: a gateway, whose callers are not in the mesh"] = None
        else:
            grouped[_place(world, row)].append(call)
            targets[call.namespace, call.workload] = proxy_of_instance(row)
            held.append(call)
    policies = [_policy(place, grouped[place]) for place in sorted(grouped)]
    refused = _would_deny(world, cluster, policies, held, targets)
    return Suggestion(policies, refused, list(left_out))


def _instance(world: World, namespace: str, workload: str) -> WorkloadInstance | None:
    for entry in world.entries(Query("reg.workloads", "namespace", namespace)):
        row: WorkloadInstance = entry.row
        if row.workload == workload:
            return row
    return None


def _place(world: World, row: WorkloadInstance) -> _Place:
    """The service of a workload, or the workload itself, as a policy selects it."""
    for entry in world.entries(Query("reg.services", "namespace", row.namespace)):
        service: Service = entry.row
        if service.selector and service.selector.items() <= row.labels.items():
            return _Place(row.namespace, service.name, tuple(sorted(service.selector.items())))
    labels = {k: v for k, v in row.labels.items() if k not in _OF_A_VERSION}
    chosen = {"app": labels["app"]} if "app" in labels else labels
    return _Place(row.namespace, row.workload, tuple(sorted(chosen.items())))


def _policy(place: _Place, calls: list[ObservedCall]) -> dict[str, Any]:
    by_caller: dict[str, list[ObservedCall]] = defaultdict(list)
    for call in calls:
        if call.principal:
            by_caller[call.principal].append(call)
    together: dict[str, tuple[list[str], list[dict[str, Any]]]] = {}
    for principal in sorted(by_caller):
        operations = _operations(by_caller[principal])
        callers, _ = together.setdefault(repr(operations), ([], operations))
        callers.append(principal)
    rules = [
        {
            "from": [{"source": {"principals": callers}}],
            "to": [{"operation": operation} for operation in operations],
        }
        for callers, operations in together.values()
    ]
    spec: dict[str, Any] = {"action": "ALLOW", "rules": rules}
    if place.selector:
        spec["selector"] = {"matchLabels": dict(place.selector)}
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {
            "name": f"suggested-{place.name}"[:253],
            "namespace": place.namespace,
            "annotations": {"istio.io/dry-run": "true"},
        },
        "spec": spec,
    }


def _operations(calls: list[ObservedCall]) -> list[dict[str, Any]]:
    """What one caller did: methods with the same paths together."""
    out: list[dict[str, Any]] = []
    for port in sorted({call.port for call in calls}):
        here = [call for call in calls if call.port == port]
        paths: dict[str, set[str]] = defaultdict(set)
        for call in here:
            if call.protocol == "http" and call.method:
                paths[call.method].add(call.path)
        if not paths:
            out.append({"ports": [str(port)]})
            continue
        by_paths: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for method in sorted(paths):
            by_paths[_allowed(paths[method])].append(method)
        for allowed, methods in sorted(by_paths.items()):
            operation: dict[str, Any] = {"ports": [str(port)], "methods": methods}
            if allowed:
                operation["paths"] = list(allowed)
            out.append(operation)
    if len(out) > MAX_OPERATIONS:
        return [{"ports": sorted({o["ports"][0] for o in out}, key=int)}]
    return out


def _allowed(paths: set[str]) -> tuple[str, ...]:
    """Paths without those that another one covers; empty: every path."""
    if "/*" in paths or any("*" in path and not _is_written(path) for path in paths):
        return ()
    covering = [path[:-1] for path in paths if path.endswith("/*")]
    return tuple(
        sorted(
            path
            for path in paths
            if path.endswith("/*") or not any(path.startswith(begin) for begin in covering)
        )
    )


def _is_written(path: str) -> bool:
    """A path that a policy can say: `*` at its end, or templates for whole segments."""
    return "*" not in path.removesuffix("/*").replace("{*}", "")


def _would_deny(
    world: World,
    cluster: str,
    policies: list[dict[str, Any]],
    calls: list[ObservedCall],
    targets: dict[tuple[str, str], ProxyKeys],
) -> list[dict[str, Any]]:
    """Calls that the policies would refuse once they are enforced."""
    enforced = [{**p, "metadata": {**p["metadata"], "annotations": {}}} for p in policies]
    engine = Engine(proposed(world, cluster, enforced).world)
    out = []
    for call in calls:
        target = targets[call.namespace, call.workload]
        _, _, rest = call.principal.partition("/ns/")
        namespace, _, account = rest.partition("/sa/")
        question = Question(
            caller=(namespace, account) if call.principal else None,
            port=call.port,
            method=call.method or "GET",
            path=call.sample or "/",
            host=call.host,
        )
        answer = check(engine, target, question)
        if answer.outcome == DENIED:
            out.append(
                {
                    "workload": f"{call.namespace}/{call.workload}",
                    "principal": call.principal,
                    "method": call.method,
                    "path": call.path,
                    "count": call.count,
                    "because": answer.because,
                }
            )
    return out
