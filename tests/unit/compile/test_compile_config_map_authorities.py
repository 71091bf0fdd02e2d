"""Authorities from a ConfigMap: of gateways for clients, of destination rules for servers."""

from typing import Any

import pytest
from meshes import CLUSTER, Rendered, Rows, config, router, rows, service, sidecar

from meshbus.compile.credential_names import CONFIG_MAPS
from meshbus.compile.credentials import authorities_in
from meshbus.model.keys import Key

BANK = service("bank", ("http", 80, "HTTP"), host="bank.example", external=True, resolution="DNS")
NAMED = "configmap://default/trust"
CLUSTER_NAME = "outbound|80||bank.example"


def config_map(name: str = "trust", namespace: str = "default", **data: str) -> Rows:
    return config("ConfigMap", name, {"data": data}, namespace)


def secret(name: str) -> Rows:
    return config("Secret", name, {}, "istio-system")


TRUST = config_map(**{"ca.crt": "roots"})


def rule(tls: dict[str, Any], **more: Any) -> Rows:
    spec = {"host": "bank.example", "trafficPolicy": {"tls": tls}, **more}
    return config("DestinationRule", "bank", spec)


def edge(**tls: Any) -> Rows:
    server = {
        "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
        "hosts": ["*"],
        "tls": {"mode": "MUTUAL", "credentialName": "edge", **tls},
    }
    spec = {"selector": {"istio": "ingressgateway"}, "servers": [server]}
    return rows(config("Gateway", "edge", spec), secret("edge"))


def validation(tls: dict[str, Any]) -> str:
    context = tls["commonTlsContext"]["combinedValidationContext"]
    found: str = context["validationContextSdsSecretConfig"]["name"]
    return found


def needs(found: Rendered) -> dict[str, Key]:
    return {n.name: n.key for n in found.snapshot.secrets if n.key is not None}


@pytest.mark.parametrize("proxy", [sidecar("web"), router(namespace="default")])
def test_servers_are_checked_with_the_authorities_of_a_config_map(proxy: Any) -> None:
    found = Rendered(rows(BANK, TRUST, rule({"mode": "SIMPLE", "credentialName": NAMED})), proxy)
    tls = found.clusters[CLUSTER_NAME]["transportSocket"]["typedConfig"]
    assert validation(tls) == f"{NAMED}-cacert"
    (need,) = [n for n in found.snapshot.secrets if n.key is not None]
    assert (need.name, need.part) == (f"{NAMED}-cacert", "ca")
    assert need.key == Key(CLUSTER, "cfg", CONFIG_MAPS, "default", "trust")
    assert not found.snapshot.findings


def test_clients_are_checked_with_the_authorities_of_a_config_map() -> None:
    elsewhere = config_map("clients", "shop", cacert="roots")
    named = "configmap://shop/clients"
    found = Rendered(rows(edge(caCertCredentialName=named), elsewhere), router())
    (listener,) = found.listeners.values()
    (chain,) = listener["filterChains"]
    assert validation(chain["transportSocket"]["typedConfig"]) == named
    assert needs(found)[named].kind == CONFIG_MAPS
    assert not found.snapshot.findings


@pytest.mark.parametrize(
    ("tls", "found", "path", "message"),
    [
        (
            {"mode": "SIMPLE", "credentialName": NAMED},
            {},
            "credentialName",
            "ConfigMap default/trust does not exist",
        ),
        (
            {"mode": "SIMPLE", "credentialName": NAMED},
            config_map(other="x"),
            "credentialName",
            "has neither ca.crt nor cacert",
        ),
        (
            {"mode": "SIMPLE", "credentialName": "configmap://trust"},
            TRUST,
            "credentialName",
            "is not configmap://NAMESPACE/NAME",
        ),
        ({"mode": "MUTUAL", "credentialName": NAMED}, TRUST, "credentialName", "no certificate"),
    ],
)
def test_what_a_rule_cannot_have_is_told(
    tls: dict[str, Any], found: Rows, path: str, message: str
) -> None:
    for proxy in (sidecar("web"), router(namespace="default")):
        findings = Rendered(rows(BANK, found, rule(tls)), proxy).snapshot.findings
        (finding,) = {f for f in findings if f.object.kind == "destinationrules"}
        assert finding.path == f"spec.trafficPolicy.tls.{path}"
        assert message in finding.message


@pytest.mark.parametrize(
    ("tls", "there", "field", "message"),
    [
        ({"caCertCredentialName": NAMED}, {}, "caCertCredentialName", "does not exist"),
        ({"credentialName": NAMED}, TRUST, "credentialName", "no certificate"),
    ],
)
def test_what_a_gateway_cannot_have_is_told(
    tls: dict[str, Any], there: Rows, field: str, message: str
) -> None:
    found = Rendered(rows(edge(**tls), there), router())
    assert not found.listeners
    (finding,) = found.snapshot.findings
    assert finding.path == f"spec.servers[0].tls.{field}"
    assert message in finding.message


@pytest.mark.parametrize("name", ["clients", "clients-cacert"])
def test_a_secret_for_roots_may_have_the_suffix(name: str) -> None:
    mesh = rows(edge(caCertCredentialName="clients-cacert"), secret(name))
    assert needs(Rendered(mesh, router()))["kubernetes://clients-cacert"].name == name


def test_only_authorities_are_taken() -> None:
    data = {"ca.crt": "a", "ca.crl": "b", "tls.key": "c", "other": "d"}
    assert authorities_in({"data": data}) == {"ca.crt": b"a", "ca.crl": b"b"}
    assert authorities_in({"data": {"ca.crl": "b"}}) == {}
    assert authorities_in({}) == {}
