"""Fields of a document are on the lines that people see them on."""

import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from meshbus.api.yaml_lines import line_of, places
from meshbus.api.yaml_text import read_yaml

TEXT = """\
# a comment
kind: Thing
metadata:
  labels:
    app.kubernetes.io/name: a
    "b]": c
base: &base
  retries: 3
  hosts:
  - x
  - y
spec:
  http:
  - match:
    - uri: {exact: /a,
        prefix: /b}
  - <<: *base
    name: second
  - route: &r
    - host: z
  copied: *r
  folded: >
    some
    text
  after: 1
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("", 2),
        ("kind", 2),
        ("metadata.labels", 4),
        ("metadata.labels[app.kubernetes.io/name]", 5),
        ("metadata.labels[b]]", 6),
        ("metadata.name", 3),
        ("spec.http", 13),
        ("spec.http[0]", 14),
        ("spec.http[0].match[0].uri.exact", 15),
        ("spec.http[0].match[0].uri.prefix", 16),
        ("spec.http[0].match[0].uri.regex", 15),
        ("spec.http[0].match[7].uri", 14),
        ("spec.http[1].name", 18),
        ("spec.http[1].retries", 8),
        ("spec.http[1].hosts[1]", 11),
        ("spec.http[2].route[0].host", 20),
        ("spec.copied", 21),
        ("spec.copied[0].host", 20),
        ("spec.after", 25),
        ("status.conditions", 2),
    ],
)
def test_lines(path: str, line: int) -> None:
    assert line_of(places(TEXT), path) == line
    assert line_of(places(TEXT, 101), path) == line + 100


def test_names_of_another_spelling() -> None:
    assert line_of(places("spec:\n  fault_delay: 1\n"), "spec.faultDelay") == 2


def _paths(value: Any, path: str = "") -> Any:
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, f"{path}[{key}]")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, f"{path}[{index}]")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('ab.-é"\\', max_size=3), inner)
    ),
    max_leaves=12,
)


class _Writer(yaml.SafeDumper):
    """Quotes texts that begin like numbers, and `y` and `n`: to PyYAML `0E0` is none, to Kubernetes
    it is."""


def _text(writer: _Writer, text: str) -> yaml.ScalarNode:
    style = "'" if re.match(r"[-+.]*[0-9]|[yYnN]$", text) else None
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _text)


@example({"x": "0E0"})
@given(st.dictionaries(st.text("xyz", min_size=1, max_size=2), VALUES, min_size=1))
def test_json_and_yaml_stand_where_their_text_does(value: dict[str, Any]) -> None:
    """Written with one value a line, every value is on a line of its own, in order."""
    text = json.dumps(value, indent=1)
    found = [line_of(places(text), path) for path in _paths(value)]
    assert found == sorted(found)
    assert len(set(found)) == len(found)
    # What YAML has no need of quotes for is where its own writer puts it.
    written = yaml.dump(value, Dumper=_Writer, allow_unicode=False, sort_keys=False)
    assert read_yaml(written) == value
    root = places(written)
    lines = [line_of(root, path) for path in _paths(value)]
    assert lines == sorted(lines)
