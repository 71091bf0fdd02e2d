"""Objects to a `QuotaConfig`. What is wrong has no effect and is named; the others stand."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import re2

from meshbus.mixer.attributes import manifest_with
from meshbus.mixer.objects import (
    ATTRIBUTES,
    HANDLERS,
    INSTANCES,
    RULES,
    Action,
    Params,
    Problem,
    actions_of,
    condition_of,
    field,
    items,
    objects_of,
    record,
)
from meshbus.mixer.program import Manifest, compile_expression
from meshbus.mixer.quota import (
    Binding,
    Counter,
    Limit,
    Override,
    QuotaConfig,
    SpecRule,
    TextMatch,
)
from meshbus.mixer.syntax import CompileError
from meshbus.mixer.values import parse_duration
from meshbus.model.rows import ConfigObject

SPECS, BINDINGS = "quotaspecs", "quotaspecbindings"
TABLES = (ATTRIBUTES, RULES, *HANDLERS, *INSTANCES, SPECS, BINDINGS)
"""Plurals of every object that has a part in quotas."""


def load_quotas(rows: Mapping[str, Iterable[ConfigObject]], root_namespace: str) -> QuotaConfig:
    """The quota config of all objects.

    An object that is wrong has no effect and is named in `problems`; the others stand.

    Args:
        rows: Objects by plural; those of `TABLES` are read.
    """
    manifest = manifest_with(row.spec for row in rows.get(ATTRIBUTES, ()))
    problems: list[Problem] = []
    counters = _counters(rows, manifest, problems)
    specs = []
    for row in rows.get(SPECS, ()):
        rules = tuple(_spec_rule(row, i, r, problems) for i, r in _listed(row.spec.get("rules")))
        specs.append(((row.namespace, row.name), rules))
    known = {key for key, _ in specs}
    bindings = [
        binding
        for row in rows.get(BINDINGS, ())
        for binding in _bindings(row, known, root_namespace, problems)
    ]
    return QuotaConfig(
        tuple(counters), tuple(specs), tuple(bindings), root_namespace, tuple(problems)
    )


def _listed(value: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for index, item in enumerate(items(value)):
        yield index, record(item)


def _counters(
    rows: Mapping[str, Iterable[ConfigObject]], manifest: Manifest, problems: list[Problem]
) -> list[Counter]:
    actions, found = actions_of(
        rows.get(RULES, ()),
        objects_of(HANDLERS, rows),
        objects_of(INSTANCES, rows),
        {"memquota": frozenset({"quota"}), "redisquota": frozenset({"quota"})},
    )
    problems += found
    out = []
    for action in actions:
        rule, path = action.rule, action.path
        if action.handler.made_by != "memquota":
            problems.append(
                Problem(
                    RULES, rule.namespace, rule.name, path,
                    f"{action.handler.made_by} is not supported: the quota is not enforced",
                )
            )  # fmt: skip
            continue
        made = _counter(action, manifest)
        if isinstance(made, Problem):
            problems.append(made)
        else:
            out.append(made)
    return out


def _counter(action: Action, manifest: Manifest) -> Counter | Problem:
    rule, instance = action.rule, action.instance
    condition = condition_of(rule, manifest)
    if isinstance(condition, Problem):
        return condition
    programs = []
    for name, text in record(field(instance.content, "dimensions")).items():
        try:
            programs.append((str(name), compile_expression(str(text), manifest)))
        except CompileError as error:
            return instance.problem(f"dimensions.{name}", str(error))
    limits = _limits(action.handler, instance.full_name)
    if isinstance(limits, Problem):
        return limits
    limit, overrides = limits
    return Counter(
        rule=f"{rule.namespace}/{rule.name}",
        rule_namespace=rule.namespace,
        condition=condition,
        handler=action.handler.full_name,
        instance=instance.full_name,
        quota=instance.name,
        dimensions=tuple(programs),
        limit=limit,
        overrides=overrides,
    )


def _limits(handler: Params, instance: str) -> tuple[Limit, tuple[Override, ...]] | Problem:
    for index, quota in _listed(field(handler.content, "quotas")):
        if quota.get("name") != instance:
            continue
        path = f"quotas[{index}]"
        limit = _limit(quota)
        if limit is None:
            return handler.problem(path, "maxAmount is a number, validDuration a duration")
        overrides = []
        for o, override in _listed(quota.get("overrides")):
            own = _limit(override)
            if own is None:
                return handler.problem(
                    f"{path}.overrides[{o}]", "maxAmount is a number, validDuration a duration"
                )
            dimensions = record(override.get("dimensions")).items()
            named = tuple(sorted((str(k), str(v)) for k, v in dimensions))
            overrides.append(Override(named, own))
        return limit, tuple(overrides)
    return handler.problem("quotas", f"no limit is defined for quota {instance}")


def _limit(content: Mapping[str, Any]) -> Limit | None:
    duration = parse_duration(str(field(content, "validDuration") or "0"))
    try:
        amount = int(field(content, "maxAmount") or 0)
    except (TypeError, ValueError):
        return None
    if duration is None or duration.nanos < 0:
        return None
    return Limit(amount, duration.nanos)


def _spec_rule(
    row: ConfigObject, index: int, rule: Mapping[str, Any], problems: list[Problem]
) -> SpecRule:
    base = f"spec.rules[{index}]"
    clauses = []
    listed = list(_listed(rule.get("match")))
    for m, match in listed:
        clause: list[tuple[str, TextMatch]] = []
        for name, condition in record(match.get("clause")).items():
            text = _text_match(record(condition))
            if text is None:
                path = f"{base}.match[{m}].clause.{name}"
                problems.append(
                    Problem(
                        SPECS, row.namespace, row.name, path,
                        "one of exact, prefix and regex is needed; the clause matches nothing",
                    )
                )  # fmt: skip
                clause = []
                break
            clause.append((str(name), text))
        else:
            clauses.append(tuple(clause))
    if listed and not clauses:
        return SpecRule((), ())
    charges = []
    for q, quota in _listed(rule.get("quotas")):
        try:
            amount = int(quota.get("charge", 1))
        except (TypeError, ValueError):
            path = f"{base}.quotas[{q}].charge"
            problems.append(Problem(SPECS, row.namespace, row.name, path, "a number is needed"))
            continue
        charges.append((str(quota.get("quota") or ""), amount))
    return SpecRule(tuple(clauses), tuple(charges))


def _text_match(condition: Mapping[str, Any]) -> TextMatch | None:
    for form in ("exact", "prefix", "regex"):
        if form not in condition:
            continue
        text = str(condition[form])
        if form == "regex":
            options = re2.Options()
            options.log_errors = False
            try:
                re2.compile(text, options=options)
            except re2.error:
                return None
        return TextMatch(form, text)
    return None


def _bindings(
    row: ConfigObject,
    known: set[tuple[str, str]],
    root_namespace: str,
    problems: list[Problem],
) -> Iterator[Binding]:
    services, hosts = [], []
    for _, service in _listed(row.spec.get("services")):
        if service.get("service"):
            hosts.append(str(service["service"]))
            continue
        # In the root namespace live objects of the whole mesh: a service there without a
        # namespace is meant wherever it is.
        default = "*" if row.namespace == root_namespace else row.namespace
        name = str(service.get("name") or "")
        namespace = str(service.get("namespace") or default)
        if service.get("domain"):
            hosts.append(f"{name}.{namespace}.{service['domain']}")
        else:
            services.append((name, namespace))
    for index, reference in _listed(row.spec.get("quotaSpecs")):
        key = (str(reference.get("namespace") or row.namespace), str(reference.get("name") or ""))
        if key not in known:
            problems.append(
                Problem(
                    BINDINGS, row.namespace, row.name, f"spec.quotaSpecs[{index}]",
                    f"there is no QuotaSpec {key[0]}/{key[1]}",
                )
            )  # fmt: skip
            continue
        yield Binding(key, tuple(services), tuple(hosts))
