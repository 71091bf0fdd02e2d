"""The definitions of our kinds, judged by a real API server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, Refused

from meshbus.schema.crds import definitions

pytestmark = pytest.mark.slow
ROUTE = {"route": [{"destination": {"host": "a"}}]}


def install_definitions(cluster: Cluster) -> None:
    """All definitions, and wait until the server serves them."""
    names = [cluster.apply(dict(one))["metadata"]["name"] for one in definitions()]
    base = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

    def conditions(name: str) -> dict[str, str]:
        status = cluster.get(f"{base}/{name}").get("status", {})
        return {c["type"]: c["status"] for c in status.get("conditions", [])}

    for name in names:
        cluster.wait(lambda name=name: conditions(name).get("Established") == "True", 30)
        assert conditions(name).get("NonStructuralSchema") != "True", name
        assert conditions(name)["NamesAccepted"] == "True", name


@pytest.fixture(scope="module")
def defined(cluster: Cluster) -> Cluster:
    install_definitions(cluster)
    return cluster


def documents(folder: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for path in sorted(folder.rglob("*.yaml")):
        try:
            found = list(yaml.safe_load_all(path.read_text()))
        except yaml.YAMLError:
            continue
        for index, document in enumerate(found):
            if isinstance(document, dict) and "kind" in document:
                yield f"{path.name}#{index}", document


def test_definitions_are_small_enough_to_apply(defined: Cluster) -> None:
    for definition in definitions():
        # kubectl keeps what it applied in an annotation, of 256 kB at most.
        assert len(json.dumps(definition)) < 250_000, definition["metadata"]["name"]


def test_valid_objects_of_others_are_taken(
    defined: Cluster, namespace: str, shared_data: Path
) -> None:
    ours = {d["spec"]["group"] for d in definitions()}
    refused, taken = [], 0
    for name, document in documents(shared_data / "validation" / "all-valid"):
        if str(document["apiVersion"]).split("/")[0] not in ours:
            continue
        document["metadata"] = {**dict(document["metadata"]), "namespace": namespace}  # type: ignore[call-overload]
        try:
            # Strict: a field that our schema does not know is refused, not pruned.
            path = defined.path_of(document).rsplit("/", 1)[0]
            defined.request("POST", f"{path}?fieldValidation=Strict&dryRun=All", document)
            taken += 1
        except Refused as error:
            refused.append(f"{name}: {error}")
    assert refused == []
    assert taken > 30


def test_kubectl_prints_what_istio_users_know(defined: Cluster, namespace: str) -> None:
    manifests = """
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingress}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
"""
    defined.kubectl("-n", namespace, "apply", "-f", "-", stdin=manifests)
    printed = defined.kubectl("-n", namespace, "get", "vs,dr,gw")
    assert 'virtualservice.networking.istio.io/reviews              ["reviews"]' in printed
    assert "GATEWAYS" in printed
    assert "HOST" in printed
    assert "gateway.networking.istio.io/front" in printed
    # Applied again, nothing changes.
    again = defined.kubectl("-n", namespace, "apply", "-f", "-", stdin=manifests)
    assert again.count("unchanged") == 3


@pytest.mark.parametrize(
    ("spec", "kind", "group", "message"),
    [
        (
            {"hosts": ["a.com"], "endpoints": [{"address": "1.1.1.1"}], "workloadSelector": {}},
            "ServiceEntry",
            "networking.istio.io/v1",
            "only one of WorkloadSelector or Endpoints",
        ),
        ({}, "WorkloadEntry", "networking.istio.io/v1", "Address is required"),
        *(
            (
                {"hosts": ["a"], "http": [{"timeout": timeout, **ROUTE}]},
                "VirtualService",
                "networking.istio.io/v1",
                message,
            )
            for timeout, message in (
                ("0s", "must be a valid duration greater than 1ms"),
                ("-5s", "must be a valid duration greater than 1ms"),
                ("soon", "duration"),
            )
        ),
        (
            {"metrics": [{"reportingInterval": "1us"}]},
            "Telemetry",
            "telemetry.istio.io/v1",
            "must be a valid duration greater than 1ms",
        ),
        (
            {"portLevelMtls": {"80": {"mode": "STRICT"}}},
            "PeerAuthentication",
            "security.istio.io/v1",
            "portLevelMtls requires selector",
        ),
        (
            {"selector": {}, "targetRefs": [{"kind": "Service", "name": "a"}]},
            "AuthorizationPolicy",
            "security.istio.io/v1",
            "only one of targetRefs or selector",
        ),
        ({"host": "a", "subset": []}, "DestinationRule", "networking.istio.io/v1", "unknown field"),
    ],
)
def test_what_the_api_server_refuses_by_itself(
    defined: Cluster, namespace: str, spec: dict[str, object], kind: str, group: str, message: str
) -> None:
    document = {
        "apiVersion": group,
        "kind": kind,
        "metadata": {"name": "bad", "namespace": namespace},
        "spec": spec,
    }
    path = defined.path_of(document).rsplit("/", 1)[0]
    with pytest.raises(Refused) as refused:
        defined.request("POST", f"{path}?fieldValidation=Strict", document)
    assert message in refused.value.body
