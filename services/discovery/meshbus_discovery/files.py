"""The files adapter: Kubernetes manifests in a directory, watched, as a source of services.

A file that cannot be read keeps what it last said; a directory that is gone keeps everything.
"""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import yaml

from meshbus.api.kinds import table_of
from meshbus.compile.offline import object_of_document
from meshbus.compile.registry.derive import SOURCES
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject

POLL_S = 0.5
MAX_FILE_BYTES = 10 * 1024 * 1024
_SUFFIXES = frozenset({".yaml", ".yml", ".json"})

log = structlog.get_logger("discovery")

Objects = dict[Key, ConfigObject]


class FileError(Exception):
    """A file that cannot be used: names file, document and reason."""


def read_objects(path: Path, cluster: str) -> Objects:
    """The objects of one file that discovery derives from; other kinds are passed over.

    Raises:
        FileError: The file cannot be read or parsed.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FileError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: {error}") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        documents = list(yaml.load_all(text, Loader=loader))
    except yaml.YAMLError as error:
        raise FileError(f"{path}: {error}") from None
    objects: Objects = {}
    for number, document in enumerate(_flat(documents), 1):
        try:
            row = object_of_document(document)
        except (ValueError, AttributeError, TypeError) as error:
            raise FileError(f"{path}: document {number}: {error}") from None
        key = Key(cluster, "cfg", table_of(row.api_version, row.kind), row.namespace, row.name)
        if key.table in SOURCES:
            objects[key] = row
    return objects


def _flat(documents: list[Any]) -> list[Any]:
    out: list[Any] = []
    for document in documents:
        if isinstance(document, dict) and str(document.get("kind", "")).endswith("List"):
            out += _flat(document.get("items") or [])
        elif document is not None:
            out.append(document)
    return out


class FilesAdapter:
    """Watches a directory, also its subdirectories."""

    def __init__(self, folder: Path, cluster: str, changed: Callable[[], None]) -> None:
        self._folder = folder
        self._cluster = cluster
        self._changed = changed
        self._seen: dict[Path, tuple[int, int, bytes]] = {}
        self._by_file: dict[Path, Objects] = {}
        self.problems: dict[str, str] = {}
        """What could not be read, by file; for /debug."""
        self.objects: Objects = {}
        """All objects; of two files with the same object the first by name counts."""

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.to_thread(self.scan)
            await asyncio.sleep(POLL_S)

    def scan(self) -> None:
        """Read what has changed."""
        if not self._folder.is_dir():
            self.problems[str(self._folder)] = "not a directory; what it last held stays"
            return
        self.problems.pop(str(self._folder), None)
        paths = sorted(p for p in self._folder.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
        changed = False
        for path in paths:
            try:
                stat = path.stat()
            except OSError:
                continue
            before = self._seen.get(path)
            if before is not None and before[:2] == (stat.st_mtime_ns, stat.st_size):
                continue
            changed = self._read(path, (stat.st_mtime_ns, stat.st_size), before) or changed
        for path in self._seen.keys() - set(paths):
            del self._seen[path]
            self._by_file.pop(path, None)
            self.problems.pop(str(path), None)
            changed = True
        if changed:
            self.objects = {
                key: row
                for path in sorted(self._by_file, reverse=True)
                for key, row in self._by_file[path].items()
            }
            self._changed()

    def _read(
        self, path: Path, mark: tuple[int, int], before: tuple[int, int, bytes] | None
    ) -> bool:
        try:
            digest = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
            if before is not None and before[2] == digest:
                self._seen[path] = (*mark, digest)
                return False
            objects = read_objects(path, self._cluster)
        except (FileError, OSError) as error:
            self._seen[path] = (*mark, b"")
            self.problems[str(path)] = str(error)
            log.warning("a file is passed over; what it last said stays", error=str(error))
            return False
        self._seen[path] = (*mark, digest)
        self.problems.pop(str(path), None)
        self._by_file[path] = objects
        return True
