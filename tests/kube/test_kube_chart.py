"""The chart, by Helm, on a real API server: every profile is taken by its schemas, services may do
what the chart grants and nothing else, pods keep to Pod Security, and nothing is left behind.

Hooks (a Job, a test pod) are not run here: there is no kubelet. What the Job does has a test of its
own in `test_kube_cluster_keys`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster, Refused

sys.path.insert(0, str(Path(__file__).parent / "tools"))
from build import Unavailable, program

from meshbus.inject import Injector, Owner
from meshbus.kube.permissions import (
    ALWAYS_CLUSTER,
    CLUSTER,
    PERMISSIONS,
    ROOT,
    SIGNER_KUBERNETES,
)

pytestmark = [pytest.mark.real, pytest.mark.slow]
SIGNER = "example.com/mesh"
CHART = Path(__file__).parents[2] / "deploy" / "helm" / "meshbus"
PROFILES = ("demo", "default", "ha", "large", "remote")


def sets(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


REMOTE = sets(
    "global.caAddress=gateway.example.com:15012",
    "sidecarInjectorWebhook.injectionURL=https://injector.example.com/inject",
)
EXTRAS = sets(
    "networkPolicy.enabled=true",
    "dashboards.enabled=true",
    "gateways.edge.enabled=true",
    "gateways.edge.kind=DaemonSet",
    "gateways.out.enabled=true",
    "gateways.out.podDisruptionBudget.minAvailable=1",
    "gateways.out.service.externalTrafficPolicy=Local",
)


@pytest.fixture(scope="session")
def helm_program() -> str:
    try:
        return str(program("helm"))
    except Unavailable as error:
        pytest.skip(f"no helm: {error}")


def helm(binary: str, cluster: Cluster, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        [binary, *arguments, f"--kubeconfig={cluster.kubeconfig}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def rendered(binary: str, namespace: str, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [binary, "template", "mesh", str(CHART), "-n", namespace, "--kube-version", "1.34",
         *arguments], capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_api_server_takes_every_object(
    helm_program: str, cluster: Cluster, namespace: str, profile: str
) -> None:
    flags = ("--set", f"profile={profile}", *(REMOTE if profile == "remote" else EXTRAS))
    documents = rendered(helm_program, namespace, *flags)
    assert documents
    for document in documents:
        path = cluster.path_of(document)
        cluster.request(
            "PATCH",
            f"{path}?fieldManager=test&force=true&dryRun=All&fieldValidation=Strict",
            document,
            content_type="application/apply-patch+yaml",
        )


def pods(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for document in documents:
        if document["kind"] == "Pod":
            found.append({"metadata": document["metadata"], "spec": document["spec"]})
        elif "template" in document.get("spec", {}):
            found.append(document["spec"]["template"])
    return found


def test_pods_of_the_control_plane_and_captured_ones_are_restricted(
    helm_program: str, cluster: Cluster, namespace: str
) -> None:
    """By the API server's own admission of Pod Security."""
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    cluster.request("PATCH", f"/api/v1/namespaces/{namespace}", label,
                    content_type="application/merge-patch+json")  # fmt: skip
    own = pods(rendered(helm_program, namespace, "--set", "profile=ha"))
    app = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "web", "image": "web", "securityContext": {
                "allowPrivilegeEscalation": False, "runAsUser": 1000,
                "capabilities": {"drop": ["ALL"]}}}],
        },
    }  # fmt: skip
    owner = Owner("apps/v1", "Deployment", "web", namespace)
    captured = Injector({"pilot": {"cni": {"enabled": True}}}).inject(app, owner).pod
    for number, pod in enumerate([*own, captured]):
        pod["spec"].pop("serviceAccountName", None)
        body = {"apiVersion": "v1", "kind": "Pod",
                "metadata": {"labels": pod["metadata"].get("labels", {}), "name": f"p{number}"},
                "spec": {**pod["spec"], "volumes": []}}  # fmt: skip
        for container in [*body["spec"]["containers"], *body["spec"].get("initContainers", ())]:
            container["volumeMounts"] = []
        cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", body)
    by_init = Injector({}).inject(app, owner).pod
    body["spec"] = {**by_init["spec"], "volumes": []}
    for container in [*body["spec"]["containers"], *body["spec"]["initContainers"]]:
        container["volumeMounts"] = []
    with pytest.raises(Refused) as refused:
        cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", body)
    said = json.loads(refused.value.body)["message"]
    assert "NET_ADMIN" in said
    assert "istio-proxy" not in said, "the init container alone asks for more"


def may(
    cluster: Cluster,
    account: str,
    namespace: str,
    verb: str,
    resource: str,
    where: str,
    name: str = "",
) -> bool:
    group, _, kind = resource.rpartition("/")
    kind, _, sub = kind.partition(":")
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{namespace}:{account}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}",
                       "system:authenticated"],
            "resourceAttributes": {"verb": verb, "group": group, "resource": kind,
                                   "subresource": sub, "namespace": where, "name": name},
        },
    }  # fmt: skip
    if resource.startswith("//"):
        del review["spec"]["resourceAttributes"]  # type: ignore[attr-defined]
        review["spec"]["nonResourceAttributes"] = {"path": resource[1:], "verb": verb}  # type: ignore[index]
    answer = cluster.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


def listed(namespace: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Everything that the list of permissions grants, where `ca.signer` is one of the cluster:
    account, verb, resource, namespace, name."""
    places = {CLUSTER: "anywhere", ALWAYS_CLUSTER: "", ROOT: namespace, SIGNER_KUBERNETES: ""}
    for rule in PERMISSIONS:
        if rule.scope not in places:
            continue
        account, where = f"meshbus-{rule.service}", places[rule.scope]
        for verb in rule.verbs:
            for path in rule.paths:
                yield account, verb, f"/{path}", "", ""
            for group in rule.groups:
                for resource in rule.resources:
                    kind, _, sub = resource.replace("*", "things").partition("/")
                    what = f"{group}/{kind}" + (f":{sub}" if sub else "")
                    for name in rule.names or ("",):
                        known = name.replace("{revision}", "").replace("{signer}", SIGNER)
                        yield account, verb, what, where, known


def test_install_upgrade_and_uninstall(helm_program: str, own_cluster: Cluster) -> None:
    cluster, namespace = own_cluster, "istio-system"
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})

    def run(*arguments: str) -> str:
        return helm(helm_program, cluster, *arguments, "-n", namespace)

    signer = sets(f"ca.signer=kubernetes:{SIGNER}", "ca.signerSecret=signer")
    run("install", "mesh", str(CHART), "--no-hooks", *sets("profile=default"), *signer)
    for account, verb, resource, where, name in listed(namespace):
        said = (account, verb, resource, where, name)
        assert may(cluster, account, namespace, verb, resource, where, name), said
    granted = [
        ("meshbus-discovery", "watch", "pods", ""),
        ("meshbus-discovery", "list", "discovery.k8s.io/endpointslices", "other"),
        ("meshbus-config", "list", "networking.istio.io/virtualservices", "other"),
        ("meshbus-config", "patch", "networking.istio.io/virtualservices:status", "other"),
        ("meshbus-config", "create", "authorization.k8s.io/subjectaccessreviews", ""),
        ("meshbus-config", "create", "configmaps", "other"),
    ]
    refused = [
        ("meshbus-discovery", "get", "secrets", "other"),
        ("meshbus-discovery", "create", "pods", "other"),
        ("meshbus-config", "create", "pods", "other"),
        ("meshbus-config", "patch", "configmaps", "other"),
        ("meshbus-config", "update", "networking.istio.io/virtualservices", "other"),
        ("meshbus-config", "create", "networking.istio.io/workloadentries", "other"),
        ("meshbus-config", "delete", "networking.istio.io/workloadentries", "other"),
        ("meshbus-config", "create", "rbac.authorization.k8s.io/clusterroles", ""),
        ("meshbus-ca", "list", "secrets", "other"),
        ("meshbus-ca", "approve", "certificates.k8s.io/signers", ""),
        ("meshbus-ca", "list", "certificates.k8s.io/certificatesigningrequests", ""),
        ("meshbus-ca", "list", "pods", "other"),
        ("xds-gateway", "list", "pods", ""),
        ("meshbus-policy", "list", "pods", ""),
        ("meshbus-telemetry", "list", "pods", ""),
        ("default", "list", "pods", ""),
    ]
    for expected, cases in ((True, granted), (False, refused)):
        for account, verb, resource, where in cases:
            answer = may(cluster, account, namespace, verb, resource, where)
            assert answer is expected, (account, verb, resource)

    # A second revision beside the first, on its bus; then the first grows.
    blue = sets(
        "revision=blue",
        "revisionTags={prod}",
        "nats.enabled=false",
        "keys.generate=false",
        "crds.enabled=false",
        f"nats.external.url=tls://meshbus-nats.{namespace}.svc:4222",
    )
    run("install", "blue", str(CHART), "--no-hooks", *blue)
    machines = sets("machines.gateway=gateway.example.com:15012")
    run("upgrade", "mesh", str(CHART), "--no-hooks", "--set", "profile=ha", *machines)
    for verb, expected in (("create", True), ("patch", True), ("delete", True), ("update", False)):
        what = "networking.istio.io/workloadentries"
        answer = may(cluster, "meshbus-config", namespace, verb, what, "other")
        assert answer is expected, verb
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/meshbus-config"
    assert cluster.get(path)["spec"]["replicas"] == 3
    assert cluster.get(f"{path}-blue")["spec"]["replicas"] == 2
    run("uninstall", "blue", "--no-hooks")
    assert cluster.exists(path)
    run("uninstall", "mesh", "--no-hooks")
    selector = "labelSelector=app.kubernetes.io%2Fpart-of%3Dmeshbus"
    for place in ("/apis/rbac.authorization.k8s.io/v1/clusterroles",
                  "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
                  "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
                  "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
                  f"/apis/apps/v1/namespaces/{namespace}/deployments",
                  f"/apis/apps/v1/namespaces/{namespace}/statefulsets",
                  f"/api/v1/namespaces/{namespace}/services",
                  f"/api/v1/namespaces/{namespace}/configmaps",
                  f"/api/v1/namespaces/{namespace}/serviceaccounts"):  # fmt: skip
        left = [item["metadata"]["name"] for item in cluster.get(f"{place}?{selector}")["items"]
                if not item["metadata"].get("deletionTimestamp")]  # fmt: skip
        assert not left, place


def test_limited_to_namespaces_there_is_no_wide_read(
    helm_program: str, cluster: Cluster, namespace: str
) -> None:
    flags = sets(f"global.namespaces={{{namespace}}}", "machines.gateway=g.example.com:15012")
    narrow = set()
    for document in rendered(helm_program, namespace, *flags):
        resources = {r for rule in document.get("rules") or () for r in rule.get("resources", ())}
        if document["kind"] == "ClusterRole":
            wide = {"pods", "secrets", "services", "virtualservices", "workloadentries"}
            assert not resources & wide
        elif document["kind"] == "Role" and document["metadata"]["namespace"] == namespace:
            narrow |= resources
    assert {"pods", "workloadentries"} <= narrow


@pytest.mark.parametrize("profile", ["demo", "default", "ha"])
def test_network_policies_let_in_what_is_served(helm_program: str, profile: str) -> None:
    """Each port that a Service leads to, that a probe asks or that is scraped, and for NATS its
    clients and peers alone."""
    flags = sets(f"profile={profile}", "networkPolicy.enabled=true", "gateways.edge.enabled=true")
    documents = rendered(helm_program, "istio-system", *flags)
    policies = [d for d in documents if d["kind"] == "NetworkPolicy"]

    def let_in(labels: dict[str, str]) -> set[Any] | None:
        chosen = [
            p for p in policies if p["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        ]
        if not chosen:
            return None
        return {
            (port["port"], port["protocol"])
            for policy in chosen
            for rule in policy["spec"]["ingress"]
            for port in rule["ports"]
        }

    seen = 0
    for workload in documents:
        if workload["kind"] not in ("Deployment", "StatefulSet", "DaemonSet"):
            continue
        template = workload["spec"]["template"]
        labels = template["metadata"]["labels"]
        allowed = let_in(labels)
        if "istio" in labels:
            assert allowed is None, "a gateway is for everybody"
            continue
        assert allowed is not None, workload["metadata"]["name"]
        containers = template["spec"]["containers"]
        named = {p["name"]: p["containerPort"] for c in containers for p in c.get("ports", ())}
        asked = {
            (container[probe]["httpGet"]["port"], "TCP")
            for container in containers
            for probe in ("startupProbe", "readinessProbe", "livenessProbe")
            if probe in container
        }
        for service in (d for d in documents if d["kind"] == "Service"):
            if service["spec"].get("selector", {"": ""}).items() <= labels.items():
                for port in service["spec"]["ports"]:
                    target = port.get("targetPort", port["port"])
                    asked.add((named.get(target, target), port.get("protocol", "TCP")))
        assert asked <= allowed, workload["metadata"]["name"]
        seen += 1
    assert seen == (2 if profile == "demo" else 7)
    (bus,) = [p for p in policies if p["metadata"]["name"] == "meshbus-nats"]
    open_to_all = [rule["ports"] for rule in bus["spec"]["ingress"] if "from" not in rule]
    assert open_to_all == [[{"port": 8222, "protocol": "TCP"}]]


def test_monitors_choose_what_is_scraped(helm_program: str) -> None:
    """By labels and by names of ports that pods of the control plane, and injected ones, have."""
    documents = rendered(helm_program, "istio-system", *sets("podMonitor.enabled=true"))
    monitors = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "PodMonitor"}
    own, proxies = monitors["meshbus"], monitors["meshbus-proxies"]
    (endpoint,) = own["podMetricsEndpoints"]
    assert endpoint == {"port": "http-admin", "path": "/metrics"}
    scraped = set()
    for pod in pods(documents):
        labels = pod["metadata"]["labels"]
        ports = {p["name"] for c in pod["spec"]["containers"] for p in c.get("ports", ())}
        if own["selector"]["matchLabels"].items() <= labels.items() and "http-admin" in ports:
            scraped.add(labels["app.kubernetes.io/component"])
    assert scraped == {"config", "discovery", "ca", "policy", "telemetry", "xds-gateway"}
    injected = (
        Injector({})
        .inject(
            {"metadata": {}, "spec": {"containers": [{"name": "web", "image": "w"}]}},
            Owner("apps/v1", "Deployment", "web", "shop"),
        )
        .pod
    )
    (needed,) = proxies["selector"]["matchExpressions"]
    assert needed["operator"] == "Exists"
    assert needed["key"] in injected["metadata"]["labels"]
    (endpoint,) = proxies["podMetricsEndpoints"]
    proxy = next(c for c in injected["spec"]["initContainers"] if c["name"] == "istio-proxy")
    assert endpoint["port"] in {p["name"] for p in proxy["ports"]}
    assert proxies["namespaceSelector"] == {"any": True}


@pytest.mark.parametrize("version", ["1.29", "1.32", "1.36"])
def test_every_profile_renders_for_every_supported_version(helm_program: str, version: str) -> None:
    """And says nothing that helm objects to."""
    for profile in PROFILES:
        flags = [*sets(f"profile={profile}"), *(REMOTE if profile == "remote" else EXTRAS)]
        done = subprocess.run(
            [helm_program, "lint", str(CHART), "--strict", "--kube-version", version, *flags],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    refused = subprocess.run(
        [helm_program, "template", "mesh", str(CHART), "--kube-version", "1.28"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "kubeVersion" in refused.stderr
