"""Rules run beside errors of shape: what is wrong comes at once, and nothing else does."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_validate_edges import changed

from meshbus.api.kinds import kind_of
from meshbus.validate import validate_object
from meshbus.validate.report import Findings
from meshbus.validate.shape import read_shape

FILES = sorted((Path(__file__).parent / "edges").glob("*.yaml"))
WRONG: tuple[Any, ...] = ({"x": {"y": 1}}, [["x"]], True, -7.5)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key or index) of everything in a document."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def errors_of_shape(document: dict[str, Any]) -> set[tuple[str, str]]:
    info = kind_of(document["apiVersion"], document["kind"])
    assert info is not None
    shape = info.shape()
    assert shape is not None
    out = Findings()
    content = document.get("spec", {}) if info.spec_field else {
        key: item
        for key, item in document.items()
        if key not in ("apiVersion", "kind", "metadata")
    }  # fmt: skip
    read_shape(
        shape,
        content,
        "spec" if info.spec_field else "",
        out,
        proto_json=info.proto_json,
    )
    return {(error.path, error.code) for error in out.errors}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_is_said_because_of_what_nobody_can_read(file: Path) -> None:
    """A good object with one value of the wrong shape has the errors of its shape alone."""
    content = yaml.safe_load(file.read_text())
    for change in [{}, *content["accept"]]:
        document = changed(content["good"], change)
        held = {k: v for k, v in document.items() if k not in ("apiVersion", "kind", "metadata")}
        for number, _ in enumerate(places(held)):
            for wrong in WRONG:
                made = copy.deepcopy(document)
                inside = {k: v for k, v in made.items() if k in held}
                holder, key = list(places(inside))[number]
                if isinstance(wrong, dict) and isinstance(holder[key], dict):
                    continue
                holder[key] = wrong
                made |= inside
                shape = errors_of_shape(made)
                if not shape or not isinstance(made.get("spec", {}), dict):
                    continue
                found = {(error.path, error.code) for error in validate_object(made).errors}
                assert found == shape, (change, key, wrong)


ROUTE: dict[str, Any] = {
    "apiVersion": "networking.istio.io/v1",
    "kind": "VirtualService",
    "metadata": {"name": "a"},
}


def said(spec: dict[str, Any], **head: Any) -> list[tuple[str, str]]:
    report = validate_object({**ROUTE, **head, "spec": spec})
    return [(error.path, error.code) for error in report.errors]


def test_other_rules_speak() -> None:
    to = {"destination": {"host": "a"}}
    spec = {
        "hosts": ["a", "b_c"],
        "http": [
            {"route": [{**to, "weight": "much"}, {**to, "weight": 20}], "timeout": "soon"},
            {"match": [{"uri": {"regex": "("}}], "rout": [to]},
            {"fault": {"abort": {"httpStatus": 7}}, "route": [to], "retries": 3},
        ],
    }
    assert said(spec) == [
        ("spec.http[0].route[0].weight", "Type"),
        ("spec.http[0].timeout", "Invalid"),
        ("spec.http[1].rout", "Unknown"),
        ("spec.http[2].retries", "Type"),
        ("spec.hosts[1]", "Invalid"),
        ("spec.http[1].match[0].uri.regex", "Invalid"),
        ("spec.http[2].fault.abort.httpStatus", "Invalid"),
    ]


def test_ports_that_cannot_be_read_may_be_any() -> None:
    """An endpoint names a port whose name is malformed: nobody knows that it does not."""
    spec = {
        "hosts": ["a.example"],
        "resolution": "STATIC",
        "ports": [{"number": 80, "name": 80, "protocol": "HTTP"}],
        "endpoints": [{"address": "1.2.3.4", "ports": {"http": 8080}, "labels": {"a b": "c"}}],
    }
    assert said(spec, kind="ServiceEntry") == [("spec.ports[0].name", "Type")]


def test_documents_of_values_that_are_no_objects() -> None:
    assert said([1]) == [("spec", "Type")]  # type: ignore[arg-type]
