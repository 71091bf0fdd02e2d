"""What the gateway replicas report of themselves on STATUS, and when each was heard last."""

from collections.abc import Callable, Sequence

import msgspec
import structlog

from meshbus.bus.interface import Message
from meshbus.model.keys import escape_token, unescape_token
from meshbus.model.status import GatewayReport

log = structlog.get_logger("gateway-reports")


class GatewayReports:
    """An Applier of STATUS: the latest report of each replica of the gateway."""

    def __init__(self, cluster: str, monotonic: Callable[[], float], *, but: str = "") -> None:
        """
        Args:
            monotonic: Seconds of a clock that is never set back.
            but: A replica that is not listened to.
        """
        self.subjects = [f"s.{escape_token(cluster)}.xds-gateway.*.report"]
        self._monotonic = monotonic
        self._but = but
        self._heard: dict[str, tuple[GatewayReport, float]] = {}

    def begin(self) -> None:
        """What was heard before is kept: a report that is gone with the server's memory comes
        again, or its gateway is silent."""

    def apply(self, messages: Sequence[Message]) -> None:
        """Reports; an empty one is a replica that ended in order."""
        for message in messages:
            pod = unescape_token(message.subject.split(".")[3])
            if pod == self._but:
                continue
            if not message.data:
                self._heard.pop(pod, None)
                continue
            try:
                report = msgspec.json.decode(message.data, type=GatewayReport)
            except msgspec.MsgspecError as error:
                log.warning("a report cannot be read", pod=pod, error=str(error))
                continue
            self._heard[pod] = (report, self._monotonic())

    def end(self, sequence: int) -> None:
        """The snapshot is whole."""

    def heard_within(self, seconds: float) -> dict[str, GatewayReport]:
        """By replica: the last report of those that were heard so lately."""
        since = self._monotonic() - seconds
        return {pod: report for pod, (report, heard) in self._heard.items() if heard >= since}

    def silent_for(self, seconds: float) -> dict[str, GatewayReport]:
        """By replica: the last report of those that were not heard for longer."""
        since = self._monotonic() - seconds
        return {pod: report for pod, (report, heard) in self._heard.items() if heard < since}
