"""Small languages that rules are written in, and promises that every verdict keeps."""

import base64
import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from meshbus.api.durations import nanoseconds
from meshbus.validate import validate_object
from meshbus.validate.cel import cel_problem
from meshbus.validate.durations import duration_problem
from meshbus.validate.http_headers import header_value_problem
from meshbus.validate.names import host_is_subset, host_matches, namespaced_host_problem
from meshbus.validate.support import unsupported_fields

ROUTE = [{"destination": {"host": "a"}}]
GOLDEN = Path(__file__).parents[2] / "golden" / "validate"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1s", 10**9),
        ("1h30m", 5400 * 10**9),
        ("1.5ms", 1_500_000),
        (".5s", 5 * 10**8),
        ("1.s", 10**9),
        ("-2s", -2 * 10**9),
        ("0", 0),
        ("1", None),
        ("s", None),
        ("", None),
        ("1 s", None),
        ("1d", None),
        ("\u0661s", None),
        ("99999999h", None),
        ("1" * 100 + "s", None),
    ],
)
def test_durations(text: str, value: int | None) -> None:
    assert nanoseconds(text) == value


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ({"hosts": ["a"], "gateways": None, "http": [{"name": None, "route": ROUTE}]}, ""),
        ({"hosts": ["a"], "http": [{"route": ROUTE, "timeout": None, "fault": None}]}, ""),
        ({"hosts": ["a"], "http": [{"route": [{"destination": None}]}]}, "spec.http[0].route[0]"),
        ({"hosts": ["a"], "http": [None]}, "spec.http[0]"),
        ({"hosts": [None], "http": [{"route": ROUTE}]}, "spec.hosts[0]"),
        (
            {"hosts": ["a"], "http": [{"route": ROUTE, "match": [{"headers": {"b": None}}]}]},
            "spec.http[0].match[0].headers[b]",
        ),
    ],
)
def test_a_field_that_is_null_is_left_out(spec: dict[str, Any], refused: str) -> None:
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "a"},
        "spec": spec,
    }
    paths = [error.path for error in validate_object(document).errors]
    assert all(path.startswith(refused) for path in paths)
    assert bool(paths) == bool(refused)


def test_durations_of_rules_are_whole_milliseconds() -> None:
    assert duration_problem("250ms") is None
    assert duration_problem("0s") is not None
    assert duration_problem("1.0005s") is not None


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", False),
        ("response.code >= 400 && request.path.contains('a')", True),
        ("!has(a.b) ? [1, 2u, 0x1F][0] : {'k': -1.5e3}", True),
        ("connection.mtls", True),
        ("a in ['x', r'\\d']", True),
        ("Type{field: 1}", True),
        (")++++", False),
        ("a ==", False),
        ("a b", False),
        ("'open", False),
        ("a.1", False),
        ("a == 1 // the first", True),
        ("a.`b-c`.d", True),
        (r"path.matches(r'\d+\')", True),
        (r"path.matches('\d+')", False),
        (r"'\n\x41\101\u0041\U0001F600'", True),
        (r"b'\x41'", True),
        (r"b'\u0041'", False),
        (r"'\ud800'", False),
        (r"'\400'", False),
        ("rb'a'", False),
        ("[,]", True),
        ("{'a': 1,}", True),
        ("f(1,)", False),
        ("!-1", True),
        ("!-a", False),
        ("1.5u", False),
        ("-9223372036854775808", True),
        ("9223372036854775808", False),
        ("18446744073709551615u", True),
        ("1e999", False),
        ("a[0]{b: 1}", False),
        ("(" * 500 + ")" * 500, False),
    ],
)
def test_cel(text: str, right: bool) -> None:
    assert (cel_problem(text) is None) == right


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ("plain", True),
        ("100%%", True),
        ("a %REQ(X-Y?Z)% b", True),
        ("%DYNAMIC_METADATA(istio:key)%", True),
        ("%START_TIME(%s)%", True),
        ("%REQ(X):10%", True),
        ("100%", False),
        ("%START_TIME%%", False),
        ("%REQ(X%", False),
        ("a\nb", False),
    ],
)
def test_header_values(value: str, right: bool) -> None:
    assert (header_value_problem(value) is None) == right


def test_hosts() -> None:
    assert host_matches("*.com", "*.a.com")
    assert host_matches("a.com", "*.com")
    assert not host_matches("a.com", "b.com")
    assert host_is_subset("*.a.com", "*.com")
    assert not host_is_subset("*.com", "*.a.com")
    assert namespaced_host_problem("*/*", gateway=False) is None
    assert namespaced_host_problem("a.com", gateway=False) is not None
    assert namespaced_host_problem("~/a.com", gateway=True) is not None


def documents() -> list[dict[str, Any]]:
    found = []
    for path in GOLDEN.glob("*.in.yaml"):
        found += [d for d in yaml.safe_load_all(path.read_text()) if d]
    return found


def places(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in ((value, key), *places(item))]
    if isinstance(value, list):
        return [p for index, item in enumerate(value) for p in ((value, index), *places(item))]
    return []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_document_breaks_validation(data: st.DataObject) -> None:
    """Whatever stands wherever, the answer is a report."""
    document = copy.deepcopy(data.draw(st.sampled_from(documents())))
    container, key = data.draw(st.sampled_from(places(document)))
    container[key] = data.draw(JSON)
    first = validate_object(document)
    unsupported_fields(document)
    assert validate_object(document) == first
    assert all(v.message for v in [*first.errors, *first.warnings])


def test_secrets_are_not_repeated() -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "a"},
        "data": {"key": "hunter2!"},
        "stringData": {"other": 424242, "list": ["hunter3"]},
    }
    report = validate_object(secret)
    assert len(report.errors) == 3
    assert not any("hunter" in v.message or "4242" in v.message for v in report.errors)


@pytest.mark.parametrize(
    ("size", "valid", "warned"),
    [(100 * 1024, True, False), (100 * 1024 + 1, True, True), (1024**2, True, True),
     (1024**2 + 1, False, False)],
)  # fmt: skip
@pytest.mark.parametrize("field", ["string", "bytes"])
def test_bodies_have_a_largest_size(field: str, size: int, valid: bool, warned: bool) -> None:
    body = "a" * size if field == "string" else base64.b64encode(b"a" * size).decode()
    route = {"directResponse": {"status": 200, "body": {field: body}}}
    report = validate_object(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "a"},
            "spec": {"hosts": ["a.example"], "http": [route]},
        }
    )
    assert (report.valid, bool(report.warnings)) == (valid, warned)
