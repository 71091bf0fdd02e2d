"""Mesh-wide TLS settings, and Secrets of destination rules and of other namespaces."""

from typing import Any

import pytest
from meshes import (
    Rendered,
    Rows,
    config,
    endpoints,
    host,
    mesh_config,
    router,
    rows,
    service,
    sidecar,
)

from meshbus.model.rows import Endpoint

WEB = rows(
    service("web", ("http", 80, "HTTP"), addresses=["10.96.0.1"]),
    endpoints("web", "10.0.0.1", ports={"http": 80}),
)
BANK = service(
    "bank",
    ("http", 80, "HTTP"),
    host="bank.example",
    external=True,
    resolution="DNS",
    dns_endpoints=[Endpoint(addresses=["bank.example"], ports={"http": 443})],
)


def secret(name: str, namespace: str = "default") -> Rows:
    return config("Secret", name, {}, namespace)


def rule(tls: dict[str, Any], host: str = "bank.example", **spec: Any) -> Rows:
    return config("DestinationRule", "bank", {"host": host, "trafficPolicy": {"tls": tls}, **spec})


def inbound_tls(found: Rendered) -> dict[str, Any]:
    """The server's side of mutual TLS."""
    chains = found.listeners["virtualInbound"]["filterChains"]
    (context,) = {
        repr(c["transportSocket"]["typedConfig"]): c["transportSocket"]["typedConfig"]
        for c in chains
        if "transportSocket" in c
    }.values()
    return dict(context["commonTlsContext"])


def client_tls(found: Rendered, cluster: str) -> dict[str, Any]:
    context = found.clusters[cluster]["transportSocket"]["typedConfig"]
    return dict(context["commonTlsContext"])


def test_callers_of_other_trust_domains_are_refused_but_for_aliases_and_federated_ones() -> None:
    accepted = mesh_config(
        trustDomain="new.example",
        trustDomainAliases=["old.example"],
        caCertificates=[{"pem": "x", "trustDomains": ["partner.example"]}],
    )
    tls = inbound_tls(Rendered(rows(WEB, accepted), sidecar("web")))
    validation = tls["combinedValidationContext"]["defaultValidationContext"]
    assert [s["matcher"]["prefix"] for s in validation["matchTypedSubjectAltNames"]] == [
        "spiffe://new.example/",
        "spiffe://old.example/",
        "spiffe://partner.example/",
    ]


def test_servers_may_have_certificates_of_an_alias() -> None:
    accepted = mesh_config(trustDomain="new.example", trustDomainAliases=["old.example"])
    found = Rendered(rows(WEB, accepted), sidecar("client"))
    (match, _) = found.clusters[f"outbound|80||{host('web')}"]["transportSocketMatches"]
    common = match["transportSocket"]["typedConfig"]["commonTlsContext"]
    sans = common["combinedValidationContext"]["defaultValidationContext"]
    assert [s["matcher"]["exact"] for s in sans["matchTypedSubjectAltNames"]] == [
        "spiffe://new.example/ns/default/sa/web",
        "spiffe://old.example/ns/default/sa/web",
    ]


def test_mesh_mtls_limits_servers() -> None:
    limits = {"minProtocolVersion": "TLSV1_3", "cipherSuites": ["AES128-SHA", "NONSENSE"]}
    tls = inbound_tls(Rendered(rows(WEB, mesh_config(meshMTLS=limits)), sidecar("web")))
    assert tls["tlsParams"] == {
        "tlsMinimumProtocolVersion": "TLSv1_3",
        "tlsMaximumProtocolVersion": "TLSv1_3",
        "cipherSuites": ["AES128-SHA"],
    }
    weak = inbound_tls(Rendered(WEB, sidecar("web")))["tlsParams"]
    assert weak["tlsMinimumProtocolVersion"] == "TLSv1_2"
    assert "AES128-SHA" not in weak["cipherSuites"]


def test_tls_defaults_hold_towards_others_and_not_in_the_mesh() -> None:
    limits = mesh_config(
        tlsDefaults={
            "minProtocolVersion": "TLSV1_3",
            "ecdhCurves": ["P-384", "CECPQ2"],
            "cipherSuites": ["AES128-SHA"],
        }
    )
    found = Rendered(rows(WEB, BANK, rule({"mode": "SIMPLE"}), limits), sidecar("web"))
    assert client_tls(found, "outbound|80||bank.example")["tlsParams"] == {
        "tlsMinimumProtocolVersion": "TLSv1_3",
        "tlsMaximumProtocolVersion": "TLSv1_3",
        "cipherSuites": ["AES128-SHA"],
        "ecdhCurves": ["P-384"],
    }
    assert "ecdhCurves" not in inbound_tls(found)["tlsParams"]


def test_a_secret_of_a_rule_is_asked_for_by_gateways() -> None:
    tls = {"mode": "MUTUAL", "credentialName": "client"}
    found = Rendered(rows(BANK, rule(tls), secret("client")), router(namespace="default"))
    assert {"kubernetes://client", "kubernetes://client-cacert"} <= set(found.secrets)
    common = client_tls(found, "outbound|80||bank.example")
    (certificate,) = common["tlsCertificateSdsSecretConfigs"]
    assert certificate["name"] == "kubernetes://client"
    # What is missing must not keep the proxy from starting.
    assert certificate["sdsConfig"]["initialFetchTimeout"] == "5s"


def test_a_secret_of_a_rule_is_for_sidecars_that_it_selects() -> None:
    tls = {"mode": "SIMPLE", "credentialName": "client"}
    selector = {"workloadSelector": {"matchLabels": {"app": "web"}}}
    chosen = rows(WEB, BANK, rule(tls, **selector), secret("client"))
    found = Rendered(chosen, sidecar("web"))
    assert "kubernetes://client-cacert" in found.secrets
    assert "kubernetes://client" not in found.secrets
    for mesh, proxy in ((chosen, sidecar("other")), (rows(WEB, BANK, rule(tls)), sidecar("web"))):
        found = Rendered(mesh, proxy)
        assert found.secrets == ["ROOTCA", "default"]
        assert "transportSocket" not in found.clusters["outbound|80||bank.example"]


def test_a_missing_secret_of_a_rule_is_told() -> None:
    found = Rendered(
        rows(BANK, rule({"mode": "SIMPLE", "credentialName": "gone"})), router(namespace="default")
    )
    (finding,) = found.snapshot.findings
    assert finding.path == "spec.trafficPolicy.tls.credentialName"
    assert "default/gone does not exist" in finding.message


def edge(credential: str, namespace: str = "default") -> Rows:
    server = {
        "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
        "hosts": ["*"],
        "tls": {"mode": "SIMPLE", "credentialName": credential},
    }
    spec = {"selector": {"istio": "ingressgateway"}, "servers": [server]}
    return config("Gateway", "edge", spec, namespace)


def grant(namespace: str, kind: str = "Gateway", name: str = "", source: str = "default") -> Rows:
    to = {"group": "", "kind": "Secret", **({"name": name} if name else {})}
    who = {"group": "networking.istio.io", "kind": kind, "namespace": source}
    return config("ReferenceGrant", "grant", {"from": [who], "to": [to]}, namespace)


@pytest.mark.parametrize(
    ("written", "granted", "allowed"),
    [
        ("own", {}, True),
        ("kubernetes://own", {}, True),
        ("default/theirs", {}, True),  # the Gateway's own namespace
        ("shop/cert", {}, False),
        ("shop/cert", grant("shop"), True),
        ("kubernetes-gateway://shop/cert", grant("shop", name="cert"), True),
        ("shop/cert", grant("shop", name="other"), False),
        ("shop/cert", grant("shop", kind="HTTPRoute"), False),
        ("shop/cert", grant("shop", source="elsewhere"), False),
        ("shop/cert", grant("other"), False),
        ("configmap://shop/cert", grant("shop"), False),
        ("shop/deep/cert", grant("shop"), False),
    ],
)
def test_secrets_of_other_namespaces_are_used_where_that_is_granted(
    written: str, granted: Rows, allowed: bool
) -> None:
    secrets = rows(
        secret("own", "istio-system"), secret("theirs"), secret("cert", "shop"), secret("cert")
    )
    found = Rendered(rows(secrets, edge(written), granted), router())
    assert bool(found.listeners) == allowed
    assert bool(found.snapshot.findings) != allowed
    keys = [(n.key.namespace, n.key.name) for n in found.snapshot.secrets if n.key]
    assert len(keys) == allowed


def test_mutual_tls_of_the_mesh_at_a_gateway_for_certain_callers() -> None:
    server = {
        "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
        "hosts": ["*"],
        "tls": {"mode": "ISTIO_MUTUAL", "subjectAltNames": ["spiffe://cluster.local/ns/a/sa/b"]},
    }
    spec = {"selector": {"istio": "ingressgateway"}, "servers": [server]}
    found = Rendered(config("Gateway", "edge", spec), router())
    (listener,) = found.listeners.values()
    context = listener["filterChains"][0]["transportSocket"]["typedConfig"]
    validation = context["commonTlsContext"]["combinedValidationContext"]
    (san,) = validation["defaultValidationContext"]["matchTypedSubjectAltNames"]
    assert san == {"sanType": "URI", "matcher": {"exact": "spiffe://cluster.local/ns/a/sa/b"}}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("spiffe://x/y", "URI"),
        ("10.0.0.1", "IP_ADDRESS"),
        ("::1", "IP_ADDRESS"),
        ("a@example.com", "EMAIL"),
        ("a.example.com", "DNS"),
    ],
)
def test_names_of_servers_are_of_their_kind(name: str, kind: str) -> None:
    tls = {"mode": "SIMPLE", "caCertificates": "/ca.pem", "subjectAltNames": [name]}
    found = Rendered(rows(WEB, BANK, rule(tls)), sidecar("web"))
    validation = client_tls(found, "outbound|80||bank.example")["validationContext"]
    (san,) = validation["matchTypedSubjectAltNames"]
    assert san == {"sanType": kind, "matcher": {"exact": name}}
