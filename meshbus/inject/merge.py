"""Strategic merge of a pod with an overlay, as the API server does it for pods.

Source: https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/
and the merge keys of https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.34/#podspec-v1-core
"""

from collections.abc import Mapping
from typing import Any

MERGE_KEYS: dict[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "ownerReferences": "uid",
}
"""Lists whose items are merged, and by which field; every other list is replaced."""
_UNIONS = frozenset({"finalizers", "searches"})
"""Lists of words that are added to. DNS search domains are replaced by the API server; here they
are added to, as the pod's own would be lost otherwise."""
_ONE_SOURCE = frozenset({"volumes"})
"""Items that hold one of several fields: another one replaces it."""


def merge_pod(pod: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """The pod with the overlay merged into it; neither is changed. Objects in them are dicts."""
    merged = dict(pod)
    for key, value in overlay.items():
        if key.startswith("$"):
            continue
        held = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            if value.get("$patch") == "delete":
                merged.pop(key, None)
            elif value.get("$patch") == "replace" or not isinstance(held, dict):
                merged[key] = merge_pod({}, value)
            else:
                merged[key] = merge_pod(held, value)
        elif isinstance(value, list):
            merged[key] = _merge_list(key, held if isinstance(held, list) else [], value)
        else:
            merged[key] = value
    return merged


def _merge_list(name: str, held: list[Any], over: list[Any]) -> list[Any]:
    if name in _UNIONS:
        return [*held, *(item for item in over if item not in held)]
    key = MERGE_KEYS.get(name)
    if key is None or not all(isinstance(item, dict) for item in (*held, *over)):
        return list(over)
    if any(item.get("$patch") == "replace" for item in over):
        held = []
    merged = list(held)
    for item in over:
        patch, wanted = item.get("$patch"), item.get(key)
        if patch == "replace":
            continue
        if patch == "delete":
            merged = [other for other in merged if other.get(key) != wanted]
            continue
        place = next((at for at, other in enumerate(merged) if other.get(key) == wanted), -1)
        if place < 0:
            merged.append(merge_pod({}, item))
        elif name in _ONE_SOURCE and set(item) - {key}:
            merged[place] = _one_source(merged[place], item, key)
        else:
            merged[place] = merge_pod(merged[place], item)
    return merged


def copied(value: Any) -> Any:
    """A copy of a document: its objects and lists are others, what they hold is the same."""
    if isinstance(value, dict):
        return {name: copied(item) for name, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def _one_source(held: Mapping[str, Any], over: Mapping[str, Any], key: str) -> dict[str, Any]:
    if set(held) & (set(over) - {key}):
        return merge_pod(held, over)
    return merge_pod({key: held.get(key)}, over)
