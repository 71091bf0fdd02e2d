"""Bodies in Kubernetes' protobuf: what `kubectl create` sends for Kubernetes' own kinds. Pure.

kubectl's typed commands (`create namespace`, `create secret tls`, ...) know no other format. The
tables below are the messages of those kinds; a field that is not in them is refused, not dropped.
Answers are JSON, which the same clients accept.
Source: k8s.io/api/core/v1/generated.proto, k8s.io/apimachinery/pkg/runtime/generated.proto.
"""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from meshbus_config.errors import bad_request

PROTOBUF = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 32


class _Field(NamedTuple):
    name: str
    type: str
    """`string`, `bytes`, `int`, `bool`, `time`, `int-or-string`, `map` (of strings), `map-bytes`,
    or the name of a message."""
    repeated: bool = False


def _table(text: str) -> dict[int, _Field]:
    """Fields of lines `NUMBER NAME TYPE`, `*` after the type: repeated."""
    table = {}
    for line in text.split(","):
        number, name, kind = line.split()
        table[int(number)] = _Field(name, kind.rstrip("*"), kind.endswith("*"))
    return table


_MESSAGES = {
    "ObjectMeta": _table(
        "1 name string, 2 generateName string, 3 namespace string, 4 selfLink string, "
        "5 uid string, 6 resourceVersion string, 7 generation int, 8 creationTimestamp time, "
        "9 deletionTimestamp time, 10 deletionGracePeriodSeconds int, 11 labels map, "
        "12 annotations map, 13 ownerReferences OwnerReference*, 14 finalizers string*"
    ),
    "OwnerReference": _table(
        "1 kind string, 3 name string, 4 uid string, 5 apiVersion string, 6 controller bool, "
        "7 blockOwnerDeletion bool"
    ),
    "Namespace": _table("1 metadata ObjectMeta, 2 spec NamespaceSpec, 3 status NamespaceStatus"),
    "NamespaceSpec": _table("1 finalizers string*"),
    "NamespaceStatus": _table("1 phase string"),
    "ConfigMap": _table(
        "1 metadata ObjectMeta, 2 data map, 3 binaryData map-bytes, 4 immutable bool"
    ),
    "Secret": _table(
        "1 metadata ObjectMeta, 2 data map-bytes, 3 type string, 4 stringData map, 5 immutable bool"
    ),
    "ServiceAccount": _table(
        "1 metadata ObjectMeta, 2 secrets ObjectReference*, 3 imagePullSecrets LocalReference*, "
        "4 automountServiceAccountToken bool"
    ),
    "ObjectReference": _table(
        "1 kind string, 2 namespace string, 3 name string, 4 uid string, 5 apiVersion string, "
        "6 resourceVersion string, 7 fieldPath string"
    ),
    "LocalReference": _table("1 name string"),
    "Service": _table("1 metadata ObjectMeta, 2 spec ServiceSpec, 3 status ServiceStatus"),
    "ServiceStatus": _table("1 loadBalancer LoadBalancerStatus"),
    "LoadBalancerStatus": {},
    "ServiceSpec": _table(
        "1 ports ServicePort*, 2 selector map, 3 clusterIP string, 4 type string, "
        "5 externalIPs string*, 7 sessionAffinity string, 8 loadBalancerIP string, "
        "9 loadBalancerSourceRanges string*, 10 externalName string, "
        "11 externalTrafficPolicy string, 12 healthCheckNodePort int, "
        "13 publishNotReadyAddresses bool, 17 ipFamilyPolicy string, 18 clusterIPs string*, "
        "19 ipFamilies string*, 20 allocateLoadBalancerNodePorts bool, "
        "21 loadBalancerClass string, 22 internalTrafficPolicy string, "
        "23 trafficDistribution string"
    ),
    "ServicePort": _table(
        "1 name string, 2 protocol string, 3 port int, 4 targetPort int-or-string, "
        "5 nodePort int, 6 appProtocol string"
    ),
}
_KINDS = ("Namespace", "ConfigMap", "Secret", "ServiceAccount", "Service")
_TYPE_META = _table("1 apiVersion string, 2 kind string")


def decode_object(body: bytes) -> dict[str, Any]:
    """The document of a protobuf body.

    Raises:
        ApiError: 400, malformed, of another kind, or with a field that is not known here.
    """
    if not body.startswith(_MAGIC):
        raise bad_request("the body is not Kubernetes' protobuf")
    try:
        envelope = _envelope(body[len(_MAGIC) :])
        kind = envelope["kind"]
        if kind not in _KINDS or envelope["apiVersion"] != "v1":
            raise bad_request(
                f"{kind} in protobuf is not read here, only {', '.join(_KINDS)} of v1: send JSON"
            )
        document = _message(kind, envelope["raw"], kind, 0)
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise bad_request(f"the body is not Kubernetes' protobuf: {error}") from error
    return {"apiVersion": "v1", "kind": kind, **document}


def _envelope(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"apiVersion": "", "kind": "", "raw": b""}
    for number, value in _fields(data):
        if number == 1:
            for inner, text in _fields(_bytes(value)):
                found[_TYPE_META[inner].name] = _bytes(text).decode()
        elif number == 2:
            found["raw"] = _bytes(value)
    return found


def _message(message: str, data: bytes, path: str, depth: int) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        raise ValueError("nests too deep")
    table = _MESSAGES[message]
    found: dict[str, Any] = {}
    for number, raw in _fields(data):
        field = table.get(number)
        if field is None:
            raise bad_request(
                f"{path}: field {number} of {message} is not known here: send JSON instead"
            )
        where = f"{path}.{field.name}"
        if field.type in ("map", "map-bytes"):
            key, value = _pair(_bytes(raw))
            text = base64.b64encode(value).decode() if field.type == "map-bytes" else value.decode()
            found.setdefault(field.name, {})[key] = text
            continue
        value = _value(field.type, raw, where, depth)
        if field.repeated:
            found.setdefault(field.name, []).append(value)
        elif value not in ("", 0, None, {}) or value is False:
            # Go writes empty fields too; in JSON they are left out.
            found[field.name] = value
    return found


def _value(kind: str, raw: int | bytes, path: str, depth: int) -> Any:
    if kind == "string":
        return _bytes(raw).decode()
    if kind == "int":
        return _signed(raw)
    if kind == "bool":
        return _signed(raw) != 0
    if kind == "time":
        seconds = dict(_fields(_bytes(raw))).get(1, 0)
        if not seconds:
            return None
        return datetime.fromtimestamp(_signed(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if kind == "int-or-string":
        parts = dict(_fields(_bytes(raw)))
        if parts.get(1):
            return _bytes(parts.get(3, b"")).decode()
        return _signed(parts.get(2, 0))
    return _message(kind, _bytes(raw), path, depth + 1)


def _pair(data: bytes) -> tuple[str, bytes]:
    parts = dict(_fields(data))
    return _bytes(parts.get(1, b"")).decode(), _bytes(parts.get(2, b""))


def _bytes(raw: int | bytes) -> bytes:
    if isinstance(raw, int):
        raise ValueError("a number where text was expected")
    return raw


def _signed(raw: int | bytes) -> int:
    if isinstance(raw, bytes):
        raise ValueError("text where a number was expected")
    return raw - (1 << 64) if raw >> 63 else raw


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a message: varints as int, the rest as bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == _VARINT:
            number, position = _varint(data, position)
            yield tag >> 3, number
            continue
        if kind == _BYTES:
            length, position = _varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > len(data):
            raise ValueError("it ends too early")
        yield tag >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value & ((1 << 64) - 1), position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
