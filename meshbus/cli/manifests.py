"""Manifests as people write them: YAML or JSON, in files, directories or on standard input.

Documents are read as kubectl reads them: YAML becomes JSON (keys are strings, dates stay text),
and a document that cannot be read does not take its neighbours with it.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import yaml

LARGEST_DOCUMENT_BYTES = 10 * 1024 * 1024
LARGEST_FILE_BYTES = 100 * 1024 * 1024
SUFFIXES = (".yaml", ".yml", ".json")
_MOST_VALUES = 1_000_000
"""Aliases can make a small text stand for more values than there is memory for."""
_DEEPEST = 100
_SEPARATOR = re.compile(r"---(?:[ \t]+(?P<rest>.*))?")


class Document(msgspec.Struct, frozen=True):
    """One object, and where it came from."""

    file: str
    """As the person named it; `-` is standard input."""
    index: int
    """Its place among the documents of the file, from 0; items of a List count for themselves."""
    line: int
    """Line of the file where its document begins, from 1."""
    content: dict[str, Any]


class ManifestError(Exception):
    """A file or document that cannot be read.

    Attributes:
        index: Place of the document in the file; -1 if it is the file as a whole.
        line: Line of the file, from 1; 0 if it is the file as a whole.
    """

    def __init__(self, file: str, line: int, index: int, message: str) -> None:
        place = f"{file}:{line}: document {index}" if index >= 0 else file
        super().__init__(f"{place}: {message}")
        self.file = file
        self.line = line
        self.index = index
        self.message = message


def load(paths: Iterable[str | Path]) -> list[Document]:
    """All documents of all paths, in order.

    Raises:
        ManifestError: The first that cannot be read.
    """
    documents: list[Document] = []
    for item in read(paths):
        if isinstance(item, ManifestError):
            raise item
        documents.append(item)
    return documents


def read(paths: Iterable[str | Path]) -> Iterator[Document | ManifestError]:
    """All documents of all paths, in order, and in the place of those that cannot be read the
    reason. A directory means its manifests, not those of its directories."""
    for path in paths:
        try:
            files = _files(str(path))
        except ManifestError as error:
            yield error
            continue
        for file in files:
            try:
                text = _text(file)
            except ManifestError as error:
                yield error
                continue
            yield from _documents(file, text)


def _files(path: str) -> Sequence[str]:
    if path == "-":
        return [path]
    place = Path(path)
    try:
        if not place.is_dir():
            return [path]
        found = [str(p) for p in sorted(place.iterdir()) if p.suffix in SUFFIXES and p.is_file()]
    except OSError as error:
        raise ManifestError(path, 0, -1, error.strerror or str(error)) from error
    if not found:
        raise ManifestError(path, 0, -1, f"a directory without manifests ({', '.join(SUFFIXES)})")
    return found


def _text(file: str) -> str:
    try:
        if file == "-":
            data = _limited(sys.stdin.buffer)
        else:
            with Path(file).open("rb") as stream:
                data = _limited(stream)
    except OSError as error:
        raise ManifestError(file, 0, -1, error.strerror or str(error)) from error
    if data is None:
        raise ManifestError(file, 0, -1, f"is larger than {LARGEST_FILE_BYTES // 2**20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(file, 0, -1, f"is not UTF-8: byte {error.start}") from error


def _limited(stream: BinaryIO) -> bytes | None:
    data = stream.read(LARGEST_FILE_BYTES + 1)
    return None if len(data) > LARGEST_FILE_BYTES else data


def _documents(file: str, text: str) -> Iterator[Document | ManifestError]:
    index = 0
    for line, part in _parts(text):
        try:
            content = _parse(part, line)
        except _NotReadableError as error:
            yield ManifestError(file, error.line, index, error.message)
            index += 1
            continue
        if content is None:
            continue
        for item in _items(content):
            if isinstance(item, dict):
                yield Document(file, index, line, item)
            else:
                message = f"must be an object with apiVersion and kind, is {_kind_of(item)}"
                yield ManifestError(file, line, index, message)
            index += 1


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """The documents of a text and the lines they begin at; split before YAML is parsed, so that
    one that is malformed is alone in it."""
    lines: list[str] = []
    begin = 1
    for number, line in enumerate(text.split("\n"), 1):
        separator = _SEPARATOR.fullmatch(line.rstrip())
        if separator is None:
            lines.append(line)
            continue
        yield begin, "\n".join(lines)
        # What stands behind the separator keeps its line.
        lines, begin = [separator["rest"] or ""], number
    yield begin, "\n".join(lines)


def _items(content: Any) -> Iterator[Any]:
    listed = isinstance(content, dict) and str(content.get("kind", "")).endswith("List")
    if listed and isinstance(content.get("items"), list):
        for item in content["items"]:
            yield from _items(item)
    else:
        yield content


def _kind_of(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


class _NotReadableError(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


def _parse(part: str, line: int) -> Any:
    if len(part) > LARGEST_DOCUMENT_BYTES or len(part.encode()) > LARGEST_DOCUMENT_BYTES:
        size = LARGEST_DOCUMENT_BYTES // 2**20
        raise _NotReadableError(line, f"is larger than {size} MiB")
    if part.lstrip()[:1] == "{" and (parsed := _json(part)) is not None:
        return parsed
    try:
        loader = _Loader(part)
        try:
            content = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = line + (mark.line if mark else 0)
        raise _NotReadableError(at, f"not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise _NotReadableError(line, f"not YAML: {error}") from error
    except (RecursionError, ValueError) as error:
        raise _NotReadableError(line, f"not YAML: {error}") from error
    return _Plain(line).copy(content, 0)


def _json(part: str) -> Any:
    """A JSON document; None if it is YAML after all. YAML's own reader refuses tabs."""
    try:
        return json.loads(part, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)


_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):  # type: ignore[misc]
    """YAML as kubectl reads it: no dates, no numbers of base 60, no key twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own form
        first: [(tag, regexp) for tag, regexp in resolvers if "timestamp" not in tag]
        for first, resolvers in _Safe.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"duplicate key {key.value!r}", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_number(self, node: Any) -> Any:
        """A number, or text where base 60 is meant by YAML 1.1 alone (`12:30`)."""
        if ":" in node.value:
            return node.value
        if node.tag == "tag:yaml.org,2002:int":
            return self.construct_yaml_int(node)
        return self.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
# Go's reader takes exponents without a dot or a sign for numbers, PyYAML's does not.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


class _Plain:
    """Copies what YAML holds into what JSON can hold."""

    def __init__(self, line: int) -> None:
        self._line = line
        self._left = _MOST_VALUES

    def copy(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            reason = "nested too deeply" if depth > _DEEPEST else "too many values (aliases?)"
            raise _NotReadableError(self._line, reason)
        if isinstance(value, dict):
            return {self._key(k): self.copy(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list):
            return [self.copy(item, depth + 1) for item in value]
        if value is None or isinstance(value, str | bool | int):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        raise _NotReadableError(self._line, f"{value!r} cannot be written as JSON")

    def _key(self, key: Any) -> str:
        if isinstance(key, str):
            return key
        if isinstance(key, bool | int | float):
            return json.dumps(key)
        raise _NotReadableError(self._line, f"{key!r} cannot be a key")
