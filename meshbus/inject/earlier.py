"""An injected pod as it was before, and what people changed of what is injected.

Injecting a pod again must give what injecting it once gives, with today's settings. So what was
added, which is on record in annotations and in variables of the proxy, is taken out first.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from meshbus.inject import annotations as a
from meshbus.inject.errors import InjectionError
from meshbus.inject.merge import copied
from meshbus.inject.probes import PROBERS_VARIABLE, restore_probes
from meshbus.inject.scrape import SCRAPE_VARIABLE, restore_scraping

AUTO_IMAGE = "auto"
"""The image of a container that is only there to change what is injected."""
_LISTS = ("containers", "initContainers")

_CONTAINER_ORDER = (
    "name", "image", "command", "args", "workingDir", "ports", "envFrom", "env", "resources",
    "resizePolicy", "restartPolicy", "volumeMounts", "volumeDevices", "livenessProbe",
    "readinessProbe", "startupProbe", "lifecycle", "terminationMessagePath",
    "terminationMessagePolicy", "imagePullPolicy", "securityContext", "stdin", "stdinOnce", "tty",
    # of parts
    "limits", "requests", "exec", "httpGet", "tcpSocket", "grpc", "path", "port", "host", "scheme",
    "initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold",
    "failureThreshold", "postStart", "preStop", "capabilities", "privileged", "seLinuxOptions",
    "runAsUser", "runAsGroup", "runAsNonRoot", "readOnlyRootFilesystem",
    "allowPrivilegeEscalation", "procMount", "seccompProfile", "mountPath", "subPath",
)  # fmt: skip
_RANK = {name: rank for rank, name in enumerate(_CONTAINER_ORDER)}


def injected_before(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The record of an earlier injection; None if there is none that can be read."""
    text = (pod.get("metadata") or {}).get("annotations", {}) or {}
    try:
        status = json.loads(text.get(a.STATUS) or "null")
    except (ValueError, TypeError):
        return None
    return status if isinstance(status, dict) else None


def before_injection(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The pod without an earlier injection; a copy in any case."""
    restored = {name: copied(value) for name, value in pod.items()}
    status = injected_before(restored)
    metadata = restored.setdefault("metadata", {})
    spec = restored.setdefault("spec", {})
    metadata["annotations"] = notes = dict(metadata.get("annotations") or {})
    notes.pop(a.PROXY_TYPE, None)
    if status is None:
        # Overrides may also be written by hand.
        _put_back(spec, notes)
        return restored
    variables = _variables(spec)
    for field in _LISTS:
        _take(spec, field, _names(status, field))
    user = _object(notes.get(a.USER_VOLUME)).keys()
    _take(spec, "volumes", [*_names(status, "volumes"), *sorted(user)])
    # Secrets that the pod had itself are not told apart: they stay, and are merged again.
    notes.pop(a.STATUS, None)
    _put_back(spec, notes)
    restore_probes(restored, _object(variables.get(PROBERS_VARIABLE)))
    restore_scraping(notes, _json(variables.get(SCRAPE_VARIABLE)))
    return restored


def _put_back(spec: dict[str, Any], notes: dict[str, str]) -> None:
    """The containers that people changed are theirs again."""
    for field, containers in _overridden(notes).items():
        held = {c.get("name") for f in _LISTS for c in spec.get(f) or ()}
        added = [c for c in containers if c.get("name") not in held]
        if added:
            spec[field] = [*(spec.get(field) or ()), *added]
    notes.pop(a.OVERRIDES, None)


def overridden_containers(
    pod: Mapping[str, Any], overlay: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The containers of a pod that a template has too, where the template has them, in the form
    the API server writes them in."""
    written = {str(c.get("name")): c for f in _LISTS for c in (pod.get("spec") or {}).get(f) or ()}
    found: dict[str, list[dict[str, Any]]] = {}
    for field in _LISTS:
        names = dict.fromkeys(str(c.get("name")) for c in overlay["spec"].get(field) or ())
        changes = [_change(written[name]) for name in names if name in written]
        if changes:
            found[field] = changes
    return found


def overrides_text(overrides: Mapping[str, list[dict[str, Any]]]) -> str:
    """The annotation."""
    document = {field: overrides[field] for field in _LISTS if field in overrides}
    return json.dumps(document, separators=(",", ":"))


def _change(container: Mapping[str, Any]) -> dict[str, Any]:
    change: dict[str, Any] = _ordered({"resources": {}, **container})
    if change.get("image") == AUTO_IMAGE:
        del change["image"]
    return change


def _ordered(value: Any, *, quantities: bool = False) -> Any:
    if isinstance(value, Mapping):
        names = sorted(value, key=lambda name: (_RANK.get(name, len(_RANK)), name))
        return {
            name: _ordered(value[name], quantities=quantities or name in ("limits", "requests"))
            for name in names
        }
    if isinstance(value, list):
        return [_ordered(item) for item in value]
    return _canonical(value) if quantities else value


def _canonical(quantity: Any) -> str:
    """A quantity in its shortest form: `3` for `3000m`."""
    text = str(quantity)
    if text.endswith("m") and text[:-1].isdigit() and int(text[:-1]) % 1000 == 0:
        return str(int(text[:-1]) // 1000)
    return text


def _overridden(notes: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    text = notes.get(a.OVERRIDES)
    if text is None:
        return {}
    held = _json(text)
    if not isinstance(held, dict):
        raise InjectionError(f"metadata.annotations[{a.OVERRIDES}]", "is not a JSON object")
    found = {}
    for field in _LISTS:
        containers = held.get(field) or []
        if not isinstance(containers, list) or not all(
            isinstance(c, dict) and isinstance(c.get("name"), str) for c in containers
        ):
            place = f"metadata.annotations[{a.OVERRIDES}]"
            raise InjectionError(place, f"{field}: must be a list of containers")
        found[field] = [_with_image(container) for container in containers]
    return found


def _with_image(container: dict[str, Any]) -> dict[str, Any]:
    return container if container.get("image") else {**container, "image": AUTO_IMAGE}


def _object(text: Any) -> dict[str, Any]:
    """A JSON object; empty if it is something else."""
    held = _json(text)
    return held if isinstance(held, dict) else {}


def _json(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _names(status: Mapping[str, Any], field: str) -> list[str]:
    names = status.get(field)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _take(spec: dict[str, Any], field: str, names: list[str]) -> None:
    held = spec.get(field)
    if not isinstance(held, list):
        return
    left = [item for item in held if item.get("name") not in names]
    if left or field == "containers":
        spec[field] = left
    else:
        del spec[field]


def _variables(spec: Mapping[str, Any]) -> dict[str, str]:
    return {
        str(variable.get("name")): variable.get("value", "")
        for container in _proxies(spec)
        for variable in container.get("env") or ()
    }


def _proxies(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for field in _LISTS:
        for container in spec.get(field) or ():
            if container.get("name") == "istio-proxy":
                yield container
