"""Webhooks of injection and validation.

Source: Istio, analysis messages IST0139, IST0163, IST0164.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any
from urllib.parse import urlsplit

from meshbus.analyze.messages import Message, about
from meshbus.analyze.objects import WEBHOOKS, Object, Objects, record, records, text, texts
from meshbus.api.selectors import matches_selector

_REVISION, _LABEL, _INJECT = "istio.io/rev", "istio-injection", "sidecar.istio.io/inject"
_VALIDATORS = ("istio-validator", "istiod-default-validator")
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?")


def _injectors(objects: Objects) -> list[Object]:
    found = []
    for one in objects.of(WEBHOOKS, "MutatingWebhookConfiguration"):
        hooks = records(one.content.get("webhooks"))
        if any(text(hook.get("name")).endswith("istio.io") for hook in hooks) or _revisions(one):
            found.append(one)
    return found


def _revisions(one: Object) -> set[str]:
    found = {one.labels[_REVISION]} if _REVISION in one.labels else set()
    for hook in records(one.content.get("webhooks")):
        for field in ("namespaceSelector", "objectSelector"):
            selector = record(hook.get(field))
            if wanted := text(record(selector.get("matchLabels")).get(_REVISION)):
                found.add(wanted)
            for rule in records(selector.get("matchExpressions")):
                if rule.get("key") == _REVISION:
                    found.update(texts(rule.get("values")))
    return found


def overlaps(objects: Objects) -> Iterator[Message]:
    """No pod is injected twice, and injectors are there."""
    injectors = _injectors(objects)
    revisions = sorted(set().union(*(_revisions(one) for one in injectors)))
    marks: list[dict[str, str]] = [{}, *({_REVISION: revision} for revision in revisions)]
    of_namespaces = [
        mark | label for mark in marks for label in ({}, {_LABEL: "enabled"}, {_LABEL: "disabled"})
    ]
    of_pods = [
        mark | label for mark in marks for label in ({}, {_INJECT: "true"}, {_INJECT: "false"})
    ]
    hooks = [(one, hook) for one in injectors for hook in records(one.content.get("webhooks"))]
    told: set[tuple[str, str]] = set()
    for namespace, pod in product(of_namespaces, of_pods):
        chosen = [
            (one, hook)
            for one, hook in hooks
            if matches_selector(record(hook.get("namespaceSelector")), namespace)
            and matches_selector(record(hook.get("objectSelector")), pod)
        ]
        for one, hook in chosen if len(chosen) > 1 else ():
            others = ", ".join(
                sorted(f"{o.name}/{h.get('name')}" for o, h in chosen if h is not hook)
            )
            if (one.name, others) not in told:
                told.add((one.name, others))
                message = f"pods are injected a second time by {others}"
                yield about(one, "IST0139", message)
    for one, hook in hooks:
        service = record(record(hook.get("clientConfig")).get("service"))
        if not service:
            continue
        where = text(service.get("namespace")), text(service.get("name"))
        if objects.find("", "Service", *where) is None:
            yield about(one, "IST0139", f"the injector's Service {'/'.join(where)} does not exist")


def addresses(objects: Objects) -> Iterator[Message]:
    """A control plane elsewhere is reached by a name."""
    for kind in ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"):
        for one in objects.of(WEBHOOKS, kind):
            ours = (
                one.name.startswith(_VALIDATORS)
                if kind.startswith("Validating")
                else one.name.startswith("istio-sidecar-injector")
            )
            for index, hook in enumerate(records(one.content.get("webhooks")) if ours else ()):
                yield from _address(one, hook, f"webhooks[{index}].clientConfig")


def _address(one: Object, hook: Mapping[str, Any], path: str) -> Iterator[Message]:
    client, name = record(hook.get("clientConfig")), text(hook.get("name"))
    url = client.get("url")
    if not isinstance(url, str):
        if not record(client.get("service")):
            yield about(one, "IST0163", f"webhook {name} says neither a URL nor a Service", path)
        return
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        host = ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host):
            yield about(one, "IST0163", f"{url!r} of webhook {name} names no host", f"{path}.url")
        return
    message = f"{url!r} of webhook {name} is an address; a name can move"
    yield about(one, "IST0164", message, f"{path}.url")
