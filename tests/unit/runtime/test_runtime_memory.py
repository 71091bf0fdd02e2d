"""Memory of services is nobody else's."""

import subprocess
import sys

import pytest

CODE = """
import ctypes, os, resource, ssl, sys
from meshbus.runtime.process import keep_memory_private
keep_memory_private()
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
handle = os.memfd_create("own")
os.write(handle, b"own")
print(open(f"/proc/self/fd/{handle}").read())
sys.stdout.flush()
os.abort()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_crash_leaves_no_core_and_nobody_may_look_in(tmp_path) -> None:
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["(0, 0) 0", "own"], done.stderr
    assert done.returncode < 0, "it was aborted"
    assert list(tmp_path.iterdir()) == []
