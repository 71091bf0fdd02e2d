"""Manifest files: YAML or JSON documents, with where each came from."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from meshbus.api.kinds import kind_of
from meshbus.local.home import HomeError

MAX_FILE_BYTES = 10 * 1024 * 1024
SUFFIXES = (".yaml", ".yml", ".json")


def manifest_files(paths: Iterable[Path]) -> list[Path]:
    """The files that paths mean: a directory means its files, not those of its directories.

    Raises:
        HomeError: A path is missing.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES)
        elif path.exists():
            found.append(path)
        else:
            raise HomeError(f"{path}: no such file or directory")
    return found


def read_manifests(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """All documents of all files, in order; items of lists as documents of their own.

    Raises:
        HomeError: A file cannot be read, or a document is not an object with apiVersion and kind.
    """
    documents: list[dict[str, Any]] = []
    for path in manifest_files(paths):
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise HomeError(f"{path}: more than {MAX_FILE_BYTES} bytes")
            loaded = list(yaml.load_all(path.read_text(), getattr(yaml, "CSafeLoader")))  # noqa: B009
        except (OSError, UnicodeDecodeError) as error:
            raise HomeError(f"{path}: {error}") from None
        except yaml.YAMLError as error:
            raise HomeError(f"{path}: not YAML: {error}") from None
        for index, document in enumerate(loaded):
            documents += _objects(document, f"{path}: document {index}")
    return documents


def _objects(document: Any, where: str) -> list[dict[str, Any]]:
    if document is None:
        return []
    if not isinstance(document, dict) or not document.get("kind"):
        raise HomeError(f"{where}: an object with apiVersion and kind is needed")
    if isinstance(document.get("items"), list) and str(document["kind"]).endswith("List"):
        nested = (_objects(item, f"{where}, item {i}") for i, item in enumerate(document["items"]))
        return [found for group in nested for found in group]
    return [document]


def split_runnable(
    documents: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Documents for the API, and a line for each that a mesh on one machine has no use for
    (Deployments and other kinds of a cluster)."""
    taken, left = [], []
    for document in documents:
        info = kind_of(str(document.get("apiVersion", "")), str(document.get("kind", "")))
        if info is not None and not info.served:
            name = (document.get("metadata") or {}).get("name", "")
            left.append(
                f"{info.kind} {name} is left out: nothing here starts containers; "
                "describe the process as a Workload (standalone.meshbus.io/v1alpha1)"
            )
        else:
            taken.append(document)
    return taken, left
