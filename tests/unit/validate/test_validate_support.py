"""What is valid and not carried out is named by its path."""

from typing import Any

import pytest

from meshbus.validate import validate_object
from meshbus.validate.support import silent_fields_of, unsupported_fields


def istio(
    kind: str, spec: dict[str, Any], version: str = "networking.istio.io/v1"
) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": "a", "namespace": "default"},
        "spec": spec,
    }


def mesh(spec: dict[str, Any]) -> dict[str, Any]:
    document = istio("MeshConfig", spec, "mesh.istio.io/v1alpha1")
    return document | {"metadata": {"name": "mesh"}}


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
            [],
        ),
        (istio("Sidecar", {"egress": [{"hosts": ["./*"]}]}), []),
        (
            istio(
                "Sidecar",
                {
                    "egress": [{"hosts": ["./*"]}],
                    "outboundTrafficPolicy": {"mode": "ALLOW_ANY", "tls": {"mode": "SIMPLE"}},
                },
            ),
            ["spec.outboundTrafficPolicy.tls"],
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
        (istio("WorkloadGroup", {"template": {"serviceAccount": "a"}}), []),
        (
            mesh(
                {
                    "accessLogFile": "/dev/stdout",
                    "extensionProviders": [
                        {"name": "z", "zipkin": {"service": "a", "port": 1}},
                        {"name": "l", "envoyFileAccessLog": {}},
                    ],
                    "defaultProviders": {
                        "accessLogging": ["envoy", "l", "z"],
                        "metrics": ["prometheus"],
                        "tracing": ["z", "none"],
                    },
                    "outboundTrafficPolicy": {
                        "tls": {"mode": "ISTIO_MUTUAL", "credentialName": "c"}
                    },
                }
            ),
            [
                "spec.outboundTrafficPolicy.tls.credentialName",
                "spec.extensionProviders[0].zipkin",
                "spec.defaultProviders.accessLogging[2]",
                "spec.defaultProviders.tracing[0]",
                "spec.defaultProviders.tracing[1]",
                "spec.outboundTrafficPolicy.tls.mode",
            ],
        ),
        (
            mesh({"defaultConfig": {"proxyHeaders": {"attemptCount": {"disabled": True}}}}),
            [],
        ),
        (mesh({"enablePrometheusMerge": True, "defaultConfig": {"discoveryAddress": "a:1"}}), []),
        (
            istio("handler", {"compiledAdapter": "prometheus"}, "config.istio.io/v1alpha2"),
            ["spec.compiledAdapter"],
        ),
    ],
)
def test_paths(document: dict[str, Any], paths: list[str]) -> None:
    assert [v.path for v in unsupported_fields(document)] == paths
    assert validate_object(document).valid


def test_what_says_nothing_here_is_told_and_not_refused() -> None:
    document = mesh({"authPolicy": "MUTUAL_TLS", "defaultConfig": {"discoveryAddress": "a:1"}})
    found = {v.path: v.message for v in silent_fields_of(document)}
    assert set(found) == {"spec.authPolicy", "spec.defaultConfig.discoveryAddress"}
    assert silent_fields_of(mesh({"accessLogFile": "/dev/stdout"})) == []


def test_authorities_and_certificates_of_the_mesh_config_are_refused_with_the_way_to_have_them():
    spec = {"ca": {"address": "ca.example:443"}, "certificates": [{"secretName": "dns"}]}
    document = {
        "apiVersion": "mesh.istio.io/v1alpha1",
        "kind": "MeshConfig",
        "metadata": {"name": "mesh"},
        "spec": spec,
    }
    found = {v.path: v.message for v in unsupported_fields(document)}
    assert "MESHBUS_CA_SIGNER" in found["spec.ca"]
    assert "from the ca" in found["spec.certificates"]


def test_a_sidecar_cannot_ask_for_names_as_they_are_met() -> None:
    policy = {"mode": "ALLOW_ANY_DYNAMIC_DNS"}
    report = validate_object(istio("Sidecar", {"outboundTrafficPolicy": policy}))
    assert [v.path for v in report.errors] == ["spec.outboundTrafficPolicy.mode"]
