"""One watch: changes of objects as watch events."""

import random
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from meshbus_config.documents import Document, Stored
from meshbus_config.errors import gone
from meshbus_config.history import Expired, History, ObjectChange

BOOKMARK_S = 30.0
INITIAL_EVENTS_END = "k8s.io/initial-events-end"


class WatchOptions(NamedTuple):
    """What a watcher asked for."""

    start: int | None
    """Events after this version; None: first an event for each object that is there."""
    bookmarks: bool
    initial_end: bool
    """Mark the end of the first events with a bookmark (`sendInitialEvents`)."""
    timeout_s: float


Selected = Callable[[Stored], bool]
Written = Callable[[Stored, int], Document]
"""The object of an event at a version, as the client wants it."""


def pick_timeout(seconds: int) -> float:
    """How long a watch lasts: as asked, else half an hour to an hour, so that they do not all end
    at once."""
    return float(seconds) if seconds else random.uniform(1800, 3600)  # noqa: S311


async def watch(
    history: History,
    objects: Callable[[], list[Stored]],
    selected: Selected,
    written: Written,
    bookmark: Callable[[int], Document],
    options: WatchOptions,
    monotonic: Callable[[], float],
) -> AsyncIterator[dict[str, Any]]:
    """The events of a watch until its time is over.

    Args:
        objects: All objects of the kind, as of `history.world`.
        selected: Whether the watcher sees an object.
        bookmark: An object of the kind with nothing but its version.
    """
    end = monotonic() + options.timeout_s
    position = options.start
    if position is None:
        position = history.world.sequence
        for stored in [stored for stored in objects() if selected(stored)]:
            yield {"type": "ADDED", "object": written(stored, stored.version)}
        if options.initial_end:
            mark = bookmark(position)
            mark["metadata"]["annotations"] = {INITIAL_EVENTS_END: "true"}
            yield {"type": "BOOKMARK", "object": mark}
    marked = monotonic()
    while not history.closed:
        try:
            changes, position = history.since(position)
        except Expired:
            error = gone(f"too old resource version: {position} ({history.floor})")
            yield {"type": "ERROR", "object": error.document()}
            return
        for change in changes:
            event = _event(change, selected, written)
            if event is not None:
                yield event
        now = monotonic()
        if now >= end:
            return
        if options.bookmarks and now - marked >= BOOKMARK_S:
            marked = now
            yield {"type": "BOOKMARK", "object": bookmark(position)}
        await history.wait(position, max(0.0, min(end - now, BOOKMARK_S - (now - marked))))
        if not options.bookmarks:
            marked = monotonic()


def _event(change: ObjectChange, selected: Selected, written: Written) -> dict[str, Any] | None:
    """The event that a change is to this watcher: an object that leaves the selection is deleted
    for it."""
    before = change.before is not None and selected(change.before)
    after = change.after is not None and selected(change.after)
    if change.after is not None and after:
        kind = "MODIFIED" if before else "ADDED"
        return {"type": kind, "object": written(change.after, change.sequence)}
    if change.before is not None and before:
        last = change.after if change.after is not None else change.before
        return {"type": "DELETED", "object": written(last, change.sequence)}
    return None
