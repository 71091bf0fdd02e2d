"""Label selectors of the chart's values and of webhooks.

Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/
"""

from collections.abc import Mapping
from typing import Any

from meshbus.inject.errors import InjectionError

_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector matches; an empty one matches everything."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    return all(_meets(rule, labels) for rule in selector.get("matchExpressions") or ())


def is_empty(selector: Mapping[str, Any]) -> bool:
    """Whether it asks for nothing."""
    return not selector.get("matchLabels") and not selector.get("matchExpressions")


def check_selectors(selectors: Any, path: str) -> list[Mapping[str, Any]]:
    """A list of LabelSelectors.

    Raises:
        InjectionError: It is not one.
    """
    if selectors is None:
        return []
    if not isinstance(selectors, list):
        raise InjectionError(path, "must be a list of label selectors")
    for index, selector in enumerate(selectors):
        place = f"{path}[{index}]"
        if not isinstance(selector, Mapping):
            raise InjectionError(place, "must be a label selector")
        for unknown in set(selector) - {"matchLabels", "matchExpressions"}:
            raise InjectionError(f"{place}.{unknown}", "is not a field of a label selector")
        labels = selector.get("matchLabels") or {}
        if not isinstance(labels, Mapping):
            raise InjectionError(f"{place}.matchLabels", "must be a map")
        for name, value in labels.items():
            if not isinstance(value, str):
                raise InjectionError(f"{place}.matchLabels[{name}]", "must be text")
        _check_expressions(selector.get("matchExpressions") or [], f"{place}.matchExpressions")
    return list(selectors)


def _check_expressions(rules: Any, path: str) -> None:
    if not isinstance(rules, list):
        raise InjectionError(path, "must be a list")
    for number, rule in enumerate(rules):
        at = f"{path}[{number}]"
        if not isinstance(rule, Mapping) or not isinstance(rule.get("key"), str):
            raise InjectionError(f"{at}.key", "is needed")
        operator, values = rule.get("operator"), rule.get("values") or []
        if operator not in _OPERATORS:
            raise InjectionError(f"{at}.operator", f"must be one of {', '.join(_OPERATORS)}")
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise InjectionError(f"{at}.values", "must be a list of texts")
        if operator in ("In", "NotIn") and not values:
            raise InjectionError(f"{at}.values", f"is needed for {operator}")
        if operator in ("Exists", "DoesNotExist") and values:
            raise InjectionError(f"{at}.values", f"must be empty for {operator}")


def _meets(rule: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = rule["key"], rule.get("values") or ()
    match rule["operator"]:
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case _:
            return key not in labels
