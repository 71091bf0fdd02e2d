"""Probes and hooks of the application, brought to the proxy and back.

The kubelet cannot speak mutual TLS, so its probes go to the proxy, which asks the application.
What they were is kept in a variable of the proxy's container, under Istio's name, from which they
are taken when the pod is injected again.
Source: https://istio.io/latest/docs/ops/configuration/mesh/app-health-check/
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from meshbus.inject.status_listener import Prober

PROBERS_VARIABLE = "ISTIO_KUBE_APP_PROBERS"
PROXY = "istio-proxy"
_PROBES = {"readinessProbe": "readyz", "livenessProbe": "livez", "startupProbe": "startupz"}
_HOOKS = {"preStop": "prestopz", "postStart": "poststartz"}
_ACTIONS = ("httpGet", "tcpSocket", "grpc")


def rewrite_probes(pod: dict[str, Any], port: int) -> dict[str, dict[str, Any]]:
    """Turn the probes of a pod's containers to a port of the proxy, in place.

    Returns:
        What they were, by the path they have there: `{"httpGet": {...}, "timeoutSeconds": 1}`.
    """
    originals: dict[str, dict[str, Any]] = {}
    for container in _probed(pod):
        named = {
            str(item.get("name")): item.get("containerPort")
            for item in container.get("ports") or ()
            if item.get("name")
        }
        for field, path in _places(container):
            holder, key = _holder(container, field)
            probe = holder.get(key)
            if not isinstance(probe, Mapping):
                continue
            original = _original(probe, named, hook=key in _HOOKS)
            if original is None:
                continue
            originals[path] = original
            holder[key] = _turned(probe, path, port)
    return originals


def restore_probes(pod: dict[str, Any], originals: Mapping[str, Any]) -> None:
    """Undo `rewrite_probes`, in place."""
    for container in _probed(pod):
        for field, path in _places(container):
            original = originals.get(path)
            holder, key = _holder(container, field)
            probe = holder.get(key)
            turned = isinstance(probe, Mapping) and (probe.get("httpGet") or {}).get("path") == path
            if not turned or not isinstance(original, Mapping) or not isinstance(probe, Mapping):
                continue
            kept = {name: value for name, value in probe.items() if name not in _ACTIONS}
            actions = {name: original[name] for name in _ACTIONS if name in original}
            holder[key] = {**actions, **kept}


def probers_of(originals: Mapping[str, Mapping[str, Any]]) -> dict[str, Prober]:
    """What the proxy has to ask, by path."""
    probers = {}
    for path, original in originals.items():
        timeout = int(original.get("timeoutSeconds") or 1)
        if http := original.get("httpGet"):
            scheme = "https" if str(http.get("scheme") or "").upper() == "HTTPS" else "http"
            probers[path] = Prober(
                scheme, http["port"], str(http.get("path") or "/"), timeout_s=timeout
            )
        elif tcp := original.get("tcpSocket"):
            probers[path] = Prober("tcp", tcp["port"], timeout_s=timeout)
        elif grpc := original.get("grpc"):
            service = str(grpc.get("service") or "")
            probers[path] = Prober("grpc", grpc["port"], service=service, timeout_s=timeout)
    return probers


def probers_text(originals: Mapping[str, Any]) -> str:
    """The value of the variable."""
    return json.dumps(originals, sort_keys=True, separators=(",", ":"))


def _probed(pod: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    spec = pod.get("spec") or {}
    for container in spec.get("containers") or ():
        if container.get("name") != PROXY:
            yield container
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always" and container.get("name") != PROXY:
            yield container


def _places(container: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name = container.get("name")
    for field, word in _PROBES.items():
        yield field, f"/app-health/{name}/{word}"
    for field, word in _HOOKS.items():
        yield f"lifecycle.{field}", f"/app-lifecycle/{name}/{word}"


def _holder(container: dict[str, Any], field: str) -> tuple[dict[str, Any], str]:
    parent, dot, key = field.rpartition(".")
    if not dot:
        return container, field
    held = container.get(parent)
    return (held if isinstance(held, dict) else {}), key


def _original(
    probe: Mapping[str, Any], named: Mapping[str, Any], *, hook: bool
) -> dict[str, Any] | None:
    """The action with its port as a number; None if it stays as it is: a command, another host, a
    port that no container has, and what is no probe."""
    for name in _ACTIONS[: 1 if hook else 3]:
        action = probe.get(name)
        if not isinstance(action, Mapping):
            continue
        if action.get("host"):
            return None
        port = action.get("port")
        if isinstance(port, str):
            port = int(port) if port.isascii() and port.isdigit() else named.get(port)
        if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
            return None
        original: dict[str, Any] = {name: {**action, "port": port}}
        if probe.get("timeoutSeconds"):
            original["timeoutSeconds"] = probe["timeoutSeconds"]
        return original
    return None


def _turned(probe: Mapping[str, Any], path: str, port: int) -> dict[str, Any]:
    turned = {name: value for name, value in probe.items() if name not in _ACTIONS}
    http: dict[str, Any] = {"path": path, "port": port}
    held = probe.get("httpGet")
    if isinstance(held, Mapping):
        http = {**held, **http}
        if str(held.get("scheme") or "").upper() == "HTTPS":
            http["scheme"] = "HTTP"
    return {"httpGet": http, **turned}
