"""The annotation `proxy.istio.io/config` of what runs without a pod."""

from typing import Any

import pytest

from meshbus.validate import validate_object
from meshbus.validate.support import unsupported_fields

PATH = "metadata.annotations[proxy.istio.io/config]"


def workload(text: str) -> dict[str, Any]:
    return {
        "apiVersion": "standalone.meshbus.io/v1alpha1",
        "kind": "Workload",
        "metadata": {"name": "a", "annotations": {"proxy.istio.io/config": text}},
        "spec": {"command": ["a"]},
    }


def entry(text: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": "a", "annotations": {"proxy.istio.io/config": text}},
        "spec": {"address": "10.0.0.1"},
    }


@pytest.mark.parametrize("make", [workload, entry])
@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("proxyHeaders: {server: {value: a}}", []),
        ("gateway_topology: {num_trusted_proxies: 2}", []),
        ("", []),
        ("proxyHeader: {}", [f"{PATH}.proxyHeader"]),
        ("proxyHeaders: {server: true}", [f"{PATH}.proxyHeaders.server"]),
        ("proxyHeaders: {forwardedClientCert: NO}", [f"{PATH}.proxyHeaders.forwardedClientCert"]),
        ("concurrency: many", [f"{PATH}.concurrency"]),
        ("drainDuration: 1.5s", [f"{PATH}.drainDuration"]),
        ("- a", [PATH]),
        ("{", [PATH]),
    ],
)
def test_what_cannot_be_read_is_refused(make: Any, text: str, paths: list[str]) -> None:
    report = validate_object(make(text))
    assert [v.path for v in report.errors] == paths


def test_what_is_for_pods_is_told() -> None:
    document = workload("image: {imageType: debug}\nconcurrency: 2\ndiscoveryAddress: a:1\n")
    assert validate_object(document).valid
    assert [(v.path, v.message.split()[0]) for v in unsupported_fields(document)] == [
        (PATH, "image")
    ]


def test_an_image_is_for_pods_alone() -> None:
    document = {
        "apiVersion": "networking.istio.io/v1beta1",
        "kind": "ProxyConfig",
        "metadata": {"name": "a"},
        "spec": {"concurrency": 2, "image": {"imageType": "debug"}},
    }
    assert [v.path for v in unsupported_fields(document)] == ["spec.image"]
    assert unsupported_fields(document, injects=True) == []
