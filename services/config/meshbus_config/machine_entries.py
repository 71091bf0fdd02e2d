"""WorkloadEntries of machines: what their WorkloadGroup and their beats make of them. Pure.

Source: Istio, WorkloadGroup and "auto-registration": names, annotations, the condition Healthy.
"""

import ipaddress
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from meshbus.api.kinds import KindInfo, kind_of
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus_config.errors import bad_request, forbidden
from meshbus_config.machine_users import Machine
from meshbus_config.object_status import Verdict, condition

GROUP_ANNOTATION = "istio.io/autoRegistrationGroup"
HEALTH_ANNOTATION = "proxy.istio.io/health-checks-enabled"
CAPTURE_ANNOTATION = "standalone.meshbus.io/capture"
APPLICATION_ANNOTATION = "standalone.meshbus.io/application-address"
HTTP_PROXY_ANNOTATION = "standalone.meshbus.io/http-proxy-port"
FURTHER_ANNOTATION = "standalone.meshbus.io/further-addresses"
HEALTHY = "Healthy"
MANAGER = "meshbus-machines"
_API = "networking.istio.io/v1"
_MAX_MESSAGE = 500


class Beat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What a machine says of itself."""

    group: str
    address: str
    """Where others reach it; the preferred one, of two families."""
    further_addresses: list[str] = []
    """One of the other family, or none."""
    healthy: bool = False
    message: str = ""
    capture: str = "redirect"
    """`redirect`, or `proxy`: the application uses an HTTP proxy."""
    application_address: str = ""
    http_proxy_port: int = 0


class Entries(Protocol):
    """Where the entries of machines are kept."""

    @property
    def writes(self) -> bool:
        """Entries can be made and changed by this replica now."""

    @property
    def sweeps(self) -> bool:
        """This replica is the one that removes entries of machines that are gone."""

    def group(self, namespace: str, name: str) -> ConfigObject | None:
        """A WorkloadGroup that is in force."""

    def present(self) -> dict[Key, str]:
        """Entries that machines have, and the names of their groups."""

    async def put(self, machine: Machine, group: ConfigObject, beat: Beat) -> int:
        """Bring a machine's entry up to date; id of the change, 0: none of ours.

        Raises:
            ApiError: It cannot be written.
        """

    async def remove(self, key: Key) -> None:
        """Remove an entry, if it is there.

        Raises:
            ApiError: It cannot be removed now.
        """


def entry_kind() -> KindInfo:
    """The kind WorkloadEntry."""
    info = kind_of(_API, "WorkloadEntry")
    assert info is not None
    return info


def group_kind() -> KindInfo:
    """The kind WorkloadGroup."""
    info = kind_of(_API, "WorkloadGroup")
    assert info is not None
    return info


def labels_of(group: ConfigObject) -> dict[str, str]:
    """Labels of a group's entries."""
    metadata = group.spec.get("metadata") or {}
    template = group.spec.get("template") or {}
    return {**(metadata.get("labels") or {}), **(template.get("labels") or {})}


def account_of(group: ConfigObject) -> str:
    """The service account of a group's machines."""
    return str((group.spec.get("template") or {}).get("serviceAccount") or "default")


def is_probed(group: ConfigObject) -> bool:
    """Its machines say whether they are healthy."""
    return isinstance(group.spec.get("probe"), dict)


def check_account(machine: Machine, group: ConfigObject) -> None:
    """Refuse a machine that was let in for another identity than its group has now.

    Raises:
        ApiError: It was.
    """
    if account_of(group) != machine.service_account:
        raise forbidden(group_kind(), group.name, "it is for another service account")


def check(machine: Machine, group: ConfigObject, beat: Beat) -> None:
    """Refuse a beat that makes no entry.

    Raises:
        ApiError: Why.
    """
    if machine.group != beat.group:
        raise forbidden(group_kind(), beat.group, f"the machine is of group {machine.group}")
    check_account(machine, group)
    own = [("address", beat.address)]
    own += [(f"furtherAddresses[{i}]", one) for i, one in enumerate(beat.further_addresses)]
    families = [_family(field, value) for field, value in own]
    if len(set(families)) < len(families):
        raise bad_request("furtherAddresses: one of each family, IPv4 and IPv6, can be said")
    if beat.application_address:
        _family("applicationAddress", beat.application_address)
    if beat.capture not in ("redirect", "proxy"):
        raise bad_request("capture: redirect or proxy is needed")
    if not 0 <= beat.http_proxy_port <= 65535:
        raise bad_request("httpProxyPort: from 0 to 65535")


def _family(field: str, value: str) -> int:
    try:
        return ipaddress.ip_address(value).version
    except ValueError:
        raise bad_request(f"{field}: {value!r} is no address") from None


def entry_document(machine: Machine, group: ConfigObject, beat: Beat) -> dict[str, Any]:
    """The WorkloadEntry of a machine, as it is applied."""
    template = dict(group.spec.get("template") or {})
    metadata = group.spec.get("metadata") or {}
    labels = labels_of(group)
    annotations = {**(metadata.get("annotations") or {}), GROUP_ANNOTATION: beat.group}
    if is_probed(group):
        annotations[HEALTH_ANNOTATION] = "true"
    if beat.further_addresses:
        annotations[FURTHER_ANNOTATION] = ",".join(beat.further_addresses)
    if beat.capture == "proxy":
        annotations[CAPTURE_ANNOTATION] = "proxy"
        annotations[APPLICATION_ANNOTATION] = beat.application_address
        annotations[HTTP_PROXY_ANNOTATION] = str(beat.http_proxy_port)
    owner = {
        "apiVersion": _API,
        "kind": "WorkloadGroup",
        "name": group.name,
        "uid": group.uid,
        "controller": True,
    }
    return {
        "apiVersion": _API,
        "kind": "WorkloadEntry",
        "metadata": {
            "name": machine.instance,
            "namespace": machine.namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": {
            **template,
            "address": beat.address,
            "serviceAccount": machine.service_account,
            "labels": labels,
        },
    }


def with_health(
    status: Mapping[str, Any], beat: Beat, generation: int, now: float
) -> dict[str, Any] | None:
    """The status with the condition Healthy; None: it says that already."""
    conditions = [c for c in status.get("conditions") or [] if isinstance(c, dict)]
    before = next((c for c in conditions if c.get("type") == HEALTHY), None)
    reason = "Probed" if beat.healthy else "ProbeFailed"
    verdict = Verdict(beat.healthy, reason, beat.message[:_MAX_MESSAGE])
    fresh = condition(HEALTHY, verdict, generation, before, now)
    if before == fresh:
        return None
    others = [c for c in conditions if c.get("type") != HEALTHY]
    return {**status, "conditions": [*others, fresh]}
