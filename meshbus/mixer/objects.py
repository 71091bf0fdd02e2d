"""Rules, instances and handlers of Mixer: how they name each other, and their own shape.

An object is named `NAME.KIND.NAMESPACE`. Where a rule names one it may write less: `NAME` (of the
rule's namespace and of kind `handler` or `instance`), `NAME.KIND`, or `NAME.NAMESPACE`. The older
form of a handler or instance is an object whose kind is its adapter (`memquota`) or template
(`quota`) and whose spec is its params.

Source: Mixer 1.4, mixer/pkg/runtime/config; istio.policy.v1beta1 Rule, Handler, Instance.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from meshbus.mixer.functions import EvaluationError
from meshbus.mixer.program import Bag, Manifest, Program, compile_expression
from meshbus.mixer.syntax import CompileError
from meshbus.mixer.values import BOOL
from meshbus.model.rows import ConfigObject

RULES, ATTRIBUTES = "rules", "attributemanifests"
HANDLERS = {
    "handlers": "",
    "memquotas": "memquota",
    "deniers": "denier",
    "listcheckers": "listchecker",
    "redisquotas": "redisquota",
}
"""Tables of handlers (without `cfg.`), and the adapter that the table stands for."""
INSTANCES = {
    "instances": "",
    "quotas": "quota",
    "checknothings": "checknothing",
    "listentries": "listentry",
}
"""Tables of instances, and the template that the table stands for."""


class Problem(NamedTuple):
    """A part of an object that has no effect, and why."""

    plural: str
    namespace: str
    name: str
    path: str
    message: str


class Params(NamedTuple):
    """A handler or an instance: what it is made by, and its params."""

    full_name: str
    """`NAME.KIND.NAMESPACE`."""
    plural: str
    namespace: str
    name: str
    made_by: str
    """The adapter or the template."""
    content: Mapping[str, Any]
    path: str
    """Where the params are in the object: `spec` or `spec.params`."""

    def problem(self, path: str, message: str) -> Problem:
        """Something wrong below the params."""
        return Problem(self.plural, self.namespace, self.name, f"{self.path}.{path}", message)


@dataclass(frozen=True, slots=True)
class Action:
    """A handler and an instance that one rule brings together."""

    rule: ConfigObject
    path: str
    """`spec.actions[0].instances[1]`."""
    handler: Params
    instance: Params


@dataclass(frozen=True, slots=True)
class Condition:
    """The `match` of a rule; a rule whose match has no value does not match."""

    program: Program | None

    def holds(self, bag: Bag) -> bool:
        """Whether the rule concerns this request."""
        if self.program is None:
            return True
        try:
            return self.program.evaluate(bag) is True
        except EvaluationError:
            return False


def record(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def field(content: Mapping[str, Any], name: str) -> Any:
    """A field of params: protobuf JSON takes `maxAmount` and `max_amount`."""
    if name in content:
        return content[name]
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    return content.get(snake)


def objects_of(
    tables: Mapping[str, str], rows: Mapping[str, Iterable[ConfigObject]]
) -> list[Params]:
    """Handlers or instances.

    Args:
        tables: HANDLERS or INSTANCES.
        rows: Objects by plural.
    """
    out = []
    for plural, made_by in tables.items():
        generic = "handler" if plural == "handlers" else "instance"
        for row in rows.get(plural, ()):
            name, content, path = made_by, record(row.spec), "spec"
            if not made_by:
                own = "compiledAdapter" if generic == "handler" else "compiledTemplate"
                name = str(field(row.spec, own) or row.spec.get(own[8:].lower()) or "")
                content, path = record(row.spec.get("params")), "spec.params"
            kind = made_by or generic
            full = f"{row.name}.{kind}.{row.namespace}"
            out.append(Params(full, plural, row.namespace, row.name, name, content, path))
    return out


def _find(text: str, generic: str, namespace: str, known: Mapping[str, Params]) -> Params | None:
    parts = text.split(".")
    candidates = [text]
    if len(parts) == 1:
        candidates = [f"{text}.{generic}.{namespace}"]
    elif len(parts) == 2:
        candidates = [f"{text}.{namespace}", f"{parts[0]}.{generic}.{parts[1]}"]
    return next((known[name] for name in candidates if name in known), None)


def actions_of(
    rules: Iterable[ConfigObject],
    handlers: Iterable[Params],
    instances: Iterable[Params],
    wanted: Mapping[str, frozenset[str]],
) -> tuple[list[Action], list[Problem]]:
    """Actions of the rules whose handler is made by an adapter of `wanted`.

    An action whose handler or instance does not exist is left out; the rest of its rule stands.

    Args:
        wanted: Adapter to the templates that it takes.
    """
    by_handler = {h.full_name: h for h in handlers}
    by_instance = {i.full_name: i for i in instances}
    templates = frozenset().union(*wanted.values())
    actions: list[Action] = []
    problems: list[Problem] = []
    for rule in rules:

        def problem(path: str, message: str, rule: ConfigObject = rule) -> None:
            problems.append(Problem(RULES, rule.namespace, rule.name, path, message))

        for a, action in enumerate(items(rule.spec.get("actions"))):
            base = f"spec.actions[{a}]"
            texts = [str(text) for text in items(record(action).get("instances"))]
            found = [_find(text, "instance", rule.namespace, by_instance) for text in texts]
            name = str(record(action).get("handler") or "")
            handler = _find(name, "handler", rule.namespace, by_handler)
            if handler is None:
                if any(instance and instance.made_by in templates for instance in found):
                    problem(f"{base}.handler", f"there is no handler {name!r}")
                continue
            if handler.made_by not in wanted:
                continue
            for i, instance in enumerate(found):
                path = f"{base}.instances[{i}]"
                if instance is None:
                    problem(path, f"there is no instance {texts[i]!r}")
                elif instance.made_by not in wanted[handler.made_by]:
                    problem(path, f"{handler.made_by} does not take {instance.made_by!r}")
                else:
                    actions.append(Action(rule, path, handler, instance))
    return actions, problems


def condition_of(rule: ConfigObject, manifest: Manifest) -> Condition | Problem:
    """The `match` of a rule; a Problem if it cannot be used (the rule then has no effect)."""
    text = str(rule.spec.get("match") or "").strip()
    if not text:
        return Condition(None)
    try:
        return Condition(compile_expression(text, manifest, BOOL))
    except CompileError as error:
        return Problem(RULES, rule.namespace, rule.name, "spec.match", str(error))
