"""What the gateways report, as the ca sees it: how far their proxies are."""

from collections.abc import Callable, Sequence

import msgspec
import structlog

from meshbus.bus.interface import Message
from meshbus.model.keys import escape_token, unescape_token
from meshbus.model.status import GatewayReport

SILENT_S = 35.0
"""Gateways report at least each 10 s."""

log = structlog.get_logger("ca")


class FleetView:
    """The latest report of each gateway replica, and when it was heard."""

    def __init__(self, cluster: str, monotonic: Callable[[], float]) -> None:
        self.subjects = [f"s.{escape_token(cluster)}.xds-gateway.*.report"]
        self._monotonic = monotonic
        self._heard: dict[str, tuple[GatewayReport, float]] = {}

    def begin(self) -> None:
        """What was heard before is kept: a report that is gone with the server's memory comes
        again, or its gateway is silent."""

    def apply(self, messages: Sequence[Message]) -> None:
        """Reports."""
        for message in messages:
            pod = unescape_token(message.subject.split(".")[3])
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

    @property
    def reporting(self) -> dict[str, int]:
        """By replica: the version that all its proxies have acknowledged."""
        now = self._monotonic()
        return {
            pod: report.converged
            for pod, (report, heard) in self._heard.items()
            if now - heard <= SILENT_S
        }

    @property
    def silent(self) -> tuple[str, ...]:
        """Replicas that had proxies when they were heard last, and are not heard any more."""
        now = self._monotonic()
        return tuple(
            pod
            for pod, (report, heard) in self._heard.items()
            if now - heard > SILENT_S and report.proxies
        )
