#!/usr/bin/env python3
"""Programs that the tests against Kubernetes run, built from Go modules by the Go toolchain.

    python tests/kube/tools/build.py [NAME...]     builds what is missing, prints the folder

Each folder beside this file is a Go module of its own: their pins do not fit together. What was
built is kept in `$XDG_CACHE_HOME/meshbus/kube-tools`, by the content of the module's files, so
only a new machine pays for the build (about ten minutes of two cores, most of it kube-apiserver).
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_VERSION = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Module:
    """A folder with a go.mod, and the packages that are built of it, by program."""

    folder: str
    programs: dict[str, str]


MODULES = (
    Module("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Module(
        "kubernetes",
        {
            "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
            "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        },
    ),
    Module("kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}),
    Module("helm", {"helm": "helm.sh/helm/v3/cmd/helm"}),
)
PROGRAMS = tuple(name for module in MODULES for name in module.programs)


class Unavailable(Exception):
    """The program cannot be had on this machine; says why."""


def program(name: str) -> Path:
    """The path of a program; it is built if it is not in the cache.

    Raises:
        Unavailable: There is no Go toolchain, or the build failed.
    """
    module = next(module for module in MODULES if name in module.programs)
    folder = _cache() / f"{module.folder}-{_digest(module)}"
    built = folder / name
    if built.exists():
        return built
    with _lock(module):
        if not built.exists():
            _build(module, folder)
    return built


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "meshbus" / "kube-tools"


def _digest(module: Module) -> str:
    """Of all that decides what is built."""
    seen = hashlib.sha256(repr((module, os.uname().machine)).encode())
    for name in ("go.mod", "go.sum"):
        seen.update((_HERE / module.folder / name).read_bytes())
    return seen.hexdigest()[:12]


@contextlib.contextmanager
def _lock(module: Module) -> Iterator[None]:
    """One build at a time: test sessions may start together."""
    _cache().mkdir(parents=True, exist_ok=True)
    with (_cache() / f"{module.folder}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(module: Module, folder: Path) -> None:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise Unavailable(f"{', '.join(module.programs)}: no Go toolchain to build it with")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".build-") as work:
        command = [
            go, "build", "-mod=readonly", "-trimpath", "-buildvcs=false",
            "-ldflags", _linker_flags(module), "-o", f"{work}/", *module.programs.values(),
        ]  # fmt: skip
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
        done = subprocess.run(
            command, cwd=_HERE / module.folder, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise Unavailable(f"{', '.join(module.programs)}: {done.stderr.strip()[-2000:]}")
        for name, package in module.programs.items():
            made = Path(work) / Path(re.sub(r"/v\d+$", "", package)).name
            made.rename(Path(work) / name)
        shutil.rmtree(folder, ignore_errors=True)
        Path(work).rename(folder)
        Path(work).mkdir()


def _linker_flags(module: Module) -> str:
    """Without debugger tables; Kubernetes says its version, which clients and charts ask for."""
    flags = ["-s", "-w"]
    if module.folder == "kubernetes":
        pinned = re.search(
            r"k8s\.io/kubernetes v(\d+)\.(\d+)\.\d+", (_HERE / "kubernetes/go.mod").read_text()
        )
        assert pinned is not None
        said = {
            "gitVersion": pinned[0].split()[1],
            "gitMajor": pinned[1],
            "gitMinor": pinned[2],
            "gitTreeState": "clean",
            "gitCommit": "0",
            "buildDate": "1970-01-01T00:00:00Z",
        }
        flags += [f"-X {_VERSION}.{name}={value}" for name, value in said.items()]
    return " ".join(flags)


def main() -> int:
    """Build what is named, by default everything."""
    for name in sys.argv[1:] or PROGRAMS:
        try:
            print(program(name), flush=True)
        except Unavailable as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
