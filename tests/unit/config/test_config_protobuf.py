"""Kubernetes' protobuf, as kubectl's typed commands send it."""

import pytest
from meshbus_config.errors import ApiError
from meshbus_config.protobuf_bodies import decode_object


def varint(value):
    out = b""
    while True:
        value, low = value >> 7, value & 0x7F
        out += bytes([low | (0x80 if value else 0)])
        if not value:
            return out


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def envelope(kind, raw):
    return b"k8s\x00" + field(1, field(1, b"v1") + field(2, kind)) + field(2, raw)


def test_a_service_with_all_kinds_of_fields():
    port = field(1, b"http") + field(3, 80) + field(4, field(1, 0) + field(2, 8080)) + field(5, 0)
    named = field(3, 90) + field(4, field(1, 1) + field(2, 0) + field(3, b"grpc"))
    spec = field(1, port) + field(1, named) + field(2, field(1, b"app") + field(2, b"x"))
    spec += field(3, b"") + field(13, 1)
    metadata = field(1, b"s") + field(8, b"") + field(11, field(1, b"k") + field(2, b"v"))
    assert decode_object(envelope(b"Service", field(1, metadata) + field(2, spec))) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "labels": {"k": "v"}},
        "spec": {
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"port": 90, "targetPort": "grpc"},
            ],
            "selector": {"app": "x"},
            "publishNotReadyAddresses": True,
        },
    }


def test_bytes_of_a_secret_become_base64():
    raw = field(1, field(1, b"s")) + field(2, field(1, b"a") + field(2, b"\x00\xff"))
    assert decode_object(envelope(b"Secret", raw))["data"] == {"a": "AP8="}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{}", "not Kubernetes' protobuf"),
        (b"k8s\x00\x0a\xff", "not Kubernetes' protobuf"),
        (b"k8s\x00" + b"\x80" * 20, "64 bits"),
        (envelope(b"Deployment", b""), "Deployment in protobuf is not read here"),
        (envelope(b"Namespace", field(9, 1)), "field 9 of Namespace is not known"),
        (envelope(b"Namespace", field(1, 5)), "a number where text was expected"),
    ],
)
def test_what_cannot_be_read_says_why(body, message):
    with pytest.raises(ApiError, match=message) as refused:
        decode_object(body)
    assert refused.value.code == 400
