"""Quotas of Mixer: which calls are counted, in which cells, and up to what.

A `QuotaSpecBinding` binds `QuotaSpec`s to services. A request to such a service is charged for each
quota of the spec's rules that match it. The quota's name leads to the `quota` instances of that
name in actions of the rules in force; the instance's dimensions make the cell, the `memquota`
handler says the limit. What leads nowhere is granted.

Source: Mixer 1.4, memquota and quota template reference; istio.mixer.v1.config.client QuotaSpec.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import re2

from meshbus.mixer.attributes import manifest_with
from meshbus.mixer.functions import EvaluationError
from meshbus.mixer.objects import (
    ATTRIBUTES,
    HANDLERS,
    INSTANCES,
    RULES,
    Action,
    Condition,
    Params,
    Problem,
    actions_of,
    condition_of,
    field,
    items,
    objects_of,
    record,
)
from meshbus.mixer.program import Bag, Manifest, Program, compile_expression, references
from meshbus.mixer.syntax import CompileError
from meshbus.mixer.values import parse_duration, to_text
from meshbus.model.rows import ConfigObject

SPECS, BINDINGS = "quotaspecs", "quotaspecbindings"
TABLES = (ATTRIBUTES, RULES, *HANDLERS, *INSTANCES, SPECS, BINDINGS)
"""Plurals of every object that has a part in quotas."""
CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `amount` in each rolling `valid_ns`; 0: at most `amount` ever."""

    amount: int
    valid_ns: int


@dataclass(frozen=True, slots=True)
class Override:
    """Another limit where all these dimensions have these values."""

    dimensions: tuple[tuple[str, str], ...]
    limit: Limit


@dataclass(frozen=True, slots=True)
class Counter:
    """One quota instance that a rule hands to a memquota handler."""

    rule: str
    """`NAMESPACE/NAME` of the rule, for people."""
    rule_namespace: str
    condition: Condition
    handler: str
    instance: str
    """Full names."""
    quota: str
    """Short name of the instance."""
    dimensions: tuple[tuple[str, Program], ...]
    limit: Limit
    overrides: tuple[Override, ...]

    def answers_to(self, quota: str) -> bool:
        """Whether a QuotaSpec that charges `quota` means this."""
        return quota.lower() == self.quota.lower() or quota == self.instance

    def programs(self) -> Iterator[Program]:
        """Every expression of it."""
        if self.condition.program is not None:
            yield self.condition.program
        yield from (program for _, program in self.dimensions)


@dataclass(frozen=True, slots=True)
class TextMatch:
    """Exact text, a prefix, or a regular expression over the whole text (RE2)."""

    form: str
    text: str

    def holds(self, value: str) -> bool:
        """Whether a value matches."""
        if self.form == "prefix":
            return value.startswith(self.text)
        if self.form == "regex":
            return re2.fullmatch(self.text, value) is not None
        return value == self.text


@dataclass(frozen=True, slots=True)
class SpecRule:
    """Charges of the requests that match one of the clauses, or of all if there are none."""

    clauses: tuple[tuple[tuple[str, TextMatch], ...], ...]
    charges: tuple[tuple[str, int], ...]
    """(quota, charge)."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Services that a spec is bound to: (name, namespace) with `*` for any, or a host, or `*`."""

    spec: tuple[str, str]
    services: tuple[tuple[str, str], ...]
    hosts: tuple[str, ...]

    def binds(self, host: str, name: str, namespace: str) -> bool:
        """Whether it names this service."""
        if "*" in self.hosts or host in self.hosts:
            return True
        return (name, namespace) in self.services or (name, "*") in self.services


@dataclass(frozen=True, slots=True)
class QuotaConfig:
    """Everything that quotas are decided by."""

    counters: tuple[Counter, ...] = ()
    specs: tuple[tuple[tuple[str, str], tuple[SpecRule, ...]], ...] = ()
    """By (namespace, name)."""
    bindings: tuple[Binding, ...] = ()
    root_namespace: str = ""
    problems: tuple[Problem, ...] = ()

    def rules_of(self, spec: tuple[str, str]) -> tuple[SpecRule, ...]:
        """The rules of a spec; none if it does not exist."""
        return next((rules for key, rules in self.specs if key == spec), ())

    def specs_for(self, host: str, name: str, namespace: str) -> list[tuple[str, str]]:
        """The specs bound to a service, each once."""
        bound = {b.spec: None for b in self.bindings if b.binds(host, name, namespace)}
        return [spec for spec in bound if self.rules_of(spec)]

    def counters_for(self, quota: str, namespace: str) -> list[Counter]:
        """What counts a quota for a destination: rules of the root namespace and of its own."""
        scope = {self.root_namespace, namespace}
        return [c for c in self.counters if c.rule_namespace in scope and c.answers_to(quota)]

    def references_of(self, spec: tuple[str, str], namespace: str) -> set[tuple[str, str | None]]:
        """Attributes that decide about a spec's charges; empty if nothing counts them."""
        out: set[tuple[str, str | None]] = set()
        for rule in self.rules_of(spec):
            for quota, _ in rule.charges:
                counters = self.counters_for(quota, namespace)
                for counter in counters:
                    for program in counter.programs():
                        out.update(references(program.tree))
                if counters:
                    out.update((name, None) for clause in rule.clauses for name, _ in clause)
        return out

    def counts(self, spec: tuple[str, str], namespace: str) -> bool:
        """Whether any charge of a spec is counted at all."""
        return any(
            self.counters_for(quota, namespace)
            for rule in self.rules_of(spec)
            for quota, _ in rule.charges
        )


class Charge(NamedTuple):
    """An amount to take from one cell."""

    quota: str
    cell: str
    """Handler, instance and dimensions: what counts together."""
    limit: Limit
    amount: int


class ChargeError(Exception):
    """A dimension has no value: the request cannot be counted and is refused, as Mixer does."""


def charges_of(
    config: QuotaConfig, spec: tuple[str, str], namespace: str, bag: Bag
) -> list[Charge]:
    """What one request costs under a spec.

    Raises:
        ChargeError: A dimension of an instance cannot be evaluated for it.
    """
    out: list[Charge] = []
    for rule in config.rules_of(spec):
        if not _matches(rule, bag):
            continue
        for quota, amount in rule.charges:
            out += [
                _charge(counter, quota, amount, bag)
                for counter in config.counters_for(quota, namespace)
                if amount > 0 and counter.condition.holds(bag)
            ]
    return out


def _matches(rule: SpecRule, bag: Bag) -> bool:
    if not rule.clauses:
        return True
    return any(
        all(
            isinstance(value := bag.attributes.get(name), str) and match.holds(value)
            for name, match in clause
        )
        for clause in rule.clauses
    )


def _charge(counter: Counter, quota: str, amount: int, bag: Bag) -> Charge:
    dimensions: dict[str, str] = {}
    for name, program in counter.dimensions:
        try:
            dimensions[name] = to_text(program.evaluate(bag))
        except EvaluationError as error:
            raise ChargeError(f"{counter.instance}: dimension {name}: {error}") from error
    limit = counter.limit
    for override in counter.overrides:
        if all(dimensions.get(name, "") == value for name, value in override.dimensions):
            limit = override.limit
            break
    # The separators cannot be forged by a value: lengths stand before each.
    cell = "".join(f";{len(k)}.{len(v)}:{k}={v}" for k, v in sorted(dimensions.items()))
    return Charge(quota, f"{counter.handler}|{counter.instance}{cell}", limit, amount)


# --------------------------------------------------------------------------- loading


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
