"""Manifests as people write them: YAML or JSON, in files, directories or on standard input.

Documents are read as kubectl reads them: YAML becomes JSON (keys are strings, dates stay text),
and a document that cannot be read does not take its neighbours with it.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from meshbus.api.nulls import without_nulls
from meshbus.api.yaml_lines import Place, at_path, line_of, places
from meshbus.api.yaml_text import NotReadableError, read_yaml

LARGEST_FILE_BYTES = 100 * 1024 * 1024
SUFFIXES = (".yaml", ".yml", ".json")
_SEPARATOR = re.compile(r"---(?:[ \t]+(?P<rest>.*))?")


class _Text:
    """A document as it is written; several objects, if it is a List."""

    def __init__(self, line: int, text: str) -> None:
        self._line = line
        self._text = text

    @cached_property
    def root(self) -> Place:
        """Where its values stand. Few documents are asked: those with something to say of."""
        return places(self._text, self._line)


class Document(msgspec.Struct, frozen=True):
    """One object, and where it came from."""

    file: str
    """As the person named it; `-` is standard input."""
    index: int
    """Its place among the documents of the file, from 0; items of a List count for themselves."""
    line: int
    """Line of the file where its document begins, from 1."""
    content: dict[str, Any]
    text: _Text | None = None
    """None: it was not read from a file."""
    within: str = ""
    """Path of the object in its document: `items[1]` of a List."""

    def line_of(self, path: str) -> int:
        """Line of the file where a field stands, from 1; of the nearest field around it where it
        is missing, and of the object for an empty path."""
        if self.text is None:
            return self.line
        return line_of(at_path(self.text.root, self.within), path)


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


def load_mesh_config(file: str) -> dict[str, Any]:
    """The fields of the mesh config of a file, whether or not they stand in a `MeshConfig`.

    Raises:
        ManifestError: It cannot be read, or holds other than one document.
    """
    documents = load([file])
    if len(documents) != 1:
        raise ManifestError(file, 0, -1, "must hold one document: the mesh config")
    content = documents[0].content
    if content.get("kind") != "MeshConfig":
        return content
    spec = content.get("spec")
    return spec if isinstance(spec, dict) else {}


def read(paths: Iterable[str | Path]) -> Iterator[Document | ManifestError]:
    """All documents of all paths, in order, and in the place of those that cannot be read the
    reason. A directory means its manifests, not those of its directories."""
    for path in paths:
        try:
            files = files_of(str(path))
        except ManifestError as error:
            yield error
            continue
        for file in files:
            try:
                text = text_of(file)
            except ManifestError as error:
                yield error
                continue
            yield from _documents(file, text)


class Part(msgspec.Struct, frozen=True):
    """One document as it stands in its file; a List is one document."""

    file: str
    line: int
    text: str
    content: Any


def read_parts(path: str) -> Iterator[Part]:
    """The documents of a file or directory, in order, each with its text.

    Raises:
        ManifestError: The first that cannot be read.
    """
    for file in files_of(path):
        for index, (line, text) in enumerate(parts(text_of(file))):
            try:
                content = read_yaml(text, line)
            except NotReadableError as error:
                raise ManifestError(file, error.line, index, error.message) from error
            if content is not None:
                yield Part(file, line, text, content)


def files_of(path: str) -> Sequence[str]:
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


def text_of(file: str) -> str:
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
    for line, part in parts(text):
        try:
            content = read_yaml(part, line)
        except NotReadableError as error:
            yield ManifestError(file, error.line, index, error.message)
            index += 1
            continue
        if content is None:
            continue
        written = _Text(line, part)
        for within, item in _items(content):
            if isinstance(item, dict):
                yield Document(file, index, line, without_nulls(item), written, within)
            else:
                message = f"must be an object with apiVersion and kind, is {_kind_of(item)}"
                at = line_of(written.root, within)
                yield ManifestError(file, at, index, message)
            index += 1


def parts(text: str) -> Iterator[tuple[int, str]]:
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


def _items(content: Any, within: str = "") -> Iterator[tuple[str, Any]]:
    """(path in the document, object) of what a document holds."""
    listed = isinstance(content, dict) and str(content.get("kind", "")).endswith("List")
    if listed and isinstance(content.get("items"), list):
        for index, item in enumerate(content["items"]):
            yield from _items(item, f"{within}.items[{index}]".removeprefix("."))
    else:
        yield within, content


def _kind_of(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
