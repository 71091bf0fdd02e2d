"""What each service may do in a Kubernetes cluster: the one list, from which RBAC is rendered.

Least privilege: a service that is not named here has no access to the API server at all, and needs
no token of it. Each rule says why it is there; the chart, the docs and the tests read this list.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

CLUSTER = "cluster"
"""Everywhere: a ClusterRole; where operation is limited to namespaces, a Role in each of them."""
ALWAYS_CLUSTER = "always-cluster"
"""For kinds without a namespace: a ClusterRole, also where operation is limited to namespaces."""
SIGNER_KUBERNETES = "signer-kubernetes"
"""A ClusterRole where `ca.signer` of the chart is a signer of CertificateSigningRequests."""
SIGNER_CERT_MANAGER = "signer-cert-manager"
"""A Role in the namespace of the control plane where it is an issuer of cert-manager."""
MACHINES = "machines"
"""As `CLUSTER`, where `machines.gateway` of the chart lets machines outside join."""
ROOT = "root"
"""In the namespace of the control plane: a Role."""

_READ = ("get", "list", "watch")
_ISTIO_GROUPS = (
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
)
_ISTIO_1_4_GROUPS = ("config.istio.io", "authentication.istio.io", "rbac.istio.io")
_GATEWAY_API = "gateway.networking.k8s.io"
_OWN = "meshbus.io"


class Rule(NamedTuple):
    """A rule of RBAC: `verbs` on `resources` of `groups`."""

    service: str
    """`config`, `discovery` or `ca`."""
    scope: str
    """`CLUSTER`, `ALWAYS_CLUSTER`, `ROOT`, `MACHINES`, `SIGNER_KUBERNETES` or
    `SIGNER_CERT_MANAGER`."""
    groups: tuple[str, ...]
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    why: str
    names: tuple[str, ...] = ()
    """Only objects of these names; empty: all. `{revision}` stands for `-REVISION`, empty for the
    default revision; `{signer}` for the name of the signer."""
    paths: tuple[str, ...] = ()
    """Instead of resources: paths of the API server."""


PERMISSIONS = (
    # ---------------------------------------------------------------- discovery
    Rule(
        "discovery",
        CLUSTER,
        ("",),
        ("services", "pods"),
        ("list", "watch"),
        "what can be called, and what a proxy is",
    ),
    Rule(
        "discovery",
        CLUSTER,
        ("discovery.k8s.io",),
        ("endpointslices",),
        ("list", "watch"),
        "addresses behind services",
    ),
    Rule(
        "discovery",
        ALWAYS_CLUSTER,
        ("",),
        ("nodes",),
        ("list", "watch"),
        "region and zone of the pods on a node; addresses of nodes, for gateways of networks whose "
        "Service is of type NodePort",
    ),
    Rule(
        "discovery",
        ALWAYS_CLUSTER,
        ("",),
        ("namespaces",),
        ("list", "watch"),
        "labels of namespaces: network, discoverySelectors",
    ),
    # ---------------------------------------------------------------- config
    Rule(
        "config",
        CLUSTER,
        (*_ISTIO_GROUPS, *_ISTIO_1_4_GROUPS, _GATEWAY_API, _OWN),
        ("*",),
        _READ,
        "the config of the mesh",
    ),
    Rule(
        "config",
        ALWAYS_CLUSTER,
        (_OWN, "authentication.istio.io", "rbac.istio.io", _GATEWAY_API),
        ("tenants", "meshpolicies", "clusterrbacconfigs", "gatewayclasses"),
        _READ,
        "kinds of the mesh that are in no namespace",
    ),
    Rule(
        "config",
        ROOT,
        ("",),
        ("configmaps",),
        _READ,
        "the mesh config",
        ("istio{revision}",),
    ),
    Rule(
        "config",
        CLUSTER,
        (*_ISTIO_GROUPS, _GATEWAY_API, _OWN),
        ("*/status",),
        ("patch", "update"),
        "conditions of the config of the mesh",
    ),
    Rule(
        "config",
        CLUSTER,
        ("networking.k8s.io",),
        ("ingresses",),
        _READ,
        "routes of gateways written as Ingress",
    ),
    Rule(
        "config",
        CLUSTER,
        ("networking.k8s.io",),
        ("ingresses/status",),
        ("patch", "update"),
        "the address at which an Ingress is served",
    ),
    Rule(
        "config",
        ROOT,
        ("",),
        ("services",),
        _READ,
        "the address of the Service before the gateways, for the statuses of Ingress objects",
    ),
    Rule(
        "config",
        ALWAYS_CLUSTER,
        ("networking.k8s.io",),
        ("ingressclasses",),
        _READ,
        "whether an Ingress is ours",
    ),
    Rule(
        "config",
        CLUSTER,
        ("",),
        ("secrets", "configmaps"),
        _READ,
        "certificates, keys and authorities that objects name: each is read and watched by its "
        "name, and of a ConfigMap the authorities alone are kept",
    ),
    Rule(
        "config",
        CLUSTER,
        ("",),
        ("configmaps",),
        ("create",),
        "what proxies start with, in each namespace: RBAC cannot limit creation by name",
    ),
    Rule(
        "config",
        CLUSTER,
        ("",),
        ("configmaps",),
        ("patch",),
        "the roots of the mesh and the files of Envoy's bootstrap, in each namespace",
        ("meshbus-proxy{revision}", "meshbus-ca-root-cert"),
    ),
    Rule(
        "config",
        ALWAYS_CLUSTER,
        ("",),
        ("namespaces",),
        _READ,
        "labels of namespaces: injection, discoverySelectors",
    ),
    Rule(
        "config",
        ALWAYS_CLUSTER,
        ("apiextensions.k8s.io",),
        ("customresourcedefinitions",),
        _READ,
        "which kinds the cluster has: a kind without a definition is not followed",
    ),
    Rule(
        "config",
        ALWAYS_CLUSTER,
        ("admissionregistration.k8s.io",),
        ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"),
        ("get", "list", "watch", "patch"),
        "the CA that the API server trusts our webhooks by, after each rotation",
    ),
    Rule(
        "config",
        ALWAYS_CLUSTER,
        ("authentication.k8s.io",),
        ("tokenreviews",),
        ("create",),
        "who calls the API of the mesh",
    ),
    Rule(
        "config",
        ALWAYS_CLUSTER,
        ("authorization.k8s.io",),
        ("subjectaccessreviews",),
        ("create",),
        "whether who calls the API of the mesh may",
    ),
    Rule(
        "config",
        ROOT,
        ("coordination.k8s.io",),
        ("leases",),
        ("get", "update"),
        "which replica writes",
        ("meshbus-config{revision}",),
    ),
    Rule(
        "config",
        ROOT,
        ("coordination.k8s.io",),
        ("leases",),
        ("create",),
        "which replica writes: RBAC cannot limit the creation of an object by name",
    ),
    Rule(
        "config",
        MACHINES,
        ("networking.istio.io",),
        ("workloadentries",),
        ("create", "patch", "delete"),
        "entries of machines that join by a WorkloadGroup",
    ),
    # ---------------------------------------------------------------- ca
    Rule(
        "ca",
        ALWAYS_CLUSTER,
        (),
        (),
        ("get",),
        "the keys that tokens of pods are checked with; every account may read them by default",
        paths=("/.well-known/openid-configuration", "/openid/v1/jwks"),
    ),
    Rule(
        "ca",
        ALWAYS_CLUSTER,
        ("authentication.k8s.io",),
        ("tokenreviews",),
        ("create",),
        "whether the token of a pod still holds, with the setting `token_review`",
    ),
    Rule(
        "ca",
        SIGNER_KUBERNETES,
        ("certificates.k8s.io",),
        ("certificatesigningrequests",),
        ("create", "get", "delete"),
        "certificates of workloads, by a signer of the cluster",
    ),
    Rule(
        "ca",
        SIGNER_KUBERNETES,
        ("certificates.k8s.io",),
        ("certificatesigningrequests/approval",),
        ("update",),
        "the ca has checked who asks: it approves its own requests",
    ),
    Rule(
        "ca",
        SIGNER_KUBERNETES,
        ("certificates.k8s.io",),
        ("signers",),
        ("approve",),
        "of that signer alone",
        ("{signer}",),
    ),
    Rule(
        "ca",
        SIGNER_CERT_MANAGER,
        ("cert-manager.io",),
        ("certificaterequests",),
        ("create", "get", "delete"),
        "certificates of workloads, by an issuer of cert-manager",
    ),
)


def rules_of(
    service: str, scope: str, revision: str = "", *, keep_placeholder: bool = False
) -> list[dict[str, Any]]:
    """The rules of a service in a scope, as they stand in a Role or ClusterRole.

    Args:
        revision: Name of the revision; empty or `default`: the default one.
        keep_placeholder: `{revision}` in names stays, for the chart.
    """
    suffix = f"-{revision}" if revision and revision != "default" else ""
    if keep_placeholder:
        suffix = "{revision}"
    found = []
    for rule in PERMISSIONS:
        if (rule.service, rule.scope) != (service, scope):
            continue
        one: dict[str, Any] = {"verbs": list(rule.verbs)}
        if rule.paths:
            one["nonResourceURLs"] = list(rule.paths)
        else:
            one |= {"apiGroups": list(rule.groups), "resources": list(rule.resources)}
        if rule.names:
            one["resourceNames"] = [name.replace("{revision}", suffix) for name in rule.names]
        found.append(one)
    return found


def services_with_access() -> Iterable[str]:
    """Services that talk to the API server, and need a token of it."""
    return dict.fromkeys(rule.service for rule in PERMISSIONS)
