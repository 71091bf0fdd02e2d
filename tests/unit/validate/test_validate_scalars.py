"""Small tables of a peer's tests — names, hosts, labels, values of fields — through our functions,
and through whole objects where a function stands for a rule of one.

The tables are data of others and not part of the repository: `MESHBUS_SHARED_DATA` names them.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshbus.api.selectors import matches_selector
from meshbus.compile.authorization_matchers import path_permission, service_account
from meshbus.compile.authorization_rules import migrated
from meshbus.compile.names import covers, fqdn, most_specific, narrower, service_domains, spiffe
from meshbus.compile.offline import compile_documents
from meshbus.compile.rbac_decision import text_matches
from meshbus.compile.registry.protocols import protocol_of_port
from meshbus.inject.annotations import check_annotations
from meshbus.inject.errors import InjectionError
from meshbus.mixer.workloads import Peer
from meshbus.validate import validate_object
from meshbus.validate.names import (
    gateway_domain_problem,
    host_is_subset,
    host_matches,
    label_key_problem,
    label_value_problem,
    protocol_is_known,
    wildcard_domain_problem,
)

DATA = Path(os.environ.get("MESHBUS_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
TABLES = DATA / "tables" / "scalars.json"

pytestmark = pytest.mark.skipif(not TABLES.is_file(), reason=f"no tables at {TABLES}")


def value(of: Any) -> Any:
    """What a table's expression stands for."""
    if isinstance(of, dict) and of.get("$call") == "strings.Repeat":
        text, times = of["args"]
        return text * times
    if isinstance(of, dict) and "$type" in of:
        return of.get("$pos") or {k: v for k, v in of.items() if k != "$type"}
    return of


def rows(test: str) -> list[dict[str, Any]]:
    tables = json.loads(TABLES.read_text())
    (name,) = [n for n in tables if n.endswith(f"::{test}")]
    return [{k: value(v) for k, v in row.items()} for row in tables[name]]


def judged(kind: str, spec: dict[str, Any], path: str, **metadata: Any) -> bool:
    """Whether an object is free of errors at a path of its spec."""
    group = "security" if kind.endswith(("Policy", "Authentication")) else "networking"
    version = "v1alpha1" if kind == "MeshConfig" else "v1"
    group = "mesh" if kind == "MeshConfig" else group
    report = validate_object(
        {
            "apiVersion": "mesh.istio.io/v1alpha1"
            if kind == "MeshConfig"
            else f"{group}.istio.io/{version}",
            "kind": kind,
            "metadata": {"name": "a", "namespace": "ns5", **metadata},
            "spec": spec,
        }
    )
    at = f"spec.{path}"
    return not any(e.path.startswith(at) or at.startswith(f"{e.path}.") for e in report.errors)


def ok(row: dict[str, Any]) -> bool:
    """What a row wants, in any of the ways they say it."""
    for name in ("valid", "ok", "isValid"):
        if name in row:
            return bool(row[name])
    if isinstance(held := row.get("expected"), dict) and "Hostname" in held:
        return True
    if row.get("expectedError"):
        return False
    if isinstance(row.get("expected"), bool):
        return bool(row["expected"])
    for name in ("err", "out", "expected"):
        if name in row:
            return not row[name]
    return not (row.get("wantError") or row.get("wantErr"))


ACTION = {"route": [{"destination": {"host": "a"}}]}


def virtual_service(row: dict[str, Any]) -> dict[str, Any]:
    return {"hosts": ["a.example"], "http": [{"match": [{"headers": row}], **ACTION}]}


def condition(row: dict[str, Any]) -> dict[str, Any]:
    return {"rules": [{"when": [{"key": row["key"], "values": row["values"]}]}]}


def claim_header(name: str) -> dict[str, Any]:
    return {"jwtRules": [{"issuer": "a", "outputClaimToHeaders": [{"header": name, "claim": "b"}]}]}


def distribute(localities: list[str]) -> dict[str, Any]:
    split = [{"from": one, "to": {"x/y/z": 100}} for one in localities]
    return {"host": "a", "trafficPolicy": {"loadBalancer": {
        "simple": "ROUND_ROBIN", "localityLbSetting": {"distribute": split},
    }}}  # fmt: skip


def port(name: str) -> dict[str, Any]:
    number = {"number": 80, "protocol": "HTTP", "name": name}
    return {"hosts": ["a.example"], "ports": [number], "resolution": "DNS"}


def retry(duration: dict[str, int]) -> dict[str, Any]:
    nanos = duration.get("Seconds", 0) * 10**9 + duration.get("Nanos", 0)
    sign, nanos = ("-" if nanos < 0 else ""), abs(nanos)
    text = f"{sign}{nanos // 10**9}.{nanos % 10**9:09}s"
    return {"hosts": ["a.example"], "http": [{**ACTION, "timeout": text}]}


def exported(row: dict[str, Any]) -> bool:
    spec = {"exportTo": row["exportTo"]} if "exportTo" in row else {}
    if row.get("isServiceEntry"):
        kind, rest = "ServiceEntry", port("http")
    else:
        kind, rest = "DestinationRule", {"host": "a"}
        if row.get("isDestinationRuleWithSelector"):
            rest["workloadSelector"] = {"matchLabels": {"a": "b"}}
    return judged(kind, {**rest, **spec}, "exportTo") and judged(kind, {**rest, **spec}, "workload")


def header_set(text: str) -> dict[str, Any]:
    route = {**ACTION, "headers": {"request": {"set": {"a": text}}}}
    return {"hosts": ["a.example"], "http": [route]}


def abort(status: int) -> dict[str, Any]:
    route = {**ACTION, "fault": {"abort": {"httpStatus": status, "percentage": {"value": 1}}}}
    return {"hosts": ["a.example"], "http": [route]}


def source(field: str, values: list[str]) -> dict[str, Any]:
    return {"rules": [{"from": [{"source": {field: values}}]}]}


def path_rule(path: str) -> dict[str, Any]:
    return {"rules": [{"to": [{"operation": {"paths": [path]}}]}]}


VS, AP, SE, DR = "VirtualService", "AuthorizationPolicy", "ServiceEntry", "DestinationRule"
OBJECTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "TestValidateFQDN": lambda r: judged(VS, {"hosts": ["a"], "http": [{"route": [
        {"destination": {"host": r["fqdn"]}}]}]}, "http"),
    "TestValidateDuration": lambda r: judged(VS, retry(r["duration"]), "http"),
    "TestValidateWildcardDomain": lambda r: not wildcard_domain_problem(r["in"]),
    "TestValidateWildcardDomainForVirtualServiceBoundToGateway": lambda r: (
        not gateway_domain_problem(r["in"], sni=r["sni"])),
    "TestValidateTrustDomain": lambda r: judged("MeshConfig", {"trustDomain": r["in"]}, "trust"),
    "TestValidationIPAddress": lambda r: judged(AP, source("ipBlocks", [r["addr"]]), "rules"),
    "TestValidationIPSubnet": lambda r: judged(AP, source("ipBlocks", [r["subnet"]]), "rules"),
    "TestValidateLocalities": lambda r: judged(DR, distribute(r["localities"]), "trafficPolicy"),
    "TestStrictValidateHTTPHeaderName": lambda r: judged(
        "RequestAuthentication", claim_header(r["name"]), "jwtRules"),
    "TestValidateHTTPHeaderName": lambda r: judged(
        VS, virtual_service({r["name"]: {"exact": "a"}}), "http"),
    "TestValidateHTTPStatus": lambda r: judged(VS, abort(r["in"]), "http"),
    "TestValidatePortName": lambda r: judged(SE, port(r["name"]), "ports"),
    "TestValidateHTTPHeaderValue": lambda r: judged(VS, header_set(r["input"]), "http"),
    "Test_validateExportTo": exported,
    "TestValidateCondition": lambda r: judged(AP, condition(r), "rules"),
    "TestCheckWildcardValues": lambda r: judged(AP, source("trustDomains", r["values"]), "rules"),
    "TestCheckTrustDomainValues": lambda r: judged(
        AP, source("trustDomains", r["values"]), "rules"),
    "TestParseJwksURI": lambda r: judged(
        "RequestAuthentication", {"jwtRules": [{"issuer": "a", "jwksUri": r["in"]}]}, "jwtRules"),
    "TestIsValidLiteral": lambda r: (
        judged(AP, path_rule(f"/{{*}}/{r['glob']}"), "rules") and "/" not in r["glob"]),
    "TestCheckValidPathTemplate": lambda r: all(
        judged(AP, path_rule(p), "rules") for p in r.get("values") or [r.get("path")]),
}  # fmt: skip
"""Tables of rules, and how an object fares that holds the value of a row."""


@pytest.mark.parametrize("test", OBJECTS)
def test_rules_of_objects(test: str) -> None:
    wrong = [row for row in rows(test) if OBJECTS[test](row) != ok(row)]
    assert not wrong, "\n".join(map(str, wrong))


def held(labels: dict[str, str] | None) -> dict[str, str]:
    return labels or {}


def test_hosts() -> None:
    for row in rows("TestNameMatches"):
        assert host_matches(row["a"], row["b"]) == row["out"], row
    for row in rows("TestNameSubsetOf"):
        assert host_is_subset(row["a"], row["b"]) == row["out"], row
        assert covers(row["b"], row["a"]) == row["out"], row
    for row in rows("TestNamesIntersection"):
        both = {n for a in row["a"] for b in row["b"] if (n := narrower(a, b)) is not None}
        assert both == set(row["intersection"]), row
    for row in rows("TestMostSpecificHostMatch"):
        assert (most_specific(row["in"], row["needle"]) or "") == row["want"], row
    for row in rows("TestResolveShortnameToFQDN"):
        meta = row["meta"]
        if meta.get("Domain") == "cluster.local" and meta.get("Namespace"):
            assert fqdn(row["name"], meta["Namespace"]) == row["out"], row


def test_the_more_specific_host() -> None:
    """Only where both cover something does one come before the other here: an exact name, then the
    longest wildcard. Two that have no name in common are never compared."""
    for row in rows("TestMoreSpecific"):
        first, second = row["host1"], row["host2"]
        both = narrower(first, second)
        if first and second and first != second and both is not None:
            assert (both == first) == row["expected"], row


def test_hosts_of_a_server_by_namespace() -> None:
    """Which hosts of a Gateway's server the virtual services of a namespace may have."""
    for row in rows("TestNamesForNamespace"):
        server = {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": row["hosts"]}
        gateway = {"selector": {"istio": "ingressgateway"}, "servers": [server]}
        spec = {"hosts": ["foo.com", "bar.com"], "gateways": ["istio-system/g"], "http": [ACTION]}
        objects = (("Gateway", "g", "istio-system", gateway), (VS, "v", row["namespace"], spec))
        documents = [
            {
                "apiVersion": "networking.istio.io/v1",
                "kind": kind,
                "metadata": {"name": name, "namespace": namespace},
                "spec": held,
            }
            for kind, name, namespace, held in objects
        ]
        proxy = {"type": "router", "name": "g-0", "namespace": "istio-system", "ips": ["1.1.1.1"],
                 "labels": {"istio": "ingressgateway"}}  # fmt: skip
        made = compile_documents(documents, proxy=proxy).document["routes"]
        served = {d for table in made for host in table["virtualHosts"] for d in host["domains"]}
        assert {"foo.com", "bar.com"} & served == set(row["want"]), row


def test_names_of_services() -> None:
    for row in rows("TestGenerateVirtualHostDomains"):
        host, domain = row["service"]["Hostname"], row["node"].get("DNSDomain", "")
        namespace, _, suffix = domain.partition(".svc.")
        if suffix == "cluster.local":
            wanted = {n for n in row["want"] if host.split(".")[0] in n and n[0] != "*"}
            assert set(service_domains(host, namespace)) == wanted, row


def test_labels() -> None:
    for row in rows("TestInstance"):
        left, right = held(row["left"]), held(row["right"])
        assert matches_selector({"matchLabels": left}, right) == row["expected"][0], row
    for row in rows("TestInstanceValidate"):
        tags = held(row.get("tags"))
        fine = not any(label_key_problem(k) or label_value_problem(v) for k, v in tags.items())
        assert fine == row.get("valid", False), row


def test_protocols() -> None:
    for row in rows("TestParse"):
        known = row["out"]["$ident"] != "protocol.Unsupported"
        assert protocol_is_known(row["name"]) == known or row["name"] == "HBONE", row
    for row in rows("TestConvertProtocol"):
        wanted = row["out"]["$ident"].removeprefix("protocol.")
        transport = row["proto"]["$ident"].removeprefix("corev1.Protocol")
        found = protocol_of_port(row["name"], row["port"], row["appProtocol"] or "", transport)
        same = {"": "Unsupported", "GRPC-WEB": "GRPCWeb"}.get(found, found)
        assert same.lower() == wanted.lower(), row


def test_who_a_certificate_names() -> None:
    """An identity of the form counts when it names somebody."""
    for row in rows("TestIdentity"):
        wanted = row["expected"] or {}
        named = (wanted.get("Namespace"), wanted.get("ServiceAccount"))
        assert Peer(uri=row["input"]).account == (named if all(named) else None), row


def test_quantities_of_annotations() -> None:
    for row in rows("TestValidateResourceQuantity"):
        notes = {"sidecar.istio.io/proxyCPU": row["value"]}
        try:
            found = list(check_annotations(notes))
        except InjectionError:
            assert row["wantErr"], row
        else:
            assert not found, row
            assert not row["wantErr"], row


def test_paths_that_are_templates() -> None:
    for row in rows("TestContainsPathTemplate"):
        made = path_permission(row["path"]).WhichOneof("rule")
        assert (made == "uri_template") == row["isPathTemplate"], row


def test_identities() -> None:
    for row in rows("TestReplaceTrustDomainAliases"):
        own, others = row["trustDomainBundle"]["args"]
        assert set(migrated(row["principals"], (own, *(others or ())))) == set(row["expect"]), row
    for row in rows("TestServiceAccount"):
        if isinstance(row["Identity"], str):
            asked = service_account(row["Input"], "my-ns").authenticated.principal_name
            assert text_matches(asked, row["Identity"]) == row["Match"], row
    for row in rows("TestGenSpiffeURI"):
        if "expectedURI" in row:
            own = row["trustDomain"]
            found = spiffe("cluster.local" if isinstance(own, dict) else own.replace("@", "."),
                           row["namespace"], row["serviceAccount"])  # fmt: skip
            assert found == row["expectedURI"], row


ELSEWHERE = {
    "TestSetDestinationRuleWithExportTo": "tests/unit/compile/test_compile_destination_rules.py",
    "TestParseInjectEnvs": "tests/unit/inject/test_inject_admission.py",
    "TestValidateAnnotations": "tests/unit/inject/test_inject_admission.py",
} | dict.fromkeys(
    (
        "TestCreateSidecarScope",
        "TestIsServiceVisible",
        "TestVirtualServiceWithExportTo",
        "TestVirtualServiceWithDefaultExportTo",
        "TestToRoutingClaim",
        "TestIngressClass",
        "TestReplaceTrustDomainInPrincipal",
        "TestGetTrustDomainFromSpiffeIdentity",
        "TestIsTrustDomainBeingEnforced",
        "TestGenerator",
        "TestRequestPrincipal",
        "TestPathTemplateMatcher",
        "TestStringMatcherWithPrefix",
    ),
    "tests/unit/compile/test_compile_tables.py",
)
NOT_RUN = {
    "TestNamesSortOrder": "hosts are looked up by length, never put in one order",
    "TestString": "labels are never written as one text",
    "TestExpandWithTrustDomains": "what a server may prove is one identity of each trust domain: "
    "federated meshes, tested there",
    "TestParseAutoGeneratedSNIDomain": "names of AUTO_PASSTHROUGH are made, never taken apart",
    "TestParseStatus": "what was injected is found by the pod's containers",
    "TestNameTable": "the table has what is expected, not the services and pods it comes from",
    "TestValidateResource": "verdicts of a command line on Services whose ports declare no "
    "protocol: it is detected here; the documents of other kinds are in validation/cases.jsonl",
}


def test_every_table_is_run_or_has_a_reason() -> None:
    here = Path(__file__).read_text()
    ran = set(re.findall(r'"(Test_?\w+)"', here.split("ELSEWHERE =")[0]))
    tables = {name.rpartition("::")[2] for name in json.loads(TABLES.read_text())}
    assert tables == ran | set(ELSEWHERE) | set(NOT_RUN)
    root = Path(__file__).parents[3]
    for test, file in ELSEWHERE.items():
        assert test in (root / file).read_text(), test
