"""Becomes another program inside a network namespace: `python -m meshbus.local.enter PLAN`.

PLAN is JSON (`EnterPlan`). Steps: join the namespace, take a private view of the mounts, put files
in place there, give up root if asked to, exec. The pid stays: the supervisor watches the program.
Root only.
"""

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

_CLONE_NEWNET = 0x40000000
_CLONE_NEWNS = 0x00020000
_MS_BIND = 4096
_MS_REC = 16384
_MS_SLAVE = 1 << 19


class EnterPlan(TypedDict):
    """What to become."""

    namespace: str
    """Name under /run/netns."""
    binds: list[tuple[str, str]]
    """(source, target) of bind mounts."""
    folder: str
    """Working directory, as seen with the mounts in place."""
    user: int
    """Uid and gid; 0: stay root."""
    argv: list[str]


def enter(plan: EnterPlan) -> None:
    """Do it; does not return.

    Raises:
        OSError: One of the steps is not permitted, or the program is missing.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int, what: str) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")

    namespace = os.open(Path("/run/netns") / plan["namespace"], os.O_RDONLY | os.O_CLOEXEC)
    checked(libc.setns(namespace, _CLONE_NEWNET), f"network namespace {plan['namespace']}")
    checked(libc.unshare(_CLONE_NEWNS), "mount namespace")
    # A slave: namespaces that the machine unmounts later vanish here too, ours stay here.
    checked(libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None), "mounts")
    for source, target in plan["binds"]:
        result = libc.mount(source.encode(), target.encode(), None, _MS_BIND, None)
        checked(result, f"mount {source} on {target}")
    program = shutil.which(plan["argv"][0])
    if program is None:
        raise FileNotFoundError(2, f"{plan['argv'][0]}: no such program")
    # Opened while still root: the program may lie where only root may look.
    descriptor = os.open(program, os.O_PATH | os.O_CLOEXEC)
    os.chdir(plan["folder"])
    if not plan["user"]:
        os.execv(program, plan["argv"])  # noqa: S606 - the program that was asked for
    os.setgroups([])
    os.setgid(plan["user"])
    os.setuid(plan["user"])
    os.execve(descriptor, plan["argv"], os.environ)  # noqa: S606


def main(arguments: Sequence[str]) -> int:
    """The command; 1 when a step failed."""
    try:
        enter(json.loads(arguments[0]))
    except OSError as error:
        print(f"meshbus: cannot start in a network namespace: {error.strerror}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
