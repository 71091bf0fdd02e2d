"""Functions of templates: those of Go, those that Istio adds, and the usual ones of sprig.

Sources: https://pkg.go.dev/text/template#hdr-Functions, https://masterminds.github.io/sprig/
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import yaml


class TemplateError(ValueError):
    """A template that cannot be read or rendered."""


def is_true(value: Any) -> bool:
    """Truth as templates have it: nothing, zero and what is empty are false."""
    return bool(value)


def display(value: Any) -> str:
    """A value as it is printed."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{k}:{display(value[k])}" for k in sorted(value)) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(display(item) for item in value) + "]"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _to_yaml(value: Any) -> str:
    return yaml.safe_dump(_plain(value), default_flow_style=False, sort_keys=True).rstrip("\n")


def _to_json(value: Any) -> str:
    return json.dumps(_plain(value), separators=(",", ":"))


def _from_json(text: str) -> Any:
    return json.loads(text)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if value is None:
            return None
        if isinstance(value, Mapping):
            value = value.get(key, "" if all(isinstance(v, str) for v in value.values()) else None)
        elif isinstance(key, int) and not -1 < key < len(value):
            raise TemplateError(f"index out of range: {key}")
        else:
            value = value[key]
    return value


def _and(*values: Any) -> Any:
    return next((value for value in values if not is_true(value)), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if is_true(value)), values[-1])


def _equal(first: Any, *others: Any) -> bool:
    return any(first == other for other in others)


def _default(fallback: Any, value: Any = None) -> Any:
    return value if is_true(value) else fallback


def _value_or_default(value: Any, fallback: Any) -> Any:
    return fallback if value is None or value == "" else value


def _annotation(meta: Mapping[str, Any], name: str, fallback: Any) -> str:
    notes = meta.get("Annotations") or meta.get("annotations") or {}
    return str(notes[name]) if name in notes else display(fallback)


def _isset(values: Mapping[str, Any] | None, key: str) -> bool:
    return bool(values) and key in (values or {})


def _indent(spaces: int, text: str) -> str:
    """Istio's: the first line stays where it is."""
    return text.replace("\n", "\n" + " " * spaces)


def _nindent(spaces: int, text: str) -> str:
    return "\n" + "\n".join(" " * spaces + line for line in text.split("\n"))


def _quote(*values: Any) -> str:
    return " ".join(json.dumps(display(value), ensure_ascii=False) for value in values)


def _squote(*values: Any) -> str:
    return " ".join(f"'{display(value)}'" for value in values)


def _printf(form: str, *values: Any) -> str:
    out, position, used = "", 0, 0
    while position < len(form):
        char = form[position]
        if char != "%":
            out += char
            position += 1
            continue
        verb = form[position + 1 : position + 2]
        position += 2
        if verb == "%":
            out += "%"
            continue
        if verb not in ("s", "v", "d", "q", "t"):
            raise TemplateError(f"printf: %{verb} is not known")
        if used >= len(values):
            raise TemplateError("printf: too few values")
        out += _quote(values[used]) if verb == "q" else display(values[used])
        used += 1
    return out


def _dict(*pairs: Any) -> dict[str, Any]:
    return {str(pairs[at]): pairs[at + 1] for at in range(0, len(pairs) - 1, 2)}


def _append(values: Any, item: Any) -> list[Any]:
    return [*(values or ()), item]


def _join(separator: str, values: Any) -> str:
    return separator.join(display(item) for item in values or ())


def _exclude_inbound(port: Any, excluded: str) -> str:
    word = display(port).strip()
    parts = [part.strip() for part in excluded.split(",") if part.strip()]
    return ",".join(parts if word in ("", "0", *parts) else [*parts, word])


def _number(value: Any) -> int:
    return int(float(value)) if value not in (None, "") else 0


def _ternary(yes: Any, no: Any, test: Any) -> Any:
    return yes if is_true(test) else no


def _fail(message: str) -> Any:
    raise TemplateError(message)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": _and,
    "or": _or,
    "not": lambda value: not is_true(value),
    "eq": _equal,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "len": len,
    "index": _index,
    "print": lambda *values: "".join(display(value) for value in values),
    "printf": _printf,
    "annotation": _annotation,
    "isset": _isset,
    "valueOrDefault": _value_or_default,
    "excludeInboundPort": _exclude_inbound,
    "directory": lambda path: path.rpartition("/")[0] + "/",
    "env": lambda name, fallback="": fallback,
    "contains": lambda needle, text: needle in text,
    "toYaml": _to_yaml,
    "toJson": _to_json,
    "toJSON": _to_json,
    "structToJSON": _to_json,
    "protoToJSON": _to_json,
    "fromJson": _from_json,
    "fromJSON": _from_json,
    "indent": _indent,
    "nindent": _nindent,
    "default": _default,
    "empty": lambda value: not is_true(value),
    "coalesce": lambda *values: next((v for v in values if is_true(v)), None),
    "ternary": _ternary,
    "required": lambda message, value: value if value not in (None, "") else _fail(message),
    "fail": _fail,
    "quote": _quote,
    "squote": _squote,
    "toString": display,
    "int": _number,
    "add": lambda *values: sum(_number(value) for value in values),
    "sub": lambda a, b: _number(a) - _number(b),
    "lower": lambda text: text.lower(),
    "toLower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "trim": lambda text: text.strip(),
    "trimSuffix": lambda suffix, text: text.removesuffix(suffix),
    "trimPrefix": lambda prefix, text: text.removeprefix(prefix),
    "hasPrefix": lambda prefix, text: text.startswith(prefix),
    "hasSuffix": lambda suffix, text: text.endswith(suffix),
    "replace": lambda old, new, text: text.replace(old, new),
    "trunc": lambda size, text: text[:size] if size >= 0 else text[size:],
    "split": lambda separator, text: text.split(separator),
    "splitList": lambda separator, text: text.split(separator),
    "join": _join,
    "list": lambda *values: list(values),
    "append": _append,
    "first": lambda values: values[0] if values else None,
    "last": lambda values: values[-1] if values else None,
    "has": lambda item, values: item in (values or ()),
    "uniq": lambda values: list(dict.fromkeys(values)),
    "dict": _dict,
    "get": lambda values, key: (values or {}).get(key, ""),
    "hasKey": lambda values, key: key in (values or {}),
    "keys": lambda values: sorted(values or {}),
}
