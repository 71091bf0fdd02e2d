"""Rules of `connectionSettings`, in the mesh config and in the annotation of a proxy."""

from typing import Any

import pytest

from meshbus.validate import validate_object
from meshbus.validate.support import unsupported_fields

AT = "spec.defaultConfig.connectionSettings"
GOOD = {
    "profile": "EDGE",
    "listenerPerConnectionBufferLimitBytes": 0,
    "clusterPerConnectionBufferLimitBytes": 32768,
    "httpIdleTimeout": "0s",
    "httpMaxConnectionDuration": "1ms",
    "httpDrainTimeout": "5s",
    "httpRequestTimeout": "0s",
    "httpRequestHeadersTimeout": "10s",
    "httpStreamIdleTimeout": "1h",
    "httpMaxStreamDuration": "0",
    "httpMaxConcurrentStreams": 1,
    "http2InitialStreamWindowSize": 65535,
    "http2InitialConnectionWindowSize": 2147483647,
    "httpHeadersWithUnderscoresAction": "HEADERS_WITH_UNDERSCORES_ALLOW",
    "httpMergeSlashes": False,
    "httpPathWithEscapedSlashesAction": "KEEP_UNCHANGED",
    "listenerConnectionLimit": 1,
    "globalDownstreamConnectionLimit": 1,
}


def mesh(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "mesh.istio.io/v1alpha1",
        "kind": "MeshConfig",
        "metadata": {"name": "mesh"},
        "spec": {"defaultConfig": {"connectionSettings": settings}},
    }


def test_every_field_is_taken_and_carried_out() -> None:
    report = validate_object(mesh(GOOD))
    assert not report.errors
    assert not report.warnings
    assert unsupported_fields(mesh(GOOD)) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("profile", "CENTER"),
        ("listenerPerConnectionBufferLimitBytes", -1),
        ("clusterPerConnectionBufferLimitBytes", 2**31),
        ("httpIdleTimeout", "-1s"),
        ("httpMaxConnectionDuration", "0s"),
        ("httpDrainTimeout", "soon"),
        ("httpRequestTimeout", "1us"),
        ("httpRequestHeadersTimeout", 5),
        ("httpStreamIdleTimeout", "1.0001s"),
        ("httpMaxStreamDuration", "-1ms"),
        ("httpMaxConcurrentStreams", 0),
        ("http2InitialStreamWindowSize", 65534),
        ("http2InitialConnectionWindowSize", 2**31),
        ("httpHeadersWithUnderscoresAction", "REJECT_REQUEST"),
        ("httpMergeSlashes", "yes"),
        ("httpPathWithEscapedSlashesAction", "UNESCAPE"),
        ("listenerConnectionLimit", 0),
        ("globalDownstreamConnectionLimit", 0),
        ("httpMaxConnections", 5),
    ],
)
def test_what_is_wrong_is_said_with_its_path(field: str, value: object) -> None:
    (error,) = validate_object(mesh({field: value})).errors
    assert error.path == f"{AT}.{field}"


def test_the_annotation_of_a_workload_has_the_same_rules() -> None:
    own = "connectionSettings: {profile: EDGE, http_idle_timeout: -1s}"
    report = validate_object(
        {
            "apiVersion": "standalone.meshbus.io/v1alpha1",
            "kind": "Workload",
            "metadata": {"name": "w", "annotations": {"proxy.istio.io/config": own}},
            "spec": {"command": ["true"]},
        }
    )
    (error,) = report.errors
    at = "metadata.annotations[proxy.istio.io/config].connectionSettings"
    assert error.path in (f"{at}.http_idle_timeout", f"{at}.httpIdleTimeout")
    assert not report.warnings
