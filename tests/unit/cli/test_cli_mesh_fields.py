"""Every field of the mesh's own settings, set by itself: carried out, shown by a test, or told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest

from meshbus.api.kinds import kind_of
from meshbus.cli.carriers import carrier_of
from meshbus.validate import validate_object
from meshbus.validate.support import limits_of, silent_fields_of, unsupported_fields

ROOT = Path(__file__).parents[3]
GROUP = "mesh.istio.io/v1alpha1"
Struct = type[msgspec.Struct]
Path_ = tuple[tuple[Struct, str, bool], ...]
"""(struct, field, whether it is a list or map of structs) from the kind down to a field."""


def inner_of(annotation: Any) -> tuple[Struct, bool] | None:
    """The struct in a field's type, and whether many of it are held."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation, False
    many = get_origin(annotation) in (list, dict)
    for argument in get_args(annotation):
        if (found := inner_of(argument)) is not None:
            return found[0], many or found[1]
    return None


def leaves(struct: Struct, before: Path_ = ()) -> Iterator[Path_]:
    for field in msgspec.structs.fields(struct):
        found = inner_of(field.type)
        here = (*before, (struct, field.encode_name, found is not None and found[1]))
        if found is None or found[0] in {step[0] for step in here}:
            yield here
        else:
            yield from leaves(found[0], here)


def value_of(annotation: Any) -> Any:
    """Something that is not the default."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return arguments[-1]
    if origin is list:
        return [value_of(arguments[0])]
    if origin is dict:
        return {"a": "b"}
    if arguments:
        return value_of(arguments[0])
    return {bool: True, int: 3, float: 3.0, str: "a"}.get(annotation, {"a": "b"})


def document_of(kind: str, path: Path_) -> dict[str, Any]:
    """A document in which one field is set."""
    struct, name, _ = path[-1]
    (field,) = [f for f in msgspec.structs.fields(struct) if f.encode_name == name]
    spec: Any = {name: value_of(field.type)}
    for _, above, many in reversed(path[:-1]):
        spec = {above: [spec] if many else spec}
    return {"apiVersion": GROUP, "kind": kind, "metadata": {"name": "mesh"}, "spec": spec}


def described(kind: str) -> list[tuple[str, Path_]]:
    info = kind_of(GROUP, kind)
    assert info is not None
    shape = info.shape()
    assert shape is not None
    return [(kind, path) for path in leaves(shape)]


KINDS = ("MeshConfig", "MeshNetworks")
ALL = [case for kind in KINDS for case in described(kind)]


def refused_fields(kind: str) -> set[str]:
    """What the table of the docs says no to."""
    info = kind_of(GROUP, kind)
    assert info is not None
    limits = limits_of(info) or ()
    return {one.pattern.removeprefix("spec.").replace("[]", "") for one in limits if not one.values}


@pytest.mark.parametrize(
    ("kind", "path"), ALL, ids=[f"{k}.{'.'.join(s[1] for s in p)}" for k, p in ALL]
)
def test_a_field_is_carried_out_or_told(kind: str, path: Path_) -> None:
    names = [step[1] for step in path]
    above = {".".join(names[: i + 1]) for i in range(len(names))}
    if above & refused_fields(kind):
        document = document_of(kind, path)
        told = (*unsupported_fields(document), *silent_fields_of(document))
        assert told or validate_object(document).errors, "it is lost, and nobody hears of it"
        return
    carriers = [carrier_of(step[0].__name__, step[1]) for step in path]
    carrier, test = next((c for c in reversed(carriers) if c[0]), ("", ""))
    assert carrier, f"{path[-1][0].__name__}.{names[-1]}: nobody says what carries it"
    assert (ROOT / test).is_file(), test
