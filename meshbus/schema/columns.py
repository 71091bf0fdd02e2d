"""What `kubectl get` prints of the mesh's kinds: one table for our API and for Kubernetes.

Source: `additionalPrinterColumns` of Istio's CRDs, so that its users see what they know.
"""

from typing import NamedTuple


class PrinterColumn(NamedTuple):
    """A column; `path` is that of a field, or `condition:TYPE` for the status of a condition."""

    name: str
    path: str
    priority: int = 0
    """Above 0: shown with `-o wide` only."""
    type: str = "string"
    description: str = ""

    @property
    def json_path(self) -> str:
        """As a CustomResourceDefinition has it."""
        kind, found, name = self.path.partition(":")
        if found and kind == "condition":
            return f'.status.conditions[?(@.type=="{name}")].status'
        return f".{self.path}"


_HOSTS = PrinterColumn("Hosts", "spec.hosts", description="Hosts that it is for.")

PRINTER_COLUMNS: dict[tuple[str, str], tuple[PrinterColumn, ...]] = {
    ("networking.istio.io", "VirtualService"): (
        PrinterColumn("Gateways", "spec.gateways", description="Gateways that it is bound to."),
        _HOSTS,
    ),
    ("networking.istio.io", "DestinationRule"): (
        PrinterColumn("Host", "spec.host", description="The service it is for."),
    ),
    ("networking.istio.io", "Gateway"): (PrinterColumn("Selector", "spec.selector", 1),),
    ("networking.istio.io", "ServiceEntry"): (
        _HOSTS,
        PrinterColumn("Location", "spec.location"),
        PrinterColumn("Resolution", "spec.resolution"),
    ),
    ("networking.istio.io", "WorkloadEntry"): (PrinterColumn("Address", "spec.address"),),
    ("security.istio.io", "PeerAuthentication"): (PrinterColumn("Mode", "spec.mtls.mode"),),
    ("security.istio.io", "AuthorizationPolicy"): (PrinterColumn("Action", "spec.action"),),
}
