"""Quotas of Mixer: which calls are counted, in which cells, and up to what.

A `QuotaSpecBinding` binds `QuotaSpec`s to services. A request to such a service is charged for each
quota of the spec's rules that match it. The quota's name leads to the `quota` instances of that
name in actions of the rules in force; the instance's dimensions make the cell, the `memquota`
handler says the limit. What leads nowhere is granted.

Source: Mixer 1.4, memquota and quota template reference; istio.mixer.v1.config.client QuotaSpec.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import re2

from meshbus.mixer.functions import EvaluationError
from meshbus.mixer.objects import Condition, Problem
from meshbus.mixer.program import Bag, Program, references
from meshbus.mixer.values import to_text


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
