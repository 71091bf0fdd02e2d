"""Injection of manifests: the pod templates in what people write; everything else stays."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from meshbus.inject.errors import InjectionError
from meshbus.inject.merge import copied
from meshbus.inject.openshift import Identity, identity_of
from meshbus.inject.pod import Injector
from meshbus.inject.proxy_configs import proxy_wishes
from meshbus.inject.workloads import owner_of_document, template_path
from meshbus.model.rows import ConfigObject

_LISTS_DEEP = 5
_DEFAULT_NAMESPACE = "default"


@dataclass
class Outcome:
    """An object after injection."""

    document: Any
    changed: bool = False
    notes: list[str] = field(default_factory=list)
    """What its author should know: why it was left as it is, what has no effect."""


class Beside(NamedTuple):
    """What is known besides the object, of the same files or of the server."""

    identities: Mapping[str, Identity] = {}
    """Who proxies run as, by namespace, where the platform says."""
    proxy_configs: tuple[ConfigObject, ...] = ()
    envoy_filters: tuple[ConfigObject, ...] = ()
    """Of whatever namespace: they may patch the bootstrap."""
    root_namespace: str = "istio-system"
    """Whose objects are for the whole mesh."""


NOTHING_BESIDE = Beside()


def inject_document(injector: Injector, document: Any, beside: Beside = NOTHING_BESIDE) -> Outcome:
    """Inject the pods of an object, or of the objects of a List.

    Raises:
        InjectionError: A pod says something that cannot be done; the path begins with the object.
    """
    return _inject(injector, document, beside, 0)


def _inject(injector: Injector, document: Any, beside: Beside, depth: int) -> Outcome:
    if not isinstance(document, Mapping):
        return Outcome(document)
    items = document.get("items")
    if str(document.get("kind", "")).endswith("List") and isinstance(items, list):
        if depth > _LISTS_DEEP:
            raise InjectionError("items", "lists within lists too deeply")
        outcomes = [_inject(injector, item, beside, depth + 1) for item in items]
        notes = [note for outcome in outcomes for note in outcome.notes]
        if not any(outcome.changed for outcome in outcomes):
            return Outcome(document, notes=notes)
        return Outcome({**document, "items": [o.document for o in outcomes]}, True, notes)
    path = template_path(document)
    if path is None:
        return Outcome(document)
    return _inject_workload(injector, document, beside, path)


def _inject_workload(
    injector: Injector,
    document: Mapping[str, Any],
    beside: Beside,
    path: tuple[str, ...],
) -> Outcome:
    name = _title(document)
    template: Any = document
    for step in path:
        template = template.get(step) if isinstance(template, Mapping) else None
    if not isinstance(template, Mapping) or not isinstance(template.get("spec"), Mapping):
        where = ".".join((*path, "spec"))
        raise InjectionError(f"{name}: {where}", "is needed: it holds the pod")
    check_pod(template, f"{name}: " + "".join(f"{step}." for step in path))
    namespace = _namespace(template) or _namespace(document)
    decision = injector.decide(template, namespace)
    if not decision.inject:
        return Outcome(document, notes=[f"Skipping injection because {name} {decision.reason}"])
    owner = owner_of_document(document, namespace)
    labels = _texts((template.get("metadata") or {}).get("labels"))
    own = namespace or _DEFAULT_NAMESPACE
    try:
        injected = injector.inject(
            template,
            owner,
            wishes=proxy_wishes(beside.proxy_configs, labels, own, beside.root_namespace),
            identity=beside.identities.get(namespace),
            envoy_filters=beside.envoy_filters,
        )
    except InjectionError as error:
        where = ".".join((*path, error.path)) if error.path.startswith("metadata") else error.path
        raise InjectionError(f"{name}: {where}", error.message) from error
    result: Any = copied(dict(document))
    if path:
        holder: Any = result
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = injected.pod
    else:
        result = injected.pod
    return Outcome(result, True, [f"{name}: {warning}" for warning in injected.warnings])


def identities_of(documents: Iterable[Any]) -> dict[str, Identity]:
    """Who proxies run as in the namespaces that are among some documents."""
    found = {}
    for document in documents:
        if not isinstance(document, Mapping) or document.get("kind") != "Namespace":
            continue
        held = document.get("metadata")
        metadata: Mapping[str, Any] = held if isinstance(held, Mapping) else {}
        notes = metadata.get("annotations")
        identity = identity_of(notes) if isinstance(notes, Mapping) else None
        if identity is not None:
            found[str(metadata.get("name") or "")] = identity
    return found


def check_pod(template: Mapping[str, Any], where: str) -> None:
    """What injection walks through is of the form it takes it to be.

    Args:
        where: Stands before the paths in errors.

    Raises:
        InjectionError: It is not.
    """
    if not isinstance(template.get("spec"), Mapping):
        raise InjectionError(f"{where}spec", "is needed: it holds the pod")
    metadata = template.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InjectionError(f"{where}metadata", "must be an object")
    for field_name in ("labels", "annotations"):
        held = (metadata or {}).get(field_name)
        if held is None:
            continue
        if not isinstance(held, Mapping):
            raise InjectionError(f"{where}metadata.{field_name}", "must be an object")
        for key, value in held.items():
            if not isinstance(value, str):
                raise InjectionError(f"{where}metadata.{field_name}[{key}]", "must be a string")
    for field_name in ("containers", "initContainers", "volumes", "imagePullSecrets"):
        held = template["spec"].get(field_name)
        if held is None:
            continue
        if not isinstance(held, list) or not all(isinstance(item, Mapping) for item in held):
            raise InjectionError(f"{where}spec.{field_name}", "must be a list of objects")
    for field_name in ("containers", "initContainers"):
        for index, container in enumerate(template["spec"].get(field_name) or ()):
            at = f"{where}spec.{field_name}[{index}]"
            if not isinstance(container.get("name"), str):
                raise InjectionError(f"{at}.name", "is needed")
            for part in ("ports", "env", "volumeMounts"):
                held = container.get(part)
                if held is not None and not (
                    isinstance(held, list) and all(isinstance(item, Mapping) for item in held)
                ):
                    raise InjectionError(f"{at}.{part}", "must be a list of objects")


def _namespace(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    return str((metadata or {}).get("namespace") or "") if isinstance(metadata, Mapping) else ""


def _texts(value: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, Mapping) else {}


def _title(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    held = metadata if isinstance(metadata, Mapping) else {}
    name = str(held.get("name") or held.get("generateName") or "")
    namespace = str(held.get("namespace") or "")
    return f'{document.get("kind")} "{namespace + "/" if namespace else ""}{name}"'
