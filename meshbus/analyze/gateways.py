"""Gateways: their ports, credentials and certificates, and each other.

Source: Istio, analysis messages IST0101, IST0138, IST0145, IST0161, IST0162.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from meshbus.analyze.hosts import matches
from meshbus.analyze.messages import Message, about, not_found
from meshbus.analyze.objects import (
    NETWORKING,
    Object,
    Objects,
    number,
    record,
    records,
    selects,
    shown,
    strings,
    text,
    texts,
)

_CERTIFICATE = ("tls.crt", "cert")
_BEGIN = b"-----BEGIN CERTIFICATE-----"


def _all(objects: Objects) -> Iterator[Object]:
    return objects.of(NETWORKING, "Gateway")


def _selector(gateway: Object) -> dict[str, str]:
    return strings(gateway.spec.get("selector"))


def ports(objects: Objects) -> Iterator[Message]:
    """A Service before the pods of the gateway has the port."""
    for one in _all(objects):
        selector = _selector(one)
        pods = [pod for pod in objects.pods if selects(selector, pod.labels)]
        if not pods:
            yield not_found(one, "selector", shown(selector), field="spec.selector")
            continue
        open_ports = {
            port
            for pod in pods
            for service in objects.of("", "Service")
            if service.namespace == pod.namespace and _before(service, pod.labels)
            for port in _targets(service)
        }
        for index, server in enumerate(records(one.spec.get("servers"))):
            port = number(record(server.get("port")).get("number"))
            if port not in open_ports:
                message = f"port {port} is of no Service before the pods of {shown(selector)}"
                yield about(one, "IST0162", message, f"spec.servers[{index}].port.number")


def _before(service: Object, labels: Mapping[str, str]) -> bool:
    return selects(strings(service.spec.get("selector")), labels)


def _targets(service: Object) -> Iterator[int]:
    """Ports of a Service, and of the pods behind it: a server may name either."""
    for port in records(service.spec.get("ports")):
        if text(port.get("protocol")) in ("", "TCP"):
            yield number(port.get("port"))
            yield number(port.get("targetPort"))


def credentials(objects: Objects) -> Iterator[Message]:
    """Secrets that servers name are there, beside the pods of the gateway, and hold
    certificates."""
    for one in _all(objects):
        selector = _selector(one)
        home = next((p.namespace for p in objects.pods if selects(selector, p.labels)), "")
        for index, server in enumerate(records(one.spec.get("servers"))):
            tls = record(server.get("tls"))
            for name in (text(tls.get("credentialName")), *texts(tls.get("credentialNames"))):
                if not name or not home:
                    continue
                namespace, slash, short = name.partition("/")
                where = (namespace, short) if slash else (home, name)
                secret = objects.find("", "Secret", *where)
                if secret is None:
                    path = f"spec.servers[{index}].tls"
                    yield not_found(one, "credentialName", name, path, f"{path}.credentialName")
                elif not _has_certificate(secret):
                    message = (
                        f"Secret {'/'.join(where)} holds no certificate: nothing can be served"
                    )
                    path = f"spec.servers[{index}].tls.credentialName"
                    yield about(one, "IST0161", message, path)


def _has_certificate(secret: Object) -> bool:
    plain = record(secret.content.get("stringData"))
    encoded = record(secret.content.get("data"))
    for key in _CERTIFICATE:
        if text(plain.get(key)):
            return _BEGIN in text(plain.get(key)).encode()
        if text(encoded.get(key)):
            try:
                held = base64.b64decode("".join(text(encoded[key]).split()), validate=True)
            except (binascii.Error, ValueError):
                return False
            return _BEGIN in held
    return False


def certificates(objects: Objects) -> Iterator[Message]:
    """No two of the same pods serve one certificate: browsers would share their connections."""
    found = list(_all(objects))
    for one in found:
        for other in found:
            if one is other or not _selector(one).items() <= _selector(other).items():
                continue
            for index, mine in enumerate(records(one.spec.get("servers"))):
                for theirs in records(other.spec.get("servers")):
                    if _same(record(mine.get("tls")), record(theirs.get("tls"))):
                        message = (
                            f"{one.full_name} and {other.full_name} have the same certificate: "
                            "clients that keep HTTP/2 connections may see 404"
                        )
                        yield about(one, "IST0138", message, f"spec.servers[{index}].tls")


def _same(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    names = text(mine.get("credentialName")), text(theirs.get("credentialName"))
    if any(names):
        return names[0] == names[1]
    fields = ("serverCertificate", "privateKey")
    return all(text(mine.get(f)) and mine.get(f) == theirs.get(f) for f in fields)


def conflicts(objects: Objects) -> Iterator[Message]:
    """No two of the same pods have one host on one port."""
    held: dict[tuple[str, int], dict[str, list[str]]] = {}
    for one in _all(objects):
        for server in records(one.spec.get("servers")):
            port = number(record(server.get("port")).get("number"))
            by_name = held.setdefault((shown(_selector(one)), port), {})
            by_name.setdefault(one.full_name, []).extend(_hosts(one, server))
    for one in _all(objects):
        for index, server in enumerate(records(one.spec.get("servers"))):
            port = number(record(server.get("port")).get("number"))
            others = [
                name
                for name, hosts in held[shown(_selector(one)), port].items()
                if name != one.full_name
                and any(_collide(a, b) for a in _hosts(one, server) for b in hosts)
            ]
            if others:
                hosts = ", ".join(texts(server.get("hosts")))
                message = (
                    f"hosts {hosts} on port {port} of {shown(_selector(one))} are also those of "
                    + ", ".join(others)
                )
                yield about(one, "IST0145", message, f"spec.servers[{index}].hosts")


def _hosts(gateway: Object, server: Mapping[str, Any]) -> list[str]:
    """`NAMESPACE/HOST`, or `*/HOST`."""
    found = []
    for entry in texts(server.get("hosts")):
        owner, slash, host = entry.partition("/")
        owner = gateway.namespace if owner == "." else owner
        found.append(f"{owner}/{host}" if slash else f"*/{entry}")
    return found


def _collide(mine: str, theirs: str) -> bool:
    (a, host), (b, other) = mine.split("/", 1), theirs.split("/", 1)
    return (a == b or "*" in (a, b)) and matches(host, other)
