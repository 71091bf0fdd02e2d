"""Active health checks, by an annotation of a DestinationRule."""

from typing import Any

import pytest
from meshes import Rendered, Rows, config, host, rows, service, sidecar

from meshbus.api.health_check import HEALTH_CHECK
from meshbus.validate import validate_object


def rule(text: str, **spec: Any) -> Rows:
    made = config("DestinationRule", "web", {"host": "web", **spec})
    ((key, row),) = made.items()
    row.annotations[HEALTH_CHECK] = text  # type: ignore[union-attr]
    return {key: row}


def checks_of(text: str, **fields: Any) -> tuple[list[dict[str, Any]], Rendered]:
    mesh = rows(service("web", ("http", 80, "HTTP"), addresses=["10.0.0.1"], **fields), rule(text))
    found = Rendered(mesh, sidecar("a"))
    return found.clusters[f"outbound|80||{host('web')}"].get("healthChecks", []), found


def test_proxies_ask_each_endpoint() -> None:
    (check,), _ = checks_of('{"path": "/healthz", "interval": "5s", "unhealthyThreshold": 2}')
    assert check["httpHealthCheck"] == {"path": "/healthz"}
    assert (check["interval"], check["timeout"]) == ("5s", "1s")
    assert (check["unhealthyThreshold"], check["healthyThreshold"]) == (2, 1)
    (check,), _ = checks_of('{"grpc": "shop.Cart"}')
    assert check["grpcHealthCheck"] == {"serviceName": "shop.Cart"}
    (check,), _ = checks_of('{"tcp": true}')
    assert "tcpHealthCheck" in check


def test_what_is_no_health_check_is_told_and_harms_nothing() -> None:
    checks, found = checks_of("nonsense")
    assert checks == []
    assert any(HEALTH_CHECK in finding.path for finding in found.snapshot.findings)
    checks, found = checks_of('{"path": "/"}', headless=True)
    assert checks == []
    assert any("not known beforehand" in finding.message for finding in found.snapshot.findings)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"path": "/a"}', True),
        ('{"grpc": ""}', True),
        ('{"tcp": true, "interval": "2s"}', True),
        ("{}", False),
        ('{"path": "a"}', False),
        ('{"path": "/a", "tcp": true}', False),
        ('{"path": "/a", "interval": "soon"}', False),
        ('{"path": "/a", "unhealthyThreshold": 0}', False),
        ("[]", False),
    ],
)
def test_it_is_validated(text: str, right: bool) -> None:
    metadata = {"name": "web", "annotations": {HEALTH_CHECK: text}}
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": metadata,
        "spec": {"host": "web"},
    }
    assert validate_object(document).valid is right
