"""Checks of Mixer: rules that hand requests to a denier or a list checker.

Source: Mixer 1.4, denier and listchecker reference (lists given as `overrides`; lists of a
`providerUrl` are not fetched).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

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
from meshbus.mixer.program import Bag, Manifest, Program, compile_expression
from meshbus.mixer.syntax import CompileError
from meshbus.mixer.values import Value, parse_ip, to_text
from meshbus.model.rows import ConfigObject

OK, INVALID_ARGUMENT, PERMISSION_DENIED, FAILED_PRECONDITION = 0, 3, 7, 9
INTERNAL = 13


class Verdict(NamedTuple):
    """A google.rpc code and a message; code 0 allows."""

    code: int
    message: str


ALLOWED = Verdict(OK, "")


@dataclass(frozen=True, slots=True)
class Denier:
    """Refuses everything."""

    verdict: Verdict

    def judge(self, value: Value | None) -> Verdict:
        """Its answer."""
        return self.verdict


@dataclass(frozen=True, slots=True)
class ListChecker:
    """Takes what is on its list, or with `blacklist` what is not."""

    form: str
    """STRINGS, CASE_INSENSITIVE_STRINGS, IP_ADDRESSES, REGEX."""
    entries: tuple[str, ...]
    blacklist: bool
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def judge(self, value: Value | None) -> Verdict:
        """Whether a value passes."""
        text = to_text(value if value is not None else "")
        if self.form == "IP_ADDRESSES":
            address = parse_ip(text)
            if address is None:
                return Verdict(INVALID_ARGUMENT, f"{text} is not a valid IP address")
            listed = any(address in network for network in self.networks)
        elif self.form == "CASE_INSENSITIVE_STRINGS":
            listed = text.lower() in {entry.lower() for entry in self.entries}
        elif self.form == "REGEX":
            listed = any(re2.search(entry, text) is not None for entry in self.entries)
        else:
            listed = text in self.entries
        if listed == self.blacklist:
            word = "blacklisted" if listed else "not whitelisted"
            return Verdict(PERMISSION_DENIED, f"{text} is {word}")
        return ALLOWED


@dataclass(frozen=True, slots=True)
class Check:
    """One action of a rule."""

    rule: str
    namespace: str
    condition: Condition
    handler: str
    judge: Denier | ListChecker
    value: Program | None


@dataclass(frozen=True, slots=True)
class CheckConfig:
    """Every check of the mesh."""

    checks: tuple[Check, ...] = ()
    root_namespace: str = ""
    problems: tuple[Problem, ...] = ()


def judge(config: CheckConfig, namespace: str, bag: Bag) -> Verdict:
    """The answer to one request: the first refusal, else allowed.

    Args:
        namespace: Of the destination; its rules and those of the root namespace are in force.
    """
    for check in config.checks:
        if check.namespace not in {config.root_namespace, namespace}:
            continue
        if not check.condition.holds(bag):
            continue
        try:
            value = check.value.evaluate(bag) if check.value is not None else None
        except EvaluationError as error:
            return Verdict(INTERNAL, f"{check.rule}: {error}")
        verdict = check.judge.judge(value)
        if verdict.code != OK:
            name = check.handler
            return Verdict(verdict.code, f"{name}:{verdict.message}" if verdict.message else name)
    return ALLOWED


def load_checks(rows: Mapping[str, Iterable[ConfigObject]], root_namespace: str) -> CheckConfig:
    """The checks of all objects. What is wrong has no effect and is named in `problems`.

    Args:
        rows: Objects by plural.
    """
    manifest = manifest_with(row.spec for row in rows.get(ATTRIBUTES, ()))
    takes = frozenset({"checknothing", "listentry"})
    actions, problems = actions_of(
        rows.get(RULES, ()),
        objects_of(HANDLERS, rows),
        objects_of(INSTANCES, rows),
        {"denier": takes | {"quota"}, "listchecker": frozenset({"listentry"})},
    )
    checks = []
    for action in actions:
        if action.instance.made_by not in takes:
            continue
        made = _check(action, manifest)
        if isinstance(made, Problem):
            problems.append(made)
        else:
            checks.append(made)
    return CheckConfig(tuple(checks), root_namespace, tuple(problems))


def _check(action: Action, manifest: Manifest) -> Check | Problem:
    rule, instance, handler = action.rule, action.instance, action.handler
    condition = condition_of(rule, manifest)
    if isinstance(condition, Problem):
        return condition
    value = None
    if instance.made_by == "listentry":
        try:
            value = compile_expression(str(field(instance.content, "value") or ""), manifest)
        except CompileError as error:
            return instance.problem("value", str(error))
    judge_ = _denier(handler) if handler.made_by == "denier" else _list_checker(handler)
    if isinstance(judge_, Problem):
        return judge_
    return Check(
        f"{RULES}/{rule.namespace}/{rule.name}",
        rule.namespace,
        condition,
        handler.full_name,
        judge_,
        value,
    )


def _denier(handler: Params) -> Denier | Problem:
    status = record(field(handler.content, "status"))
    try:
        code = int(status.get("code", FAILED_PRECONDITION))
    except (TypeError, ValueError):
        return handler.problem("status.code", "a number is needed")
    return Denier(Verdict(code, str(status.get("message") or "")))


def _list_checker(handler: Params) -> ListChecker | Problem:
    content = handler.content
    if field(content, "providerUrl"):
        return handler.problem("providerUrl", "lists are not fetched; give them as overrides")
    form = str(field(content, "entryType") or "STRINGS")
    if form not in {"STRINGS", "CASE_INSENSITIVE_STRINGS", "IP_ADDRESSES", "REGEX"}:
        return handler.problem("entryType", f"unknown entry type {form!r}")
    entries = tuple(str(entry) for entry in items(field(content, "overrides")))
    networks = []
    for index, entry in enumerate(entries):
        try:
            if form == "IP_ADDRESSES":
                networks.append(ip_network(entry, strict=False))
            elif form == "REGEX":
                re2.compile(entry)
        except (ValueError, re2.error) as error:
            return handler.problem(f"overrides[{index}]", str(error))
    return ListChecker(form, entries, field(content, "blacklist") is True, tuple(networks))
