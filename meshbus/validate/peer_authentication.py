"""Rules of PeerAuthentication.

Source: https://istio.io/latest/docs/reference/config/security/peer_authentication/
"""

from msgspec import UnsetType

from meshbus.api.security import PeerAuthentication
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_selector


@independent
def check(spec: PeerAuthentication, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    selects = not isinstance(spec.selector, UnsetType) and bool(spec.selector.match_labels)
    if not isinstance(spec.port_level_mtls, UnsetType) and not selects:
        out.error("spec.portLevelMtls", "portLevelMtls requires selector", "Conflict")
    check_selector(spec.selector, "spec.selector", out)
