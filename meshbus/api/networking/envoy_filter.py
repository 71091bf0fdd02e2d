"""EnvoyFilter: patches of generated Envoy resources.

Source: https://istio.io/latest/docs/reference/config/networking/envoy-filter/ and, for
`workloadLabels` and `filters`, the same page of release 1.4.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta

from meshbus.api.networking.workload import LabelSelector
from meshbus.api.selectors import TargetRefs
from meshbus.api.shape import Free, Maybe, Port, Shape, UInt32


class ProxyMatch(Shape, frozen=True, kw_only=True):
    """Proxies by what they say of themselves."""

    proxy_version: str = ""
    """An RE2 expression on the version."""
    metadata: dict[str, str] = {}
    """Values of node metadata."""


class SubFilterMatch(Shape, frozen=True, kw_only=True):
    """A filter inside a network filter."""

    name: str = ""
    """Its name."""


class FilterMatch(Shape, frozen=True, kw_only=True):
    """A network filter."""

    name: str = ""
    """Its name."""
    sub_filter: Maybe[SubFilterMatch] = UNSET
    """An HTTP filter in it."""


class FilterChainMatch(Shape, frozen=True, kw_only=True):
    """A filter chain."""

    name: str = ""
    """Its name."""
    sni: str = ""
    """Server name it matches."""
    transport_protocol: str = ""
    """`raw_buffer` or `tls`."""
    application_protocols: str = ""
    """ALPN names, separated by commas."""
    filter: Maybe[FilterMatch] = UNSET
    """A filter in it."""
    destination_port: UInt32 = 0
    """Port it matches."""


class ListenerMatch(Shape, frozen=True, kw_only=True):
    """A listener."""

    port_number: UInt32 = 0
    """Its port."""
    port_name: str = ""
    """Name of its port."""
    filter_chain: Maybe[FilterChainMatch] = UNSET
    """A chain in it."""
    listener_filter: str = ""
    """A listener filter in it."""
    name: str = ""
    """Its name."""


class RouteMatch(Shape, frozen=True, kw_only=True):
    """A route."""

    name: str = ""
    """Its name."""
    action: Literal["ANY", "ROUTE", "REDIRECT", "DIRECT_RESPONSE"] = "ANY"
    """What it does."""


class VirtualHostMatch(Shape, frozen=True, kw_only=True):
    """A virtual host."""

    name: str = ""
    """Its name."""
    route: Maybe[RouteMatch] = UNSET
    """A route in it."""
    domain_name: str = ""
    """A domain of it."""


class RouteConfigurationMatch(Shape, frozen=True, kw_only=True):
    """A route configuration."""

    port_number: UInt32 = 0
    """Its port."""
    port_name: str = ""
    """Name of its port, at gateways."""
    gateway: str = ""
    """Gateway it is of, `NAMESPACE/NAME`."""
    vhost: Maybe[VirtualHostMatch] = UNSET
    """A virtual host in it."""
    name: str = ""
    """Its name."""


class ClusterMatch(Shape, frozen=True, kw_only=True):
    """A cluster."""

    port_number: UInt32 = 0
    """Port of the service."""
    service: str = ""
    """Host of the service."""
    subset: str = ""
    """Subset."""
    name: str = ""
    """Its name."""


class WaypointRouteMatch(Shape, frozen=True, kw_only=True):
    """A route of a waypoint."""

    name: str = ""
    """Its name."""


class WaypointMatch(Shape, frozen=True, kw_only=True):
    """A part of a waypoint."""

    filter: Maybe[FilterMatch] = UNSET
    """A filter."""
    port_number: Port | None = None
    """Port of the service."""
    route: Maybe[WaypointRouteMatch] = UNSET
    """A route."""


class EnvoyConfigObjectMatch(Shape, frozen=True, kw_only=True):
    """What is patched."""

    one_of = (("listener", "routeConfiguration", "cluster", "waypoint"),)

    context: Literal["ANY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY", "WAYPOINT"] = "ANY"
    """At which proxies."""
    proxy: Maybe[ProxyMatch] = UNSET
    """Proxies by what they say of themselves."""
    listener: Maybe[ListenerMatch] = UNSET
    """A listener."""
    route_configuration: Maybe[RouteConfigurationMatch] = UNSET
    """A route configuration."""
    cluster: Maybe[ClusterMatch] = UNSET
    """A cluster."""
    waypoint: Maybe[WaypointMatch] = UNSET
    """A part of a waypoint."""


class Patch(Shape, frozen=True, kw_only=True):
    """How it is patched."""

    operation: Literal[
        "INVALID",
        "MERGE",
        "ADD",
        "REMOVE",
        "INSERT_BEFORE",
        "INSERT_AFTER",
        "INSERT_FIRST",
        "REPLACE",
        "MERGE_AND_REPLACE_LIST",
    ] = "INVALID"
    """What is done."""
    value: Maybe[Free] = UNSET
    """JSON of the resource."""
    filter_class: Literal["UNSPECIFIED", "AUTHN", "AUTHZ", "STATS"] = "UNSPECIFIED"
    """Where an added filter stands."""


class EnvoyConfigObjectPatch(Shape, frozen=True, kw_only=True):
    """One patch."""

    apply_to: Literal[
        "INVALID",
        "LISTENER",
        "FILTER_CHAIN",
        "NETWORK_FILTER",
        "HTTP_FILTER",
        "ROUTE_CONFIGURATION",
        "VIRTUAL_HOST",
        "HTTP_ROUTE",
        "CLUSTER",
        "EXTENSION_CONFIG",
        "BOOTSTRAP",
        "LISTENER_FILTER",
    ] = "INVALID"
    """Kind of what is patched."""
    match: Maybe[EnvoyConfigObjectMatch] = UNSET
    """What is patched."""
    patch: Maybe[Patch] = UNSET
    """How it is patched."""


class OldListenerMatch(Shape, frozen=True, kw_only=True):
    """A listener, as Istio 1.4 matched it."""

    port_number: UInt32 = 0
    """Its port."""
    port_name_prefix: str = ""
    """Beginning of the name of its port."""
    listener_type: Literal["ANY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY"] = "ANY"
    """At which proxies."""
    listener_protocol: Literal["ALL", "HTTP", "TCP"] = "ALL"
    """Its protocol."""
    address: list[str] = []
    """Its addresses."""


class InsertPosition(Shape, frozen=True, kw_only=True):
    """Where a filter is inserted."""

    index: Literal["FIRST", "LAST", "BEFORE", "AFTER"] = "FIRST"
    """Place in the chain."""
    relative_to: str = ""
    """Filter that BEFORE and AFTER refer to."""


class OldFilter(Shape, frozen=True, kw_only=True):
    """A filter that is inserted, as Istio 1.4 had it."""

    listener_match: Maybe[OldListenerMatch] = UNSET
    """At which listeners."""
    insert_position: Maybe[InsertPosition] = UNSET
    """Where."""
    filter_type: Literal["INVALID", "HTTP", "NETWORK"] = "INVALID"
    """Kind of filter."""
    filter_name: str = ""
    """Its name."""
    filter_config: Maybe[Free] = UNSET
    """Its configuration."""


class EnvoyFilter(Shape, frozen=True, kw_only=True):
    """Patches of generated Envoy resources."""

    workload_selector: Maybe[LabelSelector] = UNSET
    """Workloads it concerns; all of the namespace if unset."""
    target_refs: TargetRefs = UNSET
    """Resources it is attached to."""
    config_patches: list[EnvoyConfigObjectPatch] = []
    """Patches, in order."""
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] = 0
    """Order among EnvoyFilters; lower is earlier."""
    workload_labels: dict[str, str] = {}
    """Istio 1.4: use `workloadSelector`."""
    filters: list[OldFilter] = []
    """Istio 1.4: use `configPatches`."""
