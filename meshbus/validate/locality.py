"""Rules of load balancing by locality, and by zone.

Source: https://istio.io/latest/docs/reference/config/networking/destination-rule/#LocalityLoadBalancerSetting
and #ZoneAwareLoadBalancerSetting
"""

from collections.abc import Iterable, Sequence

from msgspec import UnsetType

from meshbus.api.networking.destination_rule import (
    LocalityFailover,
    LocalityLoadBalancerSetting,
    ZoneAwareLbSetting,
)
from meshbus.validate.malformed import independent
from meshbus.validate.report import Findings

_TOPOLOGY = frozenset(
    {
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
        "topology.istio.io/subzone",
    }
)


@independent
def check_locality(
    setting: LocalityLoadBalancerSetting | UnsetType, path: str, out: Findings, *, outliers: bool
) -> None:
    """Load balancing by locality; `outliers` says whether failing hosts are detected."""
    if isinstance(setting, UnsetType):
        return
    if setting.distribute and setting.failover:
        out.error(path, "only one of distribute or failover can be set", "Conflict")
        return
    if setting.failover and _TOPOLOGY.intersection(setting.failover_priority):
        message = "failover and topology labels in failoverPriority cannot both be set"
        out.error(f"{path}.failoverPriority", message, "Conflict")
        return
    for index, share in enumerate(setting.distribute):
        at = f"{path}.distribute[{index}].to"
        if any(not 1 <= weight <= 100 for weight in share.to.values()):
            out.error(at, "locality weight must be in range [1, 100]")
        elif sum(share.to.values()) != 100:
            out.error(at, f"total locality weight {sum(share.to.values())} != 100")
        _check_localities(share.to, at, out)
    _check_localities([share.from_ for share in setting.distribute], f"{path}.distribute", out)
    _check_failover(setting.failover, f"{path}.failover", out)
    if (setting.failover or setting.failover_priority) and not outliers:
        out.warn(path, "outlier detection policy must be provided for failover")


@independent
def check_zones(
    setting: ZoneAwareLbSetting | UnsetType, path: str, out: Findings, *, outliers: bool
) -> None:
    """Load balancing by zone; `outliers` says whether failing hosts are detected."""
    if isinstance(setting, UnsetType):
        return
    for index, label in enumerate(setting.failover_priority):
        if label.partition("=")[0] in _TOPOLOGY:
            message = f"{label}: regions and zones are told apart in any case"
            out.error(f"{path}.failoverPriority[{index}]", message, "Conflict")
    _check_failover(setting.failover, f"{path}.failover", out)
    if (setting.failover or setting.failover_priority) and not outliers:
        out.warn(path, "outlier detection policy must be provided for failover")


@independent
def _check_failover(failover: Sequence[LocalityFailover], path: str, out: Findings) -> None:
    """The order of regions."""
    for index, step in enumerate(failover):
        at = f"{path}[{index}]"
        if step.from_ == step.to:
            out.error(at, "failover must specify different regions")
        if "/" in step.from_ + step.to:
            out.error(at, "failover must specify regions only")
        if "*" in step.from_ + step.to:
            out.error(at, "failover regions cannot have wildcards")


@independent
def _check_localities(localities: Iterable[str], path: str, out: Findings) -> None:
    seen: list[tuple[str, ...]] = []
    for locality in localities:
        if locality.count("*") > 1 or ("*" in locality and not locality.endswith("*")):
            out.error(path, f"locality {locality!r}: one wildcard, at the end")
            return
        parts = tuple(locality.split("/", 2))
        if not all(parts):
            out.error(path, f"locality {locality!r} must not have empty parts")
            return
        open_ended = parts[-1] == "*"
        whole = parts[:-1] if open_ended else parts
        # What is left after others may be named last, with a wildcard.
        covered = any(whole[: len(other)] == other for other in seen)
        if covered or (not open_ended and any(o[: len(whole)] == whole for o in seen)):
            out.error(path, f"locality {locality!r} overlaps with another")
            return
        seen.append(whole)
