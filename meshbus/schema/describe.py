"""Descriptions of kinds and fields: the docstrings of their structs.

A field's description is the string that stands under it in the source; Python keeps no docstrings
of attributes, so the source is read.
"""

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise


def describe_class(cls: type) -> str:
    """What a struct is for."""
    return _flat(inspect.cleandoc(cls.__doc__ or ""))


def describe_fields(cls: type) -> dict[str, str]:
    """What the fields of a struct are for, by their names in Python; inherited ones too."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found.update(_of_module(base.__module__).get(base.__name__, {}))
    return found


@cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    try:
        source = inspect.getsource(sys.modules[name])
    except (OSError, TypeError):
        return {}
    return {
        node.name: _of_body(node.body)
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def _of_body(body: list[ast.stmt]) -> dict[str, str]:
    found: dict[str, str] = {}
    for field, text in pairwise(body):
        described = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if not (
            described and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        ):
            continue
        assert isinstance(text, ast.Expr)
        assert isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str):
            found[field.target.id] = _flat(inspect.cleandoc(text.value.value))
    return found


def _flat(text: str) -> str:
    return " ".join(text.split())
