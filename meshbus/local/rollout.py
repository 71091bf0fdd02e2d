"""How the instances of a workload are brought to what was asked for last, a step at a time. Pure.

As a Deployment of Kubernetes: no step leaves fewer ready instances than were asked for. One more
than that is started while others are replaced; where none can be, one at a time is missing.
Source: https://kubernetes.io/docs/concepts/workloads/controllers/deployment/, rolling update.
"""

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import msgspec

from meshbus.local.desired import InstanceSpec, same_process


class Running(NamedTuple):
    """An instance that runs and is to go on for now."""

    spec: InstanceSpec
    ready: bool | None
    """It takes requests, and its callers can know; None: nobody has looked yet."""
    problem: str = ""


class Steps(NamedTuple):
    """What is to be done now. After that, and each time something moves, ask again."""

    relabel: Sequence[InstanceSpec] = ()
    """Instances that go on; only what is said of them differs."""
    start: Sequence[InstanceSpec] = ()
    replace: Sequence[str] = ()
    """Ids of those that are ended, and asked for again when they have ended."""
    remove: Sequence[str] = ()
    """Ids of those that are ended for good."""


def next_steps(
    wanted: Sequence[InstanceSpec],
    running: Mapping[str, Running],
    leaving: Set[str],
    *,
    room: bool,
) -> Steps:
    """What is to be done for one workload.

    Args:
        wanted: Its instances as they were asked for last.
        running: Those that are there, by id.
        leaving: Ids of those that are being ended.
        room: There are addresses for one instance more.
    """
    if not wanted:
        return Steps(remove=sorted(running))
    asked = {spec.id: spec for spec in wanted}
    old = [name for name, held in running.items() if not _is_new(held.spec, wanted[0])]
    bad = [name for name in old if running[name].ready is False]
    good = [name for name in asked if name in old and running[name].ready]
    spare = [name for name in running if name not in asked and running[name].spec.surge]
    finished = not any(
        name not in running or name in old or not running[name].ready for name in asked
    )
    remove = [
        name
        for name in running
        if name not in asked and (name not in spare or finished or name in bad)
    ]
    relabel = [
        spec
        for name, spec in asked.items()
        if name in running and name not in old and running[name].spec != spec
    ]
    start = [spec for name, spec in asked.items() if name not in running and name not in leaving]
    replace = [name for name in bad if name in asked]
    if wanted[0].spec.strategy.type == "Recreate":
        return Steps(relabel, start, [*replace, *good], remove)
    if good:
        extra = _surge_of(wanted)
        can_surge = extra is not None and (room or bool(spare))
        serving = sum(bool(held.ready) for name, held in running.items() if name not in remove)
        if serving >= len(wanted) + can_surge:
            replace.append(good[0])
        elif can_surge and not spare and extra is not None and extra.id not in leaving:
            start.append(extra)
    return Steps(relabel, start, replace, remove)


class WorkloadStatus(msgspec.Struct, frozen=True):
    """How far the instances of a workload are what was asked for."""

    replicas: int
    """Asked for."""
    updated: int
    """Run what was asked for last."""
    ready: int
    """Take requests, whatever they run."""
    waits_for: str = ""
    """What hinders the next step, for people; empty: everything is as asked for."""


def status_of(
    wanted: Sequence[InstanceSpec], running: Mapping[str, Running], leaving: Set[str]
) -> WorkloadStatus:
    """How far a workload is. Arguments as of `next_steps`."""
    new = [name for name, held in running.items() if _is_new(held.spec, wanted[0])]
    asked = {spec.id for spec in wanted}
    ready = sum(bool(held.ready) for held in running.values())
    waits = [
        f"{name}: {running[name].problem or 'starting'}" for name in new if not running[name].ready
    ]
    waits += [f"{name}: ending" for name in sorted(asked & leaving)]
    if not waits and (missing := sorted(asked - set(new))):
        waits = [f"{name}: to be replaced" for name in missing]
    return WorkloadStatus(len(wanted), len(asked & set(new)), ready, "; ".join(waits))


def _is_new(spec: InstanceSpec, asked: InstanceSpec) -> bool:
    return same_process(spec, msgspec.structs.replace(asked, name=spec.name))


def _surge_of(wanted: Sequence[InstanceSpec]) -> InstanceSpec | None:
    """The instance that is one more than was asked for; None for somebody else's process, of which
    there is one."""
    first = wanted[0]
    if not first.runs_application and not first.spec.gateway:
        return None
    name = f"{first.workload}-{len(wanted)}"
    return msgspec.structs.replace(first, name=name, surge=True)
