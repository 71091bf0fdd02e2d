"""Trees to programs: types are checked once, evaluation is a walk of closures.

An attribute that is absent is an error unless it is the left of `|`, at any depth of `|` and `[]`.
A key that a map lacks reads as empty text, except there.
A call is never absent: it has a value or fails.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshbus.mixer.functions import (
    ANY,
    EXTERNS,
    EvaluationError,
    equal_dns_names,
    equal_emails,
    equal_uris,
    signature,
)
from meshbus.mixer.syntax import Call, CompileError, Const, Node, Var, parse
from meshbus.mixer.values import (
    BOOL,
    DNS_NAME,
    DOUBLE,
    DURATION,
    EMAIL_ADDRESS,
    INT64,
    IP_ADDRESS,
    STRING,
    STRING_MAP,
    TEXTS,
    TIMESTAMP,
    URI,
    Duration,
    Value,
    fits,
)

Manifest = Mapping[str, str]
"""Types of attributes by name."""


class Bag:
    """Attributes of one request, and which of them were looked at.

    Values of a STRING_MAP are looked up by key: `request.headers[cookie]`.
    """

    __slots__ = ("attributes", "seen")

    def __init__(self, attributes: Mapping[str, Value]) -> None:
        self.attributes = attributes
        self.seen: dict[str, bool] = {}
        """Name, or `name[key]`, to whether it was there."""

    def referenced(self) -> list[str]:
        """What was looked at, sorted; `-` before what was absent."""
        return sorted(name if found else f"-{name}" for name, found in self.seen.items())


class _Absent:
    __slots__ = ()


_ABSENT: Any = _Absent()
_Step = Callable[[Bag], Any]
_SAID = {
    **dict.fromkeys(TEXTS, "string"),
    BOOL: "bool",
    DOUBLE: "double",
    INT64: "integer or duration",
    DURATION: "integer or duration",
}
_NUMBERS: dict[str, Callable[[Any], Any]] = {
    INT64: lambda v: v.nanos if isinstance(v, Duration) else v,
    DURATION: lambda v: v if isinstance(v, Duration) or v is True or v is False else Duration(v),
}
"""Durations are numbers of nanoseconds, and the other way round."""


class _Named:
    """A STRING_MAP that remembers which attribute it is."""

    __slots__ = ("content", "name")

    def __init__(self, name: str, content: Mapping[str, str]) -> None:
        self.name = name
        self.content = content


@dataclass(frozen=True, slots=True)
class _Code:
    """Two ways to run a node: `value` fails where something is absent, `maybe` answers _ABSENT."""

    value: _Step
    maybe: _Step


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled expression."""

    text: str
    kind: str
    """Type of its value."""
    tree: Node
    _run: _Step = field(compare=False, repr=False)

    def evaluate(self, bag: Bag) -> Value:
        """Its value.

        Raises:
            EvaluationError: An attribute is absent or not of its type, or a function fails.
        """
        value = self._run(bag)
        return value.content if isinstance(value, _Named) else value


def compile_expression(text: str, manifest: Manifest, expected: str | None = None) -> Program:
    """The program of an expression.

    Args:
        text: The expression.
        manifest: The attributes that may be named, with their types.
        expected: The type that its value must have.
    Raises:
        CompileError: Syntax, unknown attribute or function, wrong type.
    """
    tree = parse(text)
    kind = type_of(tree, manifest)
    if expected is not None and kind != expected:
        raise CompileError(f"expression '{text}' is of type {kind}, {expected} is needed")
    return Program(text, kind, tree, _code(tree, manifest).value)


def references(node: Node) -> Iterator[tuple[str, str | None]]:
    """Attributes that a tree names: (name, key of a map or None for the whole)."""
    match node:
        case Const():
            return
        case Var(name):
            yield name, None
        case Call("INDEX", (Var(name), Const(_, _, str(key)))):
            yield name, key
        case Call(_, args, target):
            if target is not None:
                yield from references(target)
            for arg in args:
                yield from references(arg)


# --------------------------------------------------------------------------- types


def type_of(node: Node, manifest: Manifest) -> str:
    """The type of a tree's value.

    Raises:
        CompileError: Unknown attribute or function, wrong type or number of arguments.
    """
    match node:
        case Const(_, kind, _):
            return kind
        case Var(name):
            if name not in manifest:
                raise CompileError(f"unknown attribute {name}")
            return manifest[name]
        case Call():
            return _type_of_call(node, manifest)


def _type_of_call(call: Call, manifest: Manifest) -> str:
    found = signature(call.name)
    if found is None:
        raise CompileError(f"unknown function: {call.name}")
    if call.target is not None:
        if found.target is None:
            raise CompileError(f"invoking regular function on instance method: {call.name}")
        target = type_of(call.target, manifest)
        if target != found.target:
            raise CompileError(f"{call} target typeError got {target}, expected {found.target}")
    elif found.target is not None:
        raise CompileError(f"invoking instance method without an instance: {call.name}")
    if len(call.args) < len(found.args):
        raise CompileError(
            f"{call} arity mismatch. Got {len(call.args)} arg(s), expected {len(found.args)} arg(s)"
        )
    generic = ANY
    for index, declared in enumerate(found.args):
        actual = type_of(call.args[index], manifest)
        expected = declared or generic
        if expected == ANY:
            generic = actual
        elif actual != expected:
            raise CompileError(
                f"{call} arg {index + 1} ({call.args[index]}) typeError "
                f"got {actual}, expected {expected}"
            )
    for extra in call.args[len(found.args) :]:
        type_of(extra, manifest)
    return found.result or generic


# --------------------------------------------------------------------------- code

_EQUAL: dict[str, Callable[[Any, Any], bool]] = {
    BOOL: operator.eq,
    STRING: operator.eq,
    INT64: operator.eq,
    DOUBLE: operator.eq,
    IP_ADDRESS: operator.eq,
    TIMESTAMP: operator.eq,
    DNS_NAME: equal_dns_names,
    EMAIL_ADDRESS: equal_emails,
    URI: equal_uris,
}
_ORDERED = frozenset({STRING, INT64, DOUBLE, TIMESTAMP})
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "LT": operator.lt,
    "LEQ": operator.le,
    "GT": operator.gt,
    "GEQ": operator.ge,
}
_ADD: dict[str, Callable[[Any, Any], Any]] = {
    STRING: operator.add,
    DOUBLE: operator.add,
    INT64: lambda a, b: ((a + b + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63),
}


def _code(node: Node, manifest: Manifest) -> _Code:
    match node:
        case Const(_, _, value):
            return _always(lambda _: value)
        case Var(name):
            return _variable(name, manifest[name])
        case Call("OR", (left, right, *_)):
            return _or(_code(left, manifest), _code(right, manifest))
        case Call("INDEX", (target, key, *_)):
            return _index(_code(target, manifest), _code(key, manifest))
        case Call():
            return _always(_call(node, manifest))


def _always(step: _Step) -> _Code:
    return _Code(step, step)


def _variable(name: str, kind: str) -> _Code:
    def maybe(bag: Bag) -> Any:
        value = bag.attributes.get(name)
        if value is None:
            bag.seen[name] = False
            return _ABSENT
        bag.seen[name] = True
        if kind in _NUMBERS and isinstance(value, Duration | int):
            value = _NUMBERS[kind](value)
        if not fits(value, kind):
            wanted = _SAID.get(kind, kind)
            raise EvaluationError(f"error converting value to {wanted}: '{value}', of {name}")
        return _Named(name, value) if kind == STRING_MAP else value  # type: ignore[arg-type]

    def value(bag: Bag) -> Any:
        found = maybe(bag)
        if found is _ABSENT:
            raise EvaluationError(f"lookup failed: '{name}'")
        return found

    return _Code(value, maybe)


def _or(left: _Code, right: _Code) -> _Code:
    first = left.maybe

    def chosen(other: _Step) -> _Step:
        def run(bag: Bag) -> Any:
            found = first(bag)
            return other(bag) if found is _ABSENT else found

        return run

    return _Code(chosen(right.value), chosen(right.maybe))


def _index(target: _Code, key: _Code) -> _Code:
    def look_up(content: Any, name: str, bag: Bag) -> Any:
        if not isinstance(content, _Named):
            return content.get(name, _ABSENT)
        found = content.content.get(name, _ABSENT)
        bag.seen[f"{content.name}[{name}]"] = found is not _ABSENT
        return found

    def value(bag: Bag) -> Any:
        content = target.value(bag)
        name = key.value(bag)
        found = look_up(content, name, bag)
        return "" if found is _ABSENT else found

    def maybe(bag: Bag) -> Any:
        content = target.maybe(bag)
        if content is _ABSENT:
            return _ABSENT
        name = key.maybe(bag)
        return _ABSENT if name is _ABSENT else look_up(content, name, bag)

    return _Code(value, maybe)


def _call(call: Call, manifest: Manifest) -> _Step:
    args = [_code(arg, manifest).value for arg in call.args]
    match call.name:
        case "LAND":
            return lambda bag: args[0](bag) and args[1](bag)
        case "LOR":
            return lambda bag: args[0](bag) or args[1](bag)
        case "conditional":
            return lambda bag: args[1](bag) if args[0](bag) else args[2](bag)
        case "size":
            return lambda bag: len(args[0](bag).encode())
        case "EQ" | "NEQ" | "LT" | "LEQ" | "GT" | "GEQ" | "ADD":
            first, second = args[0], args[1]
            operation = _operation(call, type_of(call.args[0], manifest))
            return lambda bag: operation(first(bag), second(bag))
    count = len(EXTERNS[call.name][0].args)
    function = EXTERNS[call.name][1]
    steps = args[:count]
    if call.target is not None:
        steps.insert(0, _code(call.target, manifest).value)
    return lambda bag: function(*[step(bag) for step in steps])


def _operation(call: Call, kind: str) -> Callable[[Any, Any], Any]:
    operation: Callable[[Any, Any], Any] | None
    if call.name in _ORDER:
        operation = _ORDER[call.name] if kind in _ORDERED else None
    elif call.name == "ADD":
        operation = _ADD.get(kind)
    else:
        operation = _EQUAL.get(kind)
    if operation is None:
        raise CompileError(f"{call}: {call.name} is not defined for {kind}")
    if call.name == "NEQ":
        equal = operation
        return lambda a, b: not equal(a, b)
    return operation
