"""Rules of EnvoyFilter.

Source: https://istio.io/latest/docs/reference/config/networking/envoy-filter/
"""

from msgspec import UNSET, UnsetType

from meshbus.api.networking.envoy_filter import (
    EnvoyConfigObjectMatch,
    EnvoyConfigObjectPatch,
    EnvoyFilter,
    FilterMatch,
    OldFilter,
    Patch,
)
from meshbus.api.when_refused import WHEN_REFUSED, when_refused_problem
from meshbus.validate.malformed import independent
from meshbus.validate.matches import regex_problem
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import subnet_problem
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_label_selector, check_targets

_CONNECTION_MANAGERS = (
    "envoy.filters.network.http_connection_manager",
    "envoy.http_connection_manager",
)
_LISTENER_CLASS = frozenset({"LISTENER", "FILTER_CHAIN", "NETWORK_FILTER", "HTTP_FILTER"})
_ROUTE_CLASS = frozenset({"ROUTE_CONFIGURATION", "VIRTUAL_HOST", "HTTP_ROUTE"})
_NOT_AT_WAYPOINTS = frozenset({"LISTENER", "LISTENER_FILTER", "BOOTSTRAP", "EXTENSION_CONFIG"})


@independent
def check(spec: EnvoyFilter, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    out.warn("spec", "EnvoyFilter depends on internals that change; prefer other kinds")
    if problem := when_refused_problem(name.annotations):
        out.error(f"metadata.annotations[{WHEN_REFUSED}]", problem)
    check_label_selector(spec.workload_selector, "spec.workloadSelector", out)
    if spec.workload_selector is not UNSET and spec.target_refs is not UNSET:
        out.error("spec", "only one of targetRefs or workloadSelector can be set", "Conflict")
    check_targets(UNSET, UNSET, spec.target_refs, out)
    for index, patch in enumerate(spec.config_patches):
        _check_patch(patch, f"spec.configPatches[{index}]", out)
    for index, old in enumerate(spec.filters):
        _check_old(old, f"spec.filters[{index}]", out)


@independent
def _check_patch(config: EnvoyConfigObjectPatch, path: str, out: Findings) -> None:
    if config.apply_to == "INVALID":
        out.required(f"{path}.applyTo", "Envoy filter: missing applyTo")
        return
    patch = config.patch
    if isinstance(patch, UnsetType):
        out.required(f"{path}.patch", "Envoy filter: missing patch")
        return
    if patch.operation == "INVALID":
        out.required(f"{path}.patch.operation", "Envoy filter: missing patch operation")
        return
    if patch.operation != "REMOVE" and isinstance(patch.value, UnsetType):
        message = "Envoy filter: missing patch value for non-remove operation"
        out.required(f"{path}.patch.value", message)
        return
    if not isinstance(config.match, UnsetType):
        _check_match(config, config.match, f"{path}.match", out)
    _check_value(config, patch, f"{path}.patch.value", out)


@independent
def _check_match(
    config: EnvoyConfigObjectPatch, match: EnvoyConfigObjectMatch, path: str, out: Findings
) -> None:
    version = "" if isinstance(match.proxy, UnsetType) else match.proxy.proxy_version
    if version and (problem := regex_problem(version)):
        out.error(f"{path}.proxy.proxyVersion", problem)
    objects = {
        "listener": match.listener,
        "routeConfiguration": match.route_configuration,
        "cluster": match.cluster,
        "waypoint": match.waypoint,
    }
    set_ = [field for field, value in objects.items() if not isinstance(value, UnsetType)]
    if ("waypoint" in set_) != (match.context == "WAYPOINT"):
        out.error(path, "only support waypointMatch when context is WAYPOINT", "Conflict")
        return
    if match.context == "WAYPOINT":
        _check_waypoint(config.apply_to, match, path, out)
        return
    wanted = _wanted_match(config.apply_to)
    if wanted and set_ and wanted not in set_:
        message = (
            f"Envoy filter: applyTo {config.apply_to} cannot have a {set_[0]} match, "
            f"only a {wanted} match"
        )
        out.error(path, message, "Conflict")
        return
    if not isinstance(match.listener, UnsetType):
        chain = match.listener.filter_chain
        if not isinstance(chain, UnsetType) and not isinstance(chain.filter, UnsetType):
            at = f"{path}.listener.filterChain.filter"
            _check_filter(config.apply_to, chain.filter, at, out)


@independent
def _check_waypoint(apply_to: str, match: EnvoyConfigObjectMatch, path: str, out: Findings) -> None:
    if apply_to in _NOT_AT_WAYPOINTS:
        out.error(path, f"Envoy filter: applyTo {apply_to} is not supported for waypoint")
    if isinstance(match.waypoint, UnsetType):
        return
    at, found = f"{path}.waypoint", match.waypoint
    has_filter = not isinstance(found.filter, UnsetType)
    if has_filter and (apply_to == "CLUSTER" or apply_to in _ROUTE_CLASS):
        message = f"Envoy filter: applyTo {apply_to} for waypoint cannot have filter match"
        out.error(f"{at}.filter", message, "Conflict")
    if not isinstance(found.route, UnsetType) and apply_to not in _ROUTE_CLASS:
        message = f"Envoy filter: applyTo {apply_to} for waypoint cannot have route match"
        out.error(f"{at}.route", message, "Conflict")
    if apply_to != "HTTP_FILTER":
        return
    if isinstance(found.filter, UnsetType):
        message = "Envoy filter: applyTo HTTP_FILTER for waypoint must have filter match"
        out.required(f"{at}.filter", message)
    elif found.filter.name != _CONNECTION_MANAGERS[0]:
        out.error(f"{at}.filter.name", f"must be {_CONNECTION_MANAGERS[0]}")
    elif isinstance(found.filter.sub_filter, UnsetType) or not found.filter.sub_filter.name:
        message = "Envoy filter: applyTo HTTP_FILTER for waypoint must have subfilter name"
        out.required(f"{at}.filter.subFilter.name", message)


def _wanted_match(apply_to: str) -> str:
    if apply_to in _LISTENER_CLASS:
        return "listener"
    if apply_to in _ROUTE_CLASS:
        return "routeConfiguration"
    return "cluster" if apply_to == "CLUSTER" else ""


@independent
def _check_filter(apply_to: str, match: FilterMatch, path: str, out: Findings) -> None:
    if apply_to in ("LISTENER", "FILTER_CHAIN"):
        out.warn(path, f"Envoy filter: filter match has no effect when used with {apply_to}")
    if not match.name:
        out.required(f"{path}.name", "Envoy filter: filter match has no name to match on")
        return
    if isinstance(match.sub_filter, UnsetType):
        return
    at = f"{path}.subFilter"
    if apply_to != "HTTP_FILTER":
        out.error(at, "Envoy filter: subfilter match can be used with applyTo HTTP_FILTER only")
    elif match.name not in _CONNECTION_MANAGERS:
        message = (
            f"Envoy filter: subfilter match requires filter match with {_CONNECTION_MANAGERS[0]}"
        )
        out.error(at, message)
    elif not match.sub_filter.name:
        out.required(f"{at}.name", "Envoy filter: subfilter match has no name to match on")


@independent
def _check_value(config: EnvoyConfigObjectPatch, patch: Patch, path: str, out: Findings) -> None:
    if isinstance(patch.value, UnsetType):
        return
    # Envoy's messages are many and slow to load: only those who patch pay for them.
    from meshbus.validate.envoy_messages import message_problems

    for problem, refuses in message_problems(config.apply_to, patch.value):
        if refuses:
            out.error(path, problem)
        else:
            out.warn(path, problem)


@independent
def _check_old(old: OldFilter, path: str, out: Findings) -> None:
    if old.filter_type == "INVALID":
        out.required(f"{path}.filterType", "Envoy filter: filterType must be HTTP or NETWORK")
    if not old.filter_name:
        out.required(f"{path}.filterName", "Envoy filter: missing filterName")
    if isinstance(old.filter_config, UnsetType):
        out.required(f"{path}.filterConfig", "Envoy filter: missing filterConfig")
    position = old.insert_position
    if not isinstance(position, UnsetType):
        relative = position.index in ("BEFORE", "AFTER")
        if relative != bool(position.relative_to):
            message = "goes with BEFORE and AFTER, and with nothing else"
            out.error(f"{path}.insertPosition.relativeTo", message, "Conflict")
    if not isinstance(old.listener_match, UnsetType):
        for index, address in enumerate(old.listener_match.address):
            if problem := subnet_problem(address):
                out.error(f"{path}.listenerMatch.address[{index}]", problem)
