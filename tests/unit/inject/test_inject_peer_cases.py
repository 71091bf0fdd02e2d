"""Pods of a peer's tests, and what holds for them after injection.

Held to: which containers there are, in which order and place, capture's arguments, labels,
annotations, and the volumes and variables that make sense without an agent in the pod.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from meshbus.api.yaml_text import read_yaml
from meshbus.inject import InjectionError, Injector, template_path
from meshbus.inject.documents import Beside, inject_document
from meshbus.inject.helm_set import set_values
from meshbus.inject.openshift import Identity
from meshbus.local.manifests import read_parts

DATA = Path(__file__).parents[3].parent / "shared" / "data" / "injection"
if not DATA.is_dir():
    pytest.skip("the data of others is not here", allow_module_level=True)
CASES = [json.loads(line) for line in (DATA / "cases.jsonl").read_text().splitlines()]

AGENTS_VOLUMES = {
    "credential-socket", "istio-ca-crl", "istio-data", "istio-podinfo", "workload-certs",
    "workload-socket",
}  # fmt: skip
AGENTS_VARIABLES = {
    "CA_ADDR", "GOMEMLIMIT", "ISTIO_CPU_LIMIT", "PILOT_CERT_PROVIDER", "PROXY_CONFIG",
    "COMPLIANCE_POLICY", "GODEBUG", "DISABLE_ENVOY", "ISTIO_META_DNS_CAPTURE", "OUTPUT_CERTS",
    "JWT_POLICY",
}  # fmt: skip
NOT_HELD = {
    # Two containers of one name, which no API server takes: ours is merged into the sidecar.
    "sidecar-spire.yaml.injected": {"containers", "proxyArgs", "proxyEnv"},
    # There is no proxy whose metrics could be had at that port.
    "grpc-simple.yaml.injected": {"prometheus"},
    # Labels and annotations belong to the pod, not to the Job.
    "cronjob.yaml.injected": {"labels"},
    "cronjob-old-version.yaml.injected": {"labels"},
}


def mesh_of(code: str | None) -> dict[str, Any]:
    """The mesh config that a few lines of Go in the data set."""
    code = code or ""
    if "TPROXY" in code:
        return {"defaultConfig": {"interceptionMode": "TPROXY"}}
    if "DrainDuration" in code:
        return {"defaultConfig": {"drainDuration": "23s"}}
    if "TLS_CLIENT_KEY" in code:
        value = "/etc/identity/client/keys/client-key.pem"
        return {"defaultConfig": {"proxyMetadata": {"ISTIO_META_TLS_CLIENT_KEY": value}}}
    if "LOCALHOST" in code:
        return {"inboundTrafficPolicy": {"mode": "LOCALHOST"}}
    if "OTEL_SEMANTIC" in code:
        provider = {
            "service": "otel-collector.observability.svc.cluster.local",
            "port": 4317,
            "serviceAttributeEnrichment": "OTEL_SEMANTIC_CONVENTIONS",
        }
        return {"extensionProviders": [{"name": "otel", "opentelemetry": provider}]}
    assert not code or "Tracing" in code, code
    return {}


def injector_of(case: dict[str, Any]) -> Injector:
    values: dict[str, Any] = {}
    if file := case.get("inFilePath"):
        values = read_yaml((DATA / "input" / file).read_text())["spec"]
    for flag in case.get("setFlags", ()):
        set_values(values, flag)
    if "NativeSidecarModeDisabled" in case.get("setup", ""):
        set_values(values, "pilot.env.ENABLE_NATIVE_SIDECARS=false")
    return Injector(values, mesh_of(case.get("mesh")))


def pods_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    if "items" in document:
        return [pod for item in document["items"] for pod in pods_of(item)]
    path = template_path(document)
    if path is None:
        return []
    for step in path:
        document = document[step]
    return [document]


def injected(case: dict[str, Any]) -> list[dict[str, Any]]:
    injector = injector_of(case)
    parts = list(read_parts(str(DATA / "input" / case["in"])))
    namespaces = {document_namespace(part.content) for part in parts}
    openshift = OPENSHIFT in case.get("setup", "")
    identities = dict.fromkeys(namespaces, IDENTITY) if openshift else {}
    outcomes = [inject_document(injector, part.content, Beside(identities)) for part in parts]
    for outcome in outcomes:
        again = inject_document(injector, outcome.document, Beside(identities))
        assert again.document == outcome.document, "not the same when done again"
    return [pod for outcome in outcomes for pod in pods_of(outcome.document)]


def document_namespace(document: dict[str, Any]) -> str:
    return str((document.get("metadata") or {}).get("namespace") or "")


def names(pod: dict[str, Any], place: str) -> list[str]:
    return [container["name"] for container in pod["spec"].get(place, ())]


def proxy_of(pod: dict[str, Any]) -> dict[str, Any] | None:
    found = [
        container
        for place in ("containers", "initContainers")
        for container in pod["spec"].get(place, ())
        if container["name"] == "istio-proxy"
    ]
    assert len(found) <= 1
    return found[0] if found else None


ACCEPTED = [case for case in CASES if "invariants" in case or "want" in case]
OPENSHIFT = "platform.OpenShift"
IDENTITY = Identity(1000629999, 1000629999, 1000620000)
"""Of a namespace with the range 1000620000/10000."""


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda c: c["want"])
def test_invariants_of_peer_hold(case: dict[str, Any]) -> None:
    pods = injected(case)
    wanted = case.get("invariants", [])
    assert len(pods) == len(wanted)
    for pod, want in zip(pods, wanted, strict=True):
        free = NOT_HELD.get(case["want"], set())
        proxy = proxy_of(pod)
        metadata = pod.get("metadata") or {}
        variables = {item["name"] for item in (proxy or {}).get("env", ())}
        assert (proxy is not None) == want["injected"]
        if "containers" not in free:
            assert names(pod, "containers") == want["containers"]
        assert names(pod, "initContainers") == want["initContainers"]
        native = "istio-proxy" in names(pod, "initContainers")
        assert native == want["nativeSidecar"]
        inits = {c["name"]: c for c in pod["spec"].get("initContainers", ())}
        capture = inits.get("istio-init") or inits.get("istio-validation")
        assert (capture and capture["args"]) == want["initArgs"]
        volumes = {item["name"] for item in pod["spec"].get("volumes", ())}
        assert set(want["volumes"]) - AGENTS_VOLUMES <= volumes
        if "proxyEnv" not in free:
            assert set(want["proxyEnv"]) - AGENTS_VARIABLES <= variables
        expected = {
            name: value
            for name, value in want["annotations"].items()
            if not (name.startswith("prometheus") and "prometheus" in free)
        }
        assert {k: (metadata.get("annotations") or {}).get(k) for k in expected} == expected
        if want["labels"] is not None:
            labels = metadata.get("labels") or {}
            if "labels" not in free and want["injected"]:
                assert labels == want["labels"]
            assert {k: labels.get(k) for k in want["labels"]} == want["labels"]
        arguments = want["proxyArgs"]
        if arguments and arguments[0] != "proxy":
            assert proxy is not None
            assert proxy["args"] == arguments


@pytest.mark.parametrize("case", [c for c in CASES if "expectedError" in c], ids=lambda c: c["in"])
def test_bad_annotations_are_refused(case: dict[str, Any]) -> None:
    with pytest.raises(InjectionError) as error:
        injected(case)
    assert re.search(case["expectedError"], str(error.value), re.IGNORECASE)
