"""Which services are there, under which names, and who may see them."""

from collections.abc import Iterable

import msgspec

from meshbus.analyze.objects import (
    CLUSTER_SUFFIX,
    NETWORKING,
    Objects,
    number,
    record,
    records,
    strings,
    text,
    texts,
)

EVERYWHERE = "*"
_EXPORT_TO = "networking.istio.io/exportTo"


class Host(msgspec.Struct, frozen=True, eq=False):
    """A name that calls can go to."""

    ports: tuple[int, ...]
    selector: dict[str, str]
    """Labels of the pods behind it; empty: no pods, or those that endpoints name."""
    endpoints: tuple[dict[str, str], ...] = ()
    """Labels of endpoints that are written down."""


def full(name: str, namespace: str) -> str:
    """The full name of a host: one without dots is a service of the namespace."""
    return name if "." in name or name.startswith("*") else f"{name}.{namespace}{CLUSTER_SUFFIX}"


def matches(a: str, b: str) -> bool:
    """There is a name that both hosts, each maybe with a wildcard, stand for."""
    if a.startswith("*") and b.startswith("*"):
        short, long = sorted((a[1:], b[1:]), key=len)
        return long.endswith(short)
    if a.startswith("*"):
        return b.endswith(a[1:])
    return a.endswith(b[1:]) if b.startswith("*") else a == b


def scopes(export_to: Iterable[str], namespace: str) -> list[str]:
    """Namespaces that see an object; `*`: all."""
    found = sorted({namespace if one == "." else one for one in export_to})
    return [EVERYWHERE] if not found or EVERYWHERE in found else found


class Hosts:
    """All hosts, by the scope and the name."""

    def __init__(self, objects: Objects) -> None:
        self._held: dict[tuple[str, str], Host] = {}
        for one in objects.of(NETWORKING, "ServiceEntry"):
            spec = one.spec
            ports = tuple(number(port.get("number")) for port in records(spec.get("ports")))
            selector = strings(record(spec.get("workloadSelector")).get("labels"))
            endpoints = tuple(strings(e.get("labels")) for e in records(spec.get("endpoints")))
            for scope in scopes(texts(spec.get("exportTo")), one.namespace):
                for name in texts(spec.get("hosts")):
                    held = Host(ports, selector, endpoints)
                    self._held[scope, full(name, one.namespace)] = held
        for one in objects.of("", "Service"):
            ports = tuple(number(port.get("port")) for port in records(one.spec.get("ports")))
            found = Host(ports, strings(one.spec.get("selector")))
            written = [part.strip() for part in text(one.annotations.get(_EXPORT_TO)).split(",")]
            for scope in scopes([part for part in written if part], one.namespace):
                self._held[scope, full(one.name, one.namespace)] = found

    def find(self, name: str, namespace: str, export_to: Iterable[str] = ()) -> Host | None:
        """What answers to the name, as an object of the namespace sees it."""
        wanted = full(name, namespace)
        for scope in (EVERYWHERE, *(scopes(export_to, namespace)), namespace):
            if (scope, wanted) in self._held:
                return self._held[scope, wanted]
        for (scope, host), held in self._held.items():
            seen = scope in (EVERYWHERE, namespace)
            if seen and host.startswith("*") and wanted.removeprefix("*").endswith(host[1:]):
                return held
        return None

    def names(self) -> set[str]:
        """Full names of all hosts."""
        return {name for _, name in self._held}
