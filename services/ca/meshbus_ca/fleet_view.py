"""What the gateways report, as the ca sees it: how far their proxies are."""

from meshbus.bus.gateway_reports import GatewayReports

SILENT_S = 35.0
"""Gateways report at least each 10 s."""


class FleetView(GatewayReports):
    """How far the proxies of each gateway replica are."""

    @property
    def reporting(self) -> dict[str, int]:
        """By replica: the version that all its proxies have acknowledged."""
        return {pod: report.converged for pod, report in self.heard_within(SILENT_S).items()}

    @property
    def silent(self) -> tuple[str, ...]:
        """Replicas that had proxies when they were heard last, and are not heard any more."""
        return tuple(pod for pod, report in self.silent_for(SILENT_S).items() if report.proxies)
