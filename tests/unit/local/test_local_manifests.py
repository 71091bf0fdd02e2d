"""Manifests are read as kubectl reads them, and what cannot be read is said with its place."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from meshbus.api import yaml_text
from meshbus.local import manifests
from meshbus.local.manifests import Document, ManifestError, load, read


def one(tmp_path: Path, text: str, name: str = "a.yaml") -> list[Document | ManifestError]:
    path = tmp_path / name
    path.write_text(text)
    return list(read([path]))


def contents(items: list[Document | ManifestError]) -> list[Any]:
    return [item.content if isinstance(item, Document) else item.message for item in items]


def test_documents_keep_their_places(tmp_path: Path) -> None:
    found = one(tmp_path, "# only a comment\n---\na: 1\n--- # next\nb: 2\n---\n---\nc: 3\n")
    assert contents(found) == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert [(d.index, d.line) for d in found] == [(0, 2), (1, 4), (2, 7)]


def test_a_malformed_document_is_alone(tmp_path: Path) -> None:
    found = one(tmp_path, "a: 1\n---\nb: [1\nc: 2\n---\nd: 3\n")
    assert isinstance(found[1], ManifestError)
    assert found[1].index == 1
    assert found[1].line in (3, 4, 5)
    assert "not YAML" in found[1].message
    assert contents([found[0], found[2]]) == [{"a": 1}, {"d": 3}]
    with pytest.raises(ManifestError, match="document 1"):
        load([tmp_path / "a.yaml"])


def test_values_are_those_of_json(tmp_path: Path) -> None:
    text = "ports: {8080: x, true: y}\nday: 2024-01-02\nat: 12:30\nbig: 1e3\non: off\nhex: 0x10\n"
    text += "sign: =\ntruths: [y, n, Y, on, yes]\nnumbers: [-.5, +.5, 08, 0o10, 010, 1.0, 1.5]\n"
    text += "texts: [0o8, ye, +]\n2.0: two\n"
    assert contents(one(tmp_path, text)) == [
        {
            "ports": {"8080": "x", "true": True},
            "day": "2024-01-02",
            "at": "12:30",
            "big": 1000,
            "true": False,
            "hex": 16,
            "sign": "=",
            "truths": [True, False, True, True, True],
            "numbers": [-0.5, 0.5, 8, 8, 8, 1, 1.5],
            "texts": ["0o8", "ye", "+"],
            "2": "two",
        }
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "duplicate key 'a'"),
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ("- a\n- b\n", "must be an object"),
        ("text\n", "must be an object"),
        ("a: .inf\n", "cannot be written as JSON"),
        ("a: !!python/object:os.system x\n", "not YAML"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("? [a]\n: b\n", "not YAML"),
        ("a: " + "[" * 300 + "]" * 300, "too deeply"),
    ],
)
def test_bad_documents(tmp_path: Path, text: str, message: str) -> None:
    found = one(tmp_path, text)
    assert len(found) == 1
    assert isinstance(found[0], ManifestError), found
    assert message in found[0].message


def test_aliases_cannot_blow_up(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    found = one(tmp_path, "\n".join(levels))
    assert isinstance(found[0], ManifestError)
    assert "too many values" in found[0].message


def test_json_with_tabs(tmp_path: Path) -> None:
    assert contents(one(tmp_path, '{\n\t"a":\t1\n}\n', "a.json")) == [{"a": 1}]


def test_lists_are_their_items(tmp_path: Path) -> None:
    text = (
        "kind: List\nitems:\n- kind: A\n- kind: ServiceList\n  items: [{kind: B}]\n---\nkind: C\n"
    )
    found = one(tmp_path, text)
    assert [d.content["kind"] for d in found if isinstance(d, Document)] == ["A", "B", "C"]
    assert [d.index for d in found] == [0, 1, 2]


def test_directories_mean_their_manifests(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "c.yaml").write_text("c: 1")
    (tmp_path / "b.yml").write_text("b: 1")
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "notes.txt").write_text("x")
    assert [d.content for d in load([tmp_path])] == [{"a": 1}, {"b": 1}]


def test_a_directory_without_manifests_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="without manifests"):
        load([tmp_path])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
    (tmp_path / "good.yaml").write_text("a: 1\n")
    found = list(read([tmp_path / "none.yaml", tmp_path]))
    assert [type(item) for item in found] == [ManifestError, Document, ManifestError]
    assert "No such file" in str(found[0])
    assert "not UTF-8" in str(found[2])


def test_size_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "LARGEST_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(manifests, "LARGEST_FILE_BYTES", 3000)
    large = "a: " + "x" * 1000
    found = one(tmp_path, f"b: 1\n---\n{large}\n")
    assert isinstance(found[1], ManifestError)
    assert "larger than" in found[1].message
    whole = one(tmp_path, "x" * 4000)
    assert isinstance(whole[0], ManifestError)
    assert whole[0].index == -1


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a: 1\n")))
    assert [(d.file, d.content) for d in load(["-"])] == [("-", {"a": 1})]
