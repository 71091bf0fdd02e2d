"""ServiceEntries: addresses, and two with one port.

Source: Istio, analysis messages IST0134, IST0177.
"""

from collections.abc import Iterator

from meshbus.analyze.hosts import EVERYWHERE, scopes
from meshbus.analyze.messages import Message, about
from meshbus.analyze.objects import (
    NETWORKING,
    Object,
    Objects,
    number,
    record,
    records,
    strings,
    text,
    texts,
)

_CAPTURE = "ISTIO_META_DNS_CAPTURE"
_ALLOCATE = ("ISTIO_META_DNS_AUTO_ALLOCATE", "PILOT_ENABLE_IP_AUTOALLOCATE")


def addresses(objects: Objects) -> Iterator[Message]:
    """Ports of plain TCP are told apart by address."""
    proxy = record(objects.mesh.get("defaultConfig"))
    metadata = strings(proxy.get("proxyMetadata"))
    if metadata.get(_CAPTURE) == "true" and any(metadata.get(n) == "true" for n in _ALLOCATE):
        return
    for one in objects.of(NETWORKING, "ServiceEntry"):
        if one.spec.get("addresses") or one.status.get("addresses"):
            continue
        for index, port in enumerate(records(one.spec.get("ports"))):
            if text(port.get("protocol")).upper() in ("", "TCP"):
                message = "addresses are required for a port of TCP, or of no protocol"
                path = f"spec.ports[{index}]"
                yield about(one, "IST0134", f"{path}: {message}", path)


def protocols(objects: Objects) -> Iterator[Message]:
    """One port of one host has one protocol."""
    held: dict[tuple[str, str, int], list[tuple[str, Object, str]]] = {}
    for one in objects.of(NETWORKING, "ServiceEntry"):
        for scope in scopes(texts(one.spec.get("exportTo")), one.namespace):
            for host in texts(one.spec.get("hosts")):
                for index, port in enumerate(records(one.spec.get("ports"))):
                    key = (scope, host, number(port.get("number")))
                    spoken = text(port.get("protocol")).upper()
                    held.setdefault(key, []).append((spoken, one, f"spec.ports[{index}].protocol"))
    told: set[str] = set()
    for (scope, host, at), found in held.items():
        together = found + (held.get((EVERYWHERE, host, at), []) if scope != EVERYWHERE else [])
        several = sorted({protocol for protocol, _, _ in together})
        if len(several) < 2:
            continue
        names = ", ".join(sorted({one.full_name for _, one, _ in together}))
        for _, one, path in together:
            if one.full_name not in told:
                told.add(one.full_name)
                message = f"port {at} of {host} is {' and '.join(several)}: {names}"
                yield about(one, "IST0177", message, path)
