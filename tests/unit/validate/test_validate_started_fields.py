"""Fields of ProxyConfig that proxies start with: what is warned of, and what cannot be had."""

from typing import Any

import pytest

from meshbus.validate import validate_object
from meshbus.validate.support import unsupported_fields


def mesh(**config: Any) -> dict[str, Any]:
    return {
        "apiVersion": "mesh.istio.io/v1alpha1",
        "kind": "MeshConfig",
        "metadata": {"name": "mesh"},
        "spec": {"defaultConfig": config},
    }


@pytest.mark.parametrize(("length", "warned"), [("60s", False), ("7s", True), ("0s", True)])
def test_statistics_go_at_a_report(length: str, warned: bool) -> None:
    report = validate_object(mesh(statsEvictionInterval=length))
    assert not report.errors
    paths = [warning.path for warning in report.warnings]
    assert ("spec.defaultConfig.statsEvictionInterval" in paths) is warned


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("privateKeyProvider", {"cryptomb": {"pollDelay": "1ms"}}, "contrib"),
        ("proxyBootstrapTemplatePath", "/etc/mine.tmpl", "customConfigFile"),
        ("zipkinAddress", "zipkin:9411", "tracing.zipkin"),
    ],
)
def test_what_cannot_be_had_says_why(field: str, value: Any, reason: str) -> None:
    (found,) = unsupported_fields(mesh(**{field: value}))
    assert found.path == f"spec.defaultConfig.{field}"
    assert reason in found.message


def test_authorities_of_all_proxies() -> None:
    document = mesh(caCertificatesPem=["-----BEGIN CERTIFICATE-----\n", "none"])
    assert unsupported_fields(document) == []
    paths = [warning.path for warning in validate_object(document).warnings]
    assert paths == ["spec.defaultConfig.caCertificatesPem[1]"]


def test_what_proxies_start_with_is_carried_out() -> None:
    service = {"address": "metrics:15000"}
    document = mesh(
        statsdUdpAddress="statsd.obs:8125",
        envoyMetricsService=service,
        extraStatTags=["color"],
        fileFlushInterval="2s",
        fileFlushMinSizeKb=8,
        statsCompression=False,
        terminationDrainDuration="9s",
        readinessProbe={"httpGet": {"port": 80}},
        customConfigFile="/etc/mine.json",
    )
    assert unsupported_fields(document) == []
