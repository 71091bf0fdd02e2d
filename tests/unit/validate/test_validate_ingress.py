"""Ingress: what Kubernetes takes, and what it refuses."""

from typing import Any

import pytest

from meshbus.validate import validate_object

BACKEND = {"service": {"name": "web", "port": {"number": 80}}}


def ingress(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": "site", "namespace": "default"},
        "spec": spec,
    }


def rule(host: str = "a.com", **path: Any) -> dict[str, Any]:
    item = {"path": "/", "pathType": "Prefix", "backend": BACKEND, **path}
    return {"host": host, "http": {"paths": [item]}}


@pytest.mark.parametrize(
    ("spec", "paths"),
    [
        ({"rules": [rule()]}, []),
        ({"defaultBackend": BACKEND}, []),
        ({"rules": [rule("*.a.com", path="", pathType="ImplementationSpecific")]}, []),
        ({"rules": [{"host": "a.com"}]}, []),
        ({}, ["spec"]),
        ({"rules": [rule("10.0.0.1")]}, ["spec.rules[0].host"]),
        ({"rules": [rule("A.com")]}, ["spec.rules[0].host"]),
        ({"rules": [rule("a.*.com")]}, ["spec.rules[0].host"]),
        ({"rules": [rule(path="a")]}, ["spec.rules[0].http.paths[0].path"]),
        ({"rules": [rule(path="/a//b")]}, ["spec.rules[0].http.paths[0].path"]),
        ({"rules": [rule(pathType="Best")]}, ["spec.rules[0].http.paths[0].pathType"]),
        ({"rules": [rule(backend={})]}, ["spec.rules[0].http.paths[0].backend"]),
        (
            {"rules": [rule(backend={"service": {"name": "web"}})]},
            ["spec.rules[0].http.paths[0].backend.service.port"],
        ),
        (
            {"defaultBackend": {"service": {"name": "web", "port": {"number": 0}}}},
            ["spec.defaultBackend.service.port.number"],
        ),
        ({"rules": [rule()], "tls": [{"hosts": ["1.2.3.4"]}]}, ["spec.tls[0].hosts[0]"]),
    ],
)
def test_verdicts(spec: dict[str, Any], paths: list[str]) -> None:
    assert [v.path for v in validate_object(ingress(spec)).errors] == paths
