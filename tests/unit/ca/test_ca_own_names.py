"""DNS names of services: those of their Kubernetes Services, of any revision, of nobody else."""

import pytest
from meshbus_ca.grants import is_own_dns_name


@pytest.mark.parametrize(
    ("name", "service", "own"),
    [
        ("localhost", "config", True),
        ("xds-gateway.istio-system.svc", "xds-gateway", True),
        ("xds-gateway-blue.istio-system.svc", "xds-gateway", True),
        ("meshbus-config.istio-system.svc.cluster.local", "config", True),
        ("meshbus-config-blue.istio-system", "config", True),
        ("meshbus-all.istio-system.svc", "config", True),
        ("meshbus-all.istio-system.svc", "ca", False),
        ("meshbus-config.istio-system.svc", "xds-gateway", False),
        ("xds-gateway.istio-system.svc", "policy", False),
        ("xds-gateway.default.svc", "xds-gateway", False),
        ("xds-gatewayx.istio-system.svc", "xds-gateway", False),
        ("xds-gateway-.istio-system.svc", "xds-gateway", False),
        ("xds-gateway-a.b.istio-system.svc", "xds-gateway", False),
        ("*.istio-system.svc", "xds-gateway", False),
        ("xds-gateway.istio-system.svc.example.com", "xds-gateway", False),
        ("istio-system.svc", "xds-gateway", False),
    ],
)
def test_names(name: str, service: str, own: bool) -> None:
    assert is_own_dns_name(name, service, "istio-system") is own
