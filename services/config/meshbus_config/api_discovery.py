"""What kubectl asks first: which groups, versions and kinds there are. Pure.

Source: https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api
"""

import platform
from typing import Any

from meshbus.api.kinds import KindInfo, all_kinds, groups
from meshbus_config.documents import api_version_of

VERBS = (
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
)
STATUS_VERBS = ("get", "patch", "update")
KUBERNETES_MINOR = 32
"""The Kubernetes whose API conventions are followed; kubectl compares it with its own."""


def version_document(version: str) -> dict[str, Any]:
    """`/version`."""
    return {
        "major": "1",
        "minor": str(KUBERNETES_MINOR),
        "gitVersion": f"v1.{KUBERNETES_MINOR}.0+meshbus.{version}",
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "",
        "compiler": f"python{platform.python_version()}",
        "platform": f"{platform.system().lower()}/{platform.machine()}",
    }


def core_versions(address: str) -> dict[str, Any]:
    """`/api`."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def _versions(group: str, versions: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]


def group_document(group: str) -> dict[str, Any] | None:
    """`/apis/<group>`; None if there is no such group."""
    versions = groups().get(group)
    if not group or versions is None:
        return None
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": group,
        "versions": _versions(group, versions),
        "preferredVersion": _versions(group, versions)[0],
    }


def group_list() -> dict[str, Any]:
    """`/apis`."""
    found = [group_document(group) for group in groups() if group]
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {name: value for name, value in group.items() if name not in ("kind", "apiVersion")}
            for group in found
            if group is not None
        ],
    }


def _served(group: str, version: str) -> list[KindInfo]:
    return [info for info in all_kinds() if info.group == group and version in info.versions]


def resource_list(group: str, version: str) -> dict[str, Any] | None:
    """`/apis/<group>/<version>` and `/api/v1`; None if nothing is served there."""
    resources: list[dict[str, Any]] = []
    for info in _served(group, version):
        resource: dict[str, Any] = {
            "name": info.plural,
            "singularName": info.singular,
            "namespaced": info.namespaced,
            "kind": info.kind,
            "verbs": list(VERBS),
        }
        if info.short_names:
            resource["shortNames"] = list(info.short_names)
        if info.categories:
            resource["categories"] = list(info.categories)
        resources.append(resource)
        if info.has_status:
            resources.append(
                {
                    "name": f"{info.plural}/status",
                    "singularName": "",
                    "namespaced": info.namespaced,
                    "kind": info.kind,
                    "verbs": list(STATUS_VERBS),
                }
            )
    if not resources:
        return None
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": resources,
    }


def aggregated(*, core: bool, version: str) -> dict[str, Any]:
    """`/api` or `/apis` in one document (`APIGroupDiscoveryList` of `version`)."""
    items = []
    for group, versions in groups().items():
        if core is bool(group):
            continue
        items.append(
            {
                "metadata": {"name": group, "creationTimestamp": None},
                "versions": [
                    {
                        "version": served,
                        "resources": [_aggregated(info, served) for info in _served(group, served)],
                        "freshness": "Current",
                    }
                    for served in versions
                ],
            }
        )
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": items,
    }


def _aggregated(info: KindInfo, version: str) -> dict[str, Any]:
    kind = {"group": info.group, "version": version, "kind": info.kind}
    resource: dict[str, Any] = {
        "resource": info.plural,
        "responseKind": kind,
        "scope": "Namespaced" if info.namespaced else "Cluster",
        "singularResource": info.singular,
        "verbs": list(VERBS),
    }
    if info.short_names:
        resource["shortNames"] = list(info.short_names)
    if info.categories:
        resource["categories"] = list(info.categories)
    if info.has_status:
        resource["subresources"] = [
            {"subresource": "status", "responseKind": kind, "verbs": list(STATUS_VERBS)}
        ]
    return resource


def openapi_paths() -> dict[str, str]:
    """Paths of `/openapi/v3`: group and version by the path of their document."""
    return {
        (f"apis/{group}/{version}" if group else f"api/{version}"): api_version
        for group, versions in groups().items()
        for version in versions
        if (api_version := f"{group}/{version}" if group else version)
    }


def list_document(
    info: KindInfo, version: str, items: list[dict[str, Any]], metadata: dict[str, Any]
) -> dict[str, Any]:
    """A list of objects."""
    return {
        "kind": info.list_kind,
        "apiVersion": api_version_of(info, version),
        "metadata": metadata,
        "items": items,
    }
