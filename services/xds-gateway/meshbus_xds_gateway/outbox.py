"""Responses that leave together: one message for all streams that are told the same."""

from dataclasses import dataclass, field

from meshbus.compile.resources import SHORT_NAMES
from meshbus_xds_gateway.metrics import GatewayMetrics
from meshbus_xds_gateway.session_state import Push


@dataclass(slots=True)
class Outbox:
    """Filled stream by stream. Each stream's own responses keep their order.

    Two responses are the same if they are the same object: who makes them shares them.
    """

    messages: list[tuple[bytes, list[int]]] = field(default_factory=list)
    """(message, streams), as `Carrier.send` takes them."""
    _contents: list[Push] = field(default_factory=list)
    """What is in each message."""
    _at: dict[int, int] = field(default_factory=dict)
    _stream: int = 0
    _last: int = -1

    def next_stream(self, number: int) -> None:
        """What is added from now on is for this stream."""
        self._stream, self._last = number, -1

    def add(self, data: bytes, push: Push) -> None:
        """A response for the stream."""
        at = self._at.get(id(data), -1)
        if at > self._last:
            self.messages[at][1].append(self._stream)
        else:
            # New, or it would overtake what this stream has been given before.
            at = self._at[id(data)] = len(self.messages)
            self.messages.append((data, [self._stream]))
            self._contents.append(push)
        self._last = at

    def count(self, metrics: GatewayMetrics) -> None:
        """Add what is in it to the metrics."""
        for (data, streams), push in zip(self.messages, self._contents, strict=True):
            kind, pushes = SHORT_NAMES.get(push.type_url, "other"), len(streams)
            metrics.pushes.labels(kind).inc(pushes)
            metrics.resources.labels(kind).inc(pushes * len(push.resources))
            metrics.bytes.labels(kind).inc(pushes * len(data))
