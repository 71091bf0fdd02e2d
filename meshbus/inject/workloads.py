"""Where pods are in the objects that people write, and whose they are."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_TEMPLATE: tuple[str, ...] = ("spec", "template")
POD_TEMPLATES: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "Pod"): (),
    ("", "ReplicationController"): _TEMPLATE,
    ("", "PodTemplate"): ("template",),
    ("apps", "Deployment"): _TEMPLATE,
    ("apps", "StatefulSet"): _TEMPLATE,
    ("apps", "DaemonSet"): _TEMPLATE,
    ("apps", "ReplicaSet"): _TEMPLATE,
    ("extensions", "Deployment"): _TEMPLATE,
    ("extensions", "DaemonSet"): _TEMPLATE,
    ("extensions", "ReplicaSet"): _TEMPLATE,
    ("batch", "Job"): _TEMPLATE,
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
    ("apps.openshift.io", "DeploymentConfig"): _TEMPLATE,
    ("", "DeploymentConfig"): _TEMPLATE,
}
"""Path of the pod template by (API group, kind)."""
_CRON_SUFFIX = re.compile(r"-\d{8,}$")
_LONGEST_LABEL = 63


class Owner(NamedTuple):
    """The workload a pod belongs to."""

    api_version: str
    kind: str
    name: str
    namespace: str

    @property
    def label(self) -> str:
        """Its name as the value of a label: at most 63 characters."""
        return self.name[:_LONGEST_LABEL].rstrip("-_.")

    @property
    def uri(self) -> str:
        """`kubernetes://apis/GROUP/VERSION/namespaces/NAMESPACE/KINDs/NAME`, as Istio's."""
        namespace = self.namespace or "default"
        kinds = f"{self.kind.lower()}s"
        return f"kubernetes://apis/{self.api_version}/namespaces/{namespace}/{kinds}/{self.name}"


def template_path(document: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Where the pod template of an object is; None if it has none."""
    version, kind = document.get("apiVersion"), document.get("kind")
    if not isinstance(version, str) or not isinstance(kind, str):
        return None
    group = version.rpartition("/")[0]
    return POD_TEMPLATES.get((group, kind))


def owner_of_document(document: Mapping[str, Any], namespace: str) -> Owner:
    """The workload that an object with a pod template is; for a Pod, whose it is."""
    if document.get("kind") == "Pod":
        return owner_of_pod(document, namespace)
    metadata = document.get("metadata") or {}
    name = str(metadata.get("name") or metadata.get("generateName") or "")
    return Owner(str(document["apiVersion"]), str(document["kind"]), name, namespace)


def owner_of_pod(pod: Mapping[str, Any], namespace: str) -> Owner:
    """The workload of a pod: what its controller belongs to, as far as names tell.

    A ReplicaSet is its Deployment's, a Job its CronJob's, a ReplicationController of OpenShift its
    DeploymentConfig's. Source: Istio, `GetDeployMetaFromPod`.
    """
    metadata = pod.get("metadata") or {}
    own = Owner("v1", "Pod", _pod_name(metadata), namespace)
    prefix = str(metadata.get("generateName") or "")
    if not prefix:
        # Without a controller, or of one that names pods itself (StatefulSets set both).
        controllers = []
    controllers = [
        ref
        for ref in metadata.get("ownerReferences") or []
        if isinstance(ref, Mapping) and ref.get("controller")
    ]
    if len(controllers) != 1 or not prefix:
        return own
    reference = controllers[0]
    owner = Owner(
        str(reference.get("apiVersion") or ""),
        str(reference.get("kind") or ""),
        str(reference.get("name") or ""),
        namespace,
    )
    labels = metadata.get("labels") or {}
    if owner.kind == "ReplicaSet":
        hashed = str(labels.get("pod-template-hash") or "")
        if hashed and owner.name.endswith(f"-{hashed}"):
            name = owner.name.removesuffix(f"-{hashed}")
            group = "argoproj.io/v1alpha1" if "rollouts-pod-template-hash" in labels else "apps/v1"
            kind = "Rollout" if group.startswith("argoproj") else "Deployment"
            return Owner(group, kind, name, namespace)
        rollout = str(labels.get("rollouts-pod-template-hash") or "")
        if rollout and owner.name.endswith(f"-{rollout}"):
            name = owner.name.removesuffix(f"-{rollout}")
            return Owner("argoproj.io/v1alpha1", "Rollout", name, namespace)
    elif owner.kind == "ReplicationController":
        config = str(labels.get("deploymentconfig") or "")
        if config and owner.name.startswith(f"{config}-"):
            return Owner("apps.openshift.io/v1", "DeploymentConfig", config, namespace)
    elif owner.kind == "Job" and _CRON_SUFFIX.search(owner.name):
        return Owner("batch/v1", "CronJob", _CRON_SUFFIX.sub("", owner.name), namespace)
    return owner


def _pod_name(metadata: Mapping[str, Any]) -> str:
    name = str(metadata.get("name") or "")
    return name or str(metadata.get("generateName") or "").removesuffix("-")
