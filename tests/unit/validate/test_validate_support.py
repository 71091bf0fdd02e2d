"""What is valid and not carried out is named by its path."""

from typing import Any

import pytest

from meshbus.validate import validate_object
from meshbus.validate.support import unsupported_fields


def istio(
    kind: str, spec: dict[str, Any], version: str = "networking.istio.io/v1"
) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": "a", "namespace": "default"},
        "spec": spec,
    }


@pytest.mark.parametrize(
    ("document", "paths"),
    [
        (
            istio(
                "VirtualService",
                {"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}}]}]},
            ),
            [],
        ),
        (
            istio("VirtualService", {"hosts": ["a"], "http": [{"delegate": {"name": "b"}}]}),
            [],
        ),
        (
            istio(
                "VirtualService",
                {
                    "hosts": ["a"],
                    "gateways": ["g"],
                    "http": [
                        {"route": [{"destination": {"host": "a"}}]},
                        {
                            "match": [{"headers": {"@request.auth.claims.sub": {"exact": "x"}}}],
                            "route": [{"destination": {"host": "a"}}],
                        },
                    ],
                },
            ),
            [],
        ),
        (
            istio(
                "DestinationRule",
                {
                    "host": "a",
                    "subsets": [
                        {
                            "name": "v1",
                            "trafficPolicy": {
                                "loadBalancer": {
                                    "simple": "RANDOM",
                                    "zoneAwareLbSetting": {"enabled": True},
                                }
                            },
                        }
                    ],
                },
            ),
            ["spec.subsets[0].trafficPolicy.loadBalancer.zoneAwareLbSetting"],
        ),
        (istio("Sidecar", {"egress": [{"hosts": ["./*"]}]}), []),
        (
            istio(
                "Sidecar",
                {
                    "egress": [{"hosts": ["./*"]}],
                    "outboundTrafficPolicy": {"mode": "ALLOW_ANY_DYNAMIC_DNS"},
                },
            ),
            ["spec.outboundTrafficPolicy.mode"],
        ),
        (
            istio(
                "RequestAuthentication",
                {"jwtRules": [{"issuer": "a", "jwksUri": "https://a/jwks"}, {"issuer": "b"}]},
                "security.istio.io/v1",
            ),
            [],
        ),
        (istio("EnvoyFilter", {"configPatches": []}, "networking.istio.io/v1alpha3"), []),
        (istio("WorkloadGroup", {"template": {"serviceAccount": "a"}}), ["kind"]),
        (
            istio("MeshConfig", {"accessLogFile": "/dev/stdout"}, "mesh.istio.io/v1alpha1")
            | {"metadata": {"name": "mesh"}},
            ["spec.accessLogFile"],
        ),
        (
            istio("handler", {"compiledAdapter": "prometheus"}, "config.istio.io/v1alpha2"),
            ["spec.compiledAdapter"],
        ),
    ],
)
def test_paths(document: dict[str, Any], paths: list[str]) -> None:
    assert [v.path for v in unsupported_fields(document)] == paths
    assert validate_object(document).valid
