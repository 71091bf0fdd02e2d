"""Injection at admission: a pod that is about to be created, the patch that makes it one of the
mesh. Pure.

Source: https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from meshbus.inject.documents import check_pod
from meshbus.inject.openshift import Identity
from meshbus.inject.pod import Injector
from meshbus.inject.proxy_configs import NO_WISHES, ProxyWishes
from meshbus.inject.workloads import owner_of_pod
from meshbus.model.rows import ConfigObject

Operation = dict[str, Any]
_SLASH = "--slash--"
_PAIR = ":ENV:"
_KNOWN = {"cluster": "ISTIO_META_CLUSTER_ID", "net": "ISTIO_META_NETWORK"}


class PodAdmission(NamedTuple):
    """What is said of a pod."""

    patch: list[Operation]
    """RFC 6902; empty: the pod stays as it is."""
    warnings: list[str]
    reason: str = ""
    """Why it stays as it is."""


def admit_pod(
    injector: Injector,
    pod: Mapping[str, Any],
    namespace: str,
    *,
    path: str = "/inject",
    wishes: ProxyWishes = NO_WISHES,
    identity: Identity | None = None,
    envoy_filters: Sequence[ConfigObject] = (),
) -> PodAdmission:
    """The patch of a pod.

    Args:
        namespace: Of the request: a pod need not say its own.
        path: Path the webhook was called at; it may name cluster and network.
        wishes: What ProxyConfig objects say of the pod.
        identity: User and group of the proxy, where they must be others than 1337.
        envoy_filters: EnvoyFilters, of whatever namespace: they may patch the bootstrap.

    Raises:
        InjectionError: The pod says something that cannot be done.
    """
    check_pod(pod, "")
    decision = injector.decide(pod, namespace)
    if not decision.inject:
        return PodAdmission([], [], decision.reason)
    variables = path_variables(path)
    # Long, and no part of what is injected.
    written = {name: value for name, value in pod.items() if name != "status"}
    metadata = dict(written.get("metadata") or {})
    metadata.pop("managedFields", None)
    written["metadata"] = metadata
    injected = injector.inject(
        written,
        owner_of_pod(written, namespace),
        wishes=wishes,
        cluster=variables.pop("ISTIO_META_CLUSTER_ID", ""),
        network=variables.pop("ISTIO_META_NETWORK", ""),
        variables=variables,
        identity=identity,
        envoy_filters=envoy_filters,
    )
    return PodAdmission(json_patch(written, injected.pod), injected.warnings)


def path_variables(path: str) -> dict[str, str]:
    """Variables that the path of a webhook sets: `/inject/cluster/NAME/net/NAME/KEY/VALUE...`.

    `--slash--` in a value is a slash. Source: Istio, `injectionURL`.
    """
    _, _, rest = path.removeprefix("/").rstrip("/").partition("/")
    if rest.startswith(_PAIR):
        pairs = [part.partition("=") for part in rest.split(_PAIR)[1:]]
        found = [(name, value) for name, equals, value in pairs if name and equals]
    else:
        words = rest.split("/") if rest else []
        found = [
            (name, value.replace(_SLASH, "/"))
            for name, value in zip(words[::2], words[1::2], strict=False)
        ]
    return {_KNOWN.get(name, name.upper()): value for name, value in found if name}


def json_patch(before: Any, after: Any, path: str = "") -> list[Operation]:
    """What turns one document into the other. Lists of the same length are compared item by item;
    others are replaced as a whole."""
    if _same(before, after):
        return []
    patch: list[Operation] = []
    if isinstance(before, dict) and isinstance(after, dict):
        patch.extend(
            {"op": "remove", "path": f"{path}/{_pointer(name)}"}
            for name in before
            if name not in after
        )
        for name, value in after.items():
            if name not in before:
                patch.append({"op": "add", "path": f"{path}/{_pointer(name)}", "value": value})
            # Most values are the same: their paths are not made.
            elif not _same(before[name], value):
                patch += json_patch(before[name], value, f"{path}/{_pointer(name)}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (held, wanted) in enumerate(zip(before, after, strict=True)):
            if not _same(held, wanted):
                patch += json_patch(held, wanted, f"{path}/{index}")
    else:
        patch.append({"op": "replace", "path": path, "value": after})
    return patch


def _same(before: Any, after: Any) -> bool:
    """Whether two single values are one. Python takes true for 1, also within lists and objects:
    only single values of one type are compared."""
    if before is after:
        return True
    kind = type(before)
    return kind is type(after) and kind is not dict and kind is not list and before == after


def _pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
