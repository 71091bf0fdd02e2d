"""Label and field selectors of lists and watches.

Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#api
"""

import re
from collections.abc import Callable, Mapping

from meshbus.model.rows import ConfigObject
from meshbus_config.errors import bad_request

Match = Callable[[ConfigObject], bool]
"""Whether an object is selected."""

_Labels = Callable[[Mapping[str, str]], bool]
_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_KEY = rf"(?:{_NAME}/)?{_NAME}"
_SET = re.compile(rf"\s*({_KEY})\s+(in|notin)\s*\(([^()]*)\)\s*(?:,|$)")
_EXISTS = re.compile(rf"\s*(!?)\s*({_KEY})\s*(?:,|$)")
_EQUALS = re.compile(rf"\s*({_KEY})\s*(==|=|!=)\s*((?:{_NAME})?)\s*(?:,|$)")
_FIELD = re.compile(r"\s*([A-Za-z.]+)\s*(==|=|!=)\s*([^,=!]*?)\s*(?:,|$)")


def parse_labels(text: str) -> _Labels:
    """A predicate on labels.

    Raises:
        ApiError: 400, the selector is malformed.
    """
    tests: list[_Labels] = []
    position = 0
    while position < len(text):
        if found := _SET.match(text, position):
            values = frozenset(value.strip() for value in found[3].split(","))
            tests.append(_in_set(found[1], values, wanted=found[2] == "in"))
        elif found := _EQUALS.match(text, position):
            tests.append(_in_set(found[1], frozenset({found[3]}), wanted=found[2] != "!="))
        elif found := _EXISTS.match(text, position):
            tests.append(_exists(found[2], wanted=not found[1]))
        else:
            raise bad_request(
                f"unable to parse labelSelector {text!r}: at {text[position:]!r} expected "
                "KEY, !KEY, KEY=VALUE, KEY!=VALUE, KEY in (A,B) or KEY notin (A,B)"
            )
        position = found.end()
    return lambda labels: all(test(labels) for test in tests)


def _in_set(key: str, values: frozenset[str], *, wanted: bool) -> _Labels:
    # An absent label satisfies != and notin.
    return lambda labels: (key in labels and labels[key] in values) is wanted


def _exists(key: str, *, wanted: bool) -> _Labels:
    return lambda labels: (key in labels) is wanted


_FIELDS: dict[str, Callable[[ConfigObject], str]] = {
    "metadata.name": lambda row: row.name,
    "metadata.namespace": lambda row: row.namespace,
    "metadata.uid": lambda row: row.uid,
    "type": lambda row: str(row.spec.get("type", "")),
    "spec.nodeName": lambda row: str(row.spec.get("nodeName", "")),
}


def parse_fields(text: str) -> Match:
    """A predicate on objects from a field selector: metadata.name, metadata.namespace,
    metadata.uid, and what Kubernetes has for Secrets (`type`) and Pods (`spec.nodeName`).

    Raises:
        ApiError: 400, the selector is malformed or names another field.
    """
    tests: list[tuple[Callable[[ConfigObject], str], str, bool]] = []
    position = 0
    while position < len(text):
        found = _FIELD.match(text, position)
        if not found:
            raise bad_request(f"unable to parse fieldSelector {text!r}: expected FIELD=VALUE")
        read = _FIELDS.get(found[1])
        if read is None:
            raise bad_request(
                f"field label not supported: {found[1]} (known: {', '.join(sorted(_FIELDS))})"
            )
        tests.append((read, found[3], found[2] != "!="))
        position = found.end()
    return lambda row: all((read(row) == value) is wanted for read, value, wanted in tests)


def parse_selectors(labels: str, fields: str) -> Match:
    """Both selectors at once; an empty one selects all.

    Raises:
        ApiError: 400, one of them is malformed.
    """
    by_labels = parse_labels(labels)
    by_fields = parse_fields(fields)
    return lambda row: by_labels(row.labels) and by_fields(row)
