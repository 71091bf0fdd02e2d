"""Services ask for families of addresses that the mesh has, or are refused.

Source: Kubernetes, "IPv4/IPv6 dual-stack": what an API server says to families that its cluster is
not configured for.
"""

from collections.abc import Sequence
from typing import Any

from meshbus.api.kinds import KindInfo
from meshbus_config.documents import BOTH
from meshbus_config.errors import Cause, invalid

_INVALID = "FieldValueInvalid"


def check_families(info: KindInfo, document: dict[str, Any], families: Sequence[str]) -> None:
    """Whether a Service can have what it asks for.

    Args:
        document: Of an admitted object.
        families: Those of the mesh.
    Raises:
        ApiError: 422, with each field that asks for what is not there.
    """
    spec = document.get("spec") or {}
    if info.group or info.kind != "Service" or spec.get("type") == "ExternalName":
        return
    here = " and ".join(families)
    causes = [
        Cause(_INVALID, f"{family}: this mesh has {here} alone", f"spec.ipFamilies[{index}]")
        for index, family in enumerate(spec.get("ipFamilies") or ())
        if family not in families
    ]
    if spec.get("ipFamilyPolicy") == "RequireDualStack" and len(families) < len(BOTH):
        message = f"RequireDualStack: this mesh has {here} alone"
        causes.append(Cause(_INVALID, message, "spec.ipFamilyPolicy"))
    if causes:
        raise invalid(info, str(document["metadata"].get("name") or ""), causes)
