"""Delegates: rules of a virtual service that another one goes on with.

Source: Istio, VirtualService reference (`Delegate`) and mergeVirtualServicesIfNeeded of 1.31.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from meshbus.compile.findings import Report
from meshbus.compile.names import fqdn
from meshbus.compile.settings import MeshSettings
from meshbus.compile.visibility import Ref, export_to
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject

_INHERITED = (
    "rewrite",
    "directResponse",
    "timeout",
    "retries",
    "fault",
    "mirror",
    "mirrorPercent",
    "mirrorPercentage",
    "mirrors",
    "corsPolicy",
    "headers",
)
_MAPS = ("headers", "withoutHeaders", "queryParams")
_STRINGS = ("uri", "scheme", "method", "authority")
_FROM_ROOT = ("sourceLabels", "sourceNamespace", "gateways", "port", "statPrefix")


class HttpRule(NamedTuple):
    """One rule of `http` as it is carried out."""

    rule: dict[str, Any]
    source: Ref
    """The object that wrote it: the virtual service, or its delegate."""
    path: str
    """Where in that object: `spec.http[0]`."""


def delegate_keys(vs: Ref) -> tuple[Key, ...]:
    """Keys of the virtual services that a virtual service delegates to, there or not."""
    return tuple(
        _key(vs, rule["delegate"]) for rule in vs.row.spec.get("http") or () if rule.get("delegate")
    )


def _key(vs: Ref, delegate: Mapping[str, Any]) -> Key:
    namespace = str(delegate.get("namespace") or vs.row.namespace)
    return vs.key._replace(namespace=namespace, name=str(delegate.get("name") or ""))


def http_rules(
    vs: Ref,
    read: Callable[[Key], ConfigObject | None],
    settings: MeshSettings,
    report: Report,
) -> Iterator[HttpRule]:
    """Rules of a virtual service, those of its delegates in their places.

    A rule whose delegate is not there, or not exported to the namespace, is left out; so is a rule
    of a delegate for requests that the root's rule is not for.
    """
    for index, rule in enumerate(vs.row.spec.get("http") or ()):
        path = f"spec.http[{index}]"
        if not rule.get("delegate"):
            yield HttpRule(rule, vs, path)
            continue
        with report.guard(vs.key, f"{path}.delegate"):
            key = _key(vs, rule["delegate"])
            row = read(key)
            fault = _fault(row, key, vs, settings)
            if row is None or fault:
                report.add(vs.key, f"{path}.delegate", fault)
                continue
            yield from _joined(rule, vs, Ref(key, row), report)


def _fault(row: ConfigObject | None, key: Key, vs: Ref, settings: MeshSettings) -> str:
    name = f"VirtualService {key.namespace}/{key.name}"
    if row is None:
        return f"{name} does not exist"
    if row.spec.get("hosts"):
        return f"{name} has hosts of its own: a delegate has none"
    audience = export_to(row, settings.virtual_service_export_to)
    own = "." in audience and key.namespace == vs.row.namespace
    if "*" not in audience and vs.row.namespace not in audience and not own:
        return f"{name} is not exported to {vs.row.namespace}"
    return ""


def _joined(rule: dict[str, Any], vs: Ref, delegate: Ref, report: Report) -> Iterator[HttpRule]:
    for index, inner in enumerate(delegate.row.spec.get("http") or ()):
        path = f"spec.http[{index}]"
        if inner.get("delegate"):
            report.add(delegate.key, f"{path}.delegate", "a delegate cannot delegate again")
            continue
        matches = _matches(rule.get("match") or [], inner.get("match") or [])
        if matches is None:
            message = f"no request of VirtualService {vs.row.namespace}/{vs.row.name} matches this"
            report.add(delegate.key, f"{path}.match", message)
            continue
        merged = dict(inner)
        for field in _INHERITED:
            if inner.get(field) is None and rule.get(field) is not None:
                merged[field] = _qualified(field, rule[field], vs.row.namespace)
        names = [str(r["name"]) for r in (rule, inner) if r.get("name")]
        if names:
            merged["name"] = "-".join(names)
        if matches:
            merged["match"] = matches
        yield HttpRule(merged, delegate, path)


def _qualified(field: str, value: Any, namespace: str) -> Any:
    """Short hosts in what the root says are of the root's namespace."""
    if field == "mirror":
        return {**value, "host": fqdn(str(value.get("host") or ""), namespace)}
    if field == "mirrors":
        return [
            {**m, "destination": _qualified("mirror", m.get("destination") or {}, namespace)}
            for m in value
        ]
    return value


# --------------------------------------------------------------------------- matches


def _matches(
    root: list[dict[str, Any]], inner: list[dict[str, Any]]
) -> list[dict[str, Any]] | None:
    """Requests that both are for; None when a match of the delegate is within none of the root's,
    empty when neither restricts anything."""
    if not root or not inner:
        return inner or root
    out = []
    for own in inner:
        within = [outer for outer in root if not _conflict(outer, own)]
        if not within:
            return None
        out += [_match(outer, own) for outer in within]
    return out


def _match(outer: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    out = {**{f: outer[f] for f in (*_STRINGS, *_FROM_ROOT) if outer.get(f) is not None}, **own}
    names = [str(m["name"]) for m in (outer, own) if m.get("name")]
    if names:
        out["name"] = "-".join(names)
    for field in _MAPS:
        both = {**(outer.get(field) or {}), **(own.get(field) or {})}
        if both:
            out[field] = both
    return out


def _conflict(outer: dict[str, Any], own: dict[str, Any]) -> bool:
    pairs = [(outer.get(field), own.get(field)) for field in _STRINGS]
    for field in _MAPS:
        pairs += _common(outer.get(field) or {}, own.get(field) or {})
    if any(_outside(a, b) for a, b in pairs):
        return True
    if bool(outer.get("ignoreUriCase")) != bool(own.get("ignoreUriCase")):
        return True
    ports = (outer.get("port"), own.get("port"))
    return bool(all(ports) and ports[0] != ports[1])


def _common(outer: Mapping[str, Any], own: Mapping[str, Any]) -> Iterable[tuple[Any, Any]]:
    return [(outer[name], own[name]) for name in own if name in outer]


def _outside(outer: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> bool:
    """Texts of `own` are not all texts of `outer`; of regular expressions nobody can tell."""
    if outer is None or own is None:
        return False
    if outer.get("regex") or own.get("regex"):
        return True
    if outer.get("exact"):
        return bool(own.get("exact") != outer["exact"])
    prefix = str(outer.get("prefix") or "")
    text = str(own.get("prefix") or own.get("exact") or "")
    return not prefix or not text.startswith(prefix)
