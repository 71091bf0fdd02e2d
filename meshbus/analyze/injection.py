"""Injection: namespaces, pods without their proxy, images.

Source: Istio, analysis messages IST0102, IST0103, IST0123, IST0146, IST0147, IST0148, IST0158.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from meshbus.analyze.messages import Message, about
from meshbus.analyze.objects import (
    SYSTEM_NAMESPACE,
    WEBHOOKS,
    Object,
    Objects,
    containers,
    record,
    records,
    strings,
    text,
)
from meshbus.api.selectors import matches_selector

_LABEL, _REVISION, _INJECT = "istio-injection", "istio.io/rev", "sidecar.istio.io/inject"
_PROXY, _AUTO = "istio-proxy", "auto"
_CONFIG = "istio-sidecar-injector"


def namespaces(objects: Objects) -> Iterator[Message]:
    """Each namespace says whether its pods have sidecars, and pods have them where it says so."""
    injected: set[str] = set()
    for one in objects.of("", "Namespace"):
        if one.name == SYSTEM_NAMESPACE or one.labels.get("istio.io/dataplane-mode") == "ambient":
            continue
        old, revision = one.labels.get(_LABEL, ""), one.labels.get(_REVISION)
        if revision is None and not old:
            if record(_values(objects, "").get("sidecarInjectorWebhook")).get(
                "enableNamespacesByDefault"
            ):
                message = "pods have sidecars: injection is enabled for namespaces by default"
                yield about(one, "IST0148", message, "metadata.labels")
            else:
                message = (
                    f"pods have no sidecars; {_LABEL}=enabled, or =disabled, says what is meant"
                )
                yield about(one, "IST0102", message, "metadata.labels")
        elif revision is not None and old:
            message = (
                f"labels {_LABEL} and {_REVISION} say the same twice: only one should be there"
            )
            yield about(one, "IST0123", message, f"metadata.labels[{_LABEL}]")
        elif revision is not None or old == "enabled":
            injected.add(one.name)
    for one in objects.of("", "Pod"):
        if one.namespace not in injected:
            continue
        wish = one.labels.get(_INJECT, one.annotations.get(_INJECT, ""))
        if wish.lower() == "false" or one.spec.get("hostNetwork") is True:
            continue
        if not any(c.get("name") == _PROXY and c.get("image") for c in containers(one.spec)):
            yield about(one, "IST0103", f"pod {one.full_name} has no proxy: it must be made anew")


def _values(objects: Objects, revision: str) -> Mapping[str, Any]:
    """Values of the injector, of a revision."""
    name = _CONFIG if revision in ("", "default") else f"{_CONFIG}-{revision}"
    for one in objects.of("", "ConfigMap"):
        if one.name == name:
            try:
                return record(
                    msgspec.json.decode(text(record(one.content.get("data")).get("values")))
                )
            except msgspec.DecodeError:
                return {}
    return {}


def images(objects: Objects) -> Iterator[Message]:
    """Proxies that run are those that would be injected now."""
    for one in objects.of("", "Namespace"):
        revision = one.labels.get(_REVISION)
        if revision is None and one.labels.get(_LABEL) != "enabled":
            continue
        wanted = _image(_values(objects, revision or ""))
        if not wanted:
            continue
        stale = [
            pod.name
            for pod in objects.of("", "Pod")
            if pod.namespace == one.name
            and not pod.annotations.get("sidecar.istio.io/proxyImage")
            and any(
                c.get("name") == _PROXY and not _is_variant(text(c.get("image")), wanted)
                for c in containers(pod.spec)
            )
        ]
        if stale:
            message = f"proxies of {', '.join(stale)} are not {wanted}: the pods must be made anew"
            yield about(one, "IST0158", message)


def _image(values: Mapping[str, Any]) -> str:
    everywhere = record(values.get("global"))
    image = text(record(everywhere.get("proxy")).get("image"))
    if not image or "/" in image:
        return image
    return f"{everywhere.get('hub')}/{image}:{everywhere.get('tag')}"


def _is_variant(image: str, wanted: str) -> bool:
    return image == wanted or image.startswith(f"{wanted}-")


def automatic(objects: Objects) -> Iterator[Message]:
    """What asks for the image of the injector is injected."""
    webhooks = [
        webhook
        for one in objects.of(WEBHOOKS, "MutatingWebhookConfiguration")
        for webhook in records(one.content.get("webhooks"))
        if text(webhook.get("name")).endswith("istio.io")
    ]
    for one in objects.of("", "Pod"):
        if _asks(one.spec):
            message = f"pod {one.name} was not injected: its proxy has the image `auto`"
            yield about(one, "IST0147", message, "spec.containers")
    for one in objects.of("apps", "Deployment"):
        template = record(one.spec.get("template"))
        if not _asks(record(template.get("spec"))):
            continue
        labels = strings(record(template.get("metadata")).get("labels"))
        if not any(_chooses(w, objects.namespace(one.namespace), labels) for w in webhooks):
            message = (
                f"no webhook injects pods of {one.name}: their proxy would have the image `auto`"
            )
            yield about(one, "IST0146", message, "spec.template.spec.containers")


def _asks(spec: Mapping[str, Any]) -> bool:
    found = containers(spec, initial=False)
    return any(c.get("name") == _PROXY and c.get("image") == _AUTO for c in found)


def _chooses(
    webhook: Mapping[str, Any], namespace: Object | None, labels: Mapping[str, str]
) -> bool:
    of_namespace = namespace.labels if namespace else {}
    return matches_selector(
        record(webhook.get("namespaceSelector")), of_namespace
    ) and matches_selector(record(webhook.get("objectSelector")), labels)
