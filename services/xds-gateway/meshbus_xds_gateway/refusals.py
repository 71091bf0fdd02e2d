"""What proxies have refused: contents that go to nobody else, and what stands in for them.

A content (type, name, version) that one proxy refuses is not offered to those that do not have it
yet: they keep, or get, the last content that was accepted in its place. A content that some proxy
has accepted is not taken away from others for the fault of one (a port in use on its machine).
"""

from collections import OrderedDict
from dataclasses import dataclass

from meshbus.compile.resources import Resource

MAX_REFUSALS = 1024
"""Older ones are forgotten: their content would be offered, and refused, once more."""
MAX_ACCEPTED = 65536
"""Contents remembered as accepted."""

Content = tuple[str, str, str]
"""Type URL, name, version."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One content that a proxy refused."""

    resource: Resource
    message: str
    proxy: str
    sequence: int
    """Model version that gave the proxy this content."""
    fallback: Resource | None
    """The content before it, which was accepted; None: there was none."""


def content_of(resource: Resource) -> Content:
    """What identifies a content; equal contents of different origins are one."""
    return (resource.type_url, resource.name, resource.version)


class Refusals:
    """Refused contents of one gateway, bounded."""

    def __init__(self) -> None:
        self._refused: OrderedDict[Content, Refusal] = OrderedDict()
        self._accepted: OrderedDict[Content, None] = OrderedDict()

    def accept(self, resource: Resource) -> None:
        """A proxy took this content."""
        content = content_of(resource)
        self._accepted[content] = None
        self._accepted.move_to_end(content)
        if len(self._accepted) > MAX_ACCEPTED:
            self._accepted.popitem(last=False)

    def refuse(self, refusal: Refusal) -> bool:
        """A proxy refused a content. True when it is from now on blocked for the others too."""
        content = content_of(refusal.resource)
        if content in self._accepted or content in self._refused:
            return False
        fallback = refusal.fallback
        if fallback is not None and content_of(fallback) == content:
            fallback = None
        self._refused[content] = (
            refusal
            if fallback is refusal.fallback
            else Refusal(
                refusal.resource, refusal.message, refusal.proxy, refusal.sequence, fallback
            )
        )
        if len(self._refused) > MAX_REFUSALS:
            self._refused.popitem(last=False)
        return True

    def of(self, resource: Resource) -> Refusal | None:
        """The refusal that blocks a content, None: it may be offered."""
        if not self._refused:
            return None
        return self._refused.get(content_of(resource))

    def all(self) -> tuple[Refusal, ...]:
        """Every blocked content, oldest first."""
        return tuple(self._refused.values())
