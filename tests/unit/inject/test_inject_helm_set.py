"""`--set` reads as Helm's does."""

from typing import Any

import pytest

from meshbus.inject.helm_set import SetError, merge_values, set_values


def read(*texts: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for text in texts:
        set_values(values, text)
    return values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=b", {"a": "b"}),
        ("a.b.c=1", {"a": {"b": {"c": 1}}}),
        ("a=1,b=true", {"a": 1, "b": True}),
        ("a=007", {"a": "007"}),
        ("a=0", {"a": 0}),
        ("a=1.5", {"a": "1.5"}),
        ("a=", {"a": ""}),
        ("a={x,y}", {"a": ["x", "y"]}),
        ("a={}", {"a": []}),
        ("a[0].b=1,a[1].b=2", {"a": [{"b": 1}, {"b": 2}]}),
        ("a[1]=x", {"a": [None, "x"]}),
        ("a[0][1]=x", {"a": [[None, "x"]]}),
        (r"a\.b/c=1", {"a.b/c": 1}),
        (r"a=x\,y", {"a": "x,y"}),
        ("a=x=y", {"a": "x=y"}),
        ("ports=4,5,6", {"ports": "4,5,6"}),
        ("a=null", {"a": None}),
        (r"n[0].matchLabels.job-name\.io/x=y", {"n": [{"matchLabels": {"job-name.io/x": "y"}}]}),
    ],
)
def test_syntax(text: str, expected: dict[str, Any]) -> None:
    assert read(text) == expected


@pytest.mark.parametrize("text", ["a", "a[x]=1", "a[70000]=1", "[0]=1", "=1", "a[0]b=1"])
def test_what_is_not_syntax_is_refused(text: str) -> None:
    with pytest.raises(SetError):
        read(text)


def test_later_ones_win_and_null_removes_a_default() -> None:
    given = read("a.b=1", "a.b=2", "a.c=null")
    assert merge_values({"a": {"b": 0, "c": 1, "d": 2}}, given) == {"a": {"b": 2, "d": 2}}


def test_set_string_keeps_text() -> None:
    values: dict[str, Any] = {}
    set_values(values, "a=1,b=true,c=null", strings=True)
    assert values == {"a": "1", "b": "true", "c": "null"}
