"""Rules of DestinationRule.

Source: https://istio.io/latest/docs/reference/config/networking/destination-rule/
"""

from msgspec import UnsetType

from meshbus.api.durations import nanoseconds
from meshbus.api.health_check import HEALTH_CHECK, read_health_check
from meshbus.api.networking.destination_rule import DestinationRule
from meshbus.api.sticky_session import STICKY_SESSION, read_sticky_session
from meshbus.validate.durations import duration_problem
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import is_header_name, is_label, wildcard_domain_problem
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_export_to, check_labels, check_selector
from meshbus.validate.traffic_policy import check_traffic_policy


@independent
def check(spec: DestinationRule, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    _check_host(spec, out)
    check_traffic_policy(spec.traffic_policy, "spec.trafficPolicy", name.namespace, out)
    _check_subsets(spec, name, out)
    _check_health_check(name.annotations.get(HEALTH_CHECK), out)
    _check_sticky_session(name.annotations.get(STICKY_SESSION), out)
    exported = check_export_to(spec.export_to, name.namespace, "spec.exportTo", out)
    if not isinstance(spec.workload_selector, UnsetType):
        check_selector(spec.workload_selector, "spec.workloadSelector", out)
        if exported and exported != {name.namespace}:
            message = "a rule with a workload selector is of its own namespace only"
            out.error("spec.exportTo", message, "Conflict")


@independent
def _check_host(spec: DestinationRule, out: Findings) -> None:
    if problem := wildcard_domain_problem(spec.host):
        out.error("spec.host", problem)


@independent
def _check_subsets(spec: DestinationRule, name: ObjectName, out: Findings) -> None:
    for index, subset in enumerate(spec.subsets):
        path = f"spec.subsets[{index}]"
        check_labels(subset.labels, f"{path}.labels", out)
        check_traffic_policy(subset.traffic_policy, f"{path}.trafficPolicy", name.namespace, out)
    seen: set[str] = set()
    for index, subset in enumerate(spec.subsets):
        path = f"spec.subsets[{index}]"
        if not is_label(subset.name):
            out.error(f"{path}.name", f"{subset.name!r} is not the name of a subset")
        elif subset.name in seen:
            out.error(f"{path}.name", f"duplicate subset names: {subset.name}", "Duplicate")
        seen.add(subset.name)


@independent
def _check_health_check(text: str | None, out: Findings) -> None:
    if text is None:
        return
    path = f"metadata.annotations[{HEALTH_CHECK}]"
    try:
        check = read_health_check(text)
    except ValueError as error:
        out.error(path, str(error))
        return
    for field, value in (("interval", check.interval), ("timeout", check.timeout)):
        if problem := duration_problem(value):
            out.error(path, f"{field}: {problem}")


@independent
def _check_sticky_session(text: str | None, out: Findings) -> None:
    if text is None:
        return
    path = f"metadata.annotations[{STICKY_SESSION}]"
    try:
        wanted = read_sticky_session(text)
    except ValueError as error:
        out.error(path, str(error))
        return
    if wanted.header and not is_header_name(wanted.header):
        out.error(path, f"header: {wanted.header!r} is not the name of a header")
    if isinstance(wanted.cookie, UnsetType):
        return
    if not is_header_name(wanted.cookie.name):
        out.error(path, f"cookie.name: {wanted.cookie.name!r} is not the name of a cookie")
    if (lifetime := nanoseconds(wanted.cookie.ttl)) is None or lifetime < 0:
        out.error(path, f"cookie.ttl: {wanted.cookie.ttl!r} is not a duration")
