"""Sticky sessions: requests go on to the endpoint that answered the first, by Envoy's stateful
session filter.

From the annotation `traffic.meshbus.io/sticky-session` of a DestinationRule, else from Istio's
labels of a service, `istio.io/persistent-session: COOKIE[:PATH]` and
`istio.io/persistent-session-header: HEADER`. Endpoints that drain keep their sessions.
Source: Istio, MaybeBuildStatefulSessionFilterConfig (pilot/pkg/networking/util) and
https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/stateful_session_filter
"""

from typing import Any, NamedTuple

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import health_check_pb2
from envoy.extensions.filters.http.stateful_session.v3 import stateful_session_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.http.stateful_session.cookie.v3 import cookie_pb2
from envoy.extensions.http.stateful_session.header.v3 import header_pb2
from msgspec import UNSET

from meshbus.api.sticky_session import STICKY_SESSION, read_sticky_session
from meshbus.compile.engine import Reader
from meshbus.compile.findings import NotCompiledError
from meshbus.compile.rules_in_force import destination_rules
from meshbus.compile.scope import visible_services
from meshbus.compile.values import any_of, duration_of_nanos, nanos_of
from meshbus.compile.viewers import Viewer
from meshbus.compile.visibility import object_namespaces
from meshbus.model.rows import Service

SESSION_FILTER = "envoy.filters.http.stateful_session"
COOKIE_LABEL = "istio.io/persistent-session"
HEADER_LABEL = "istio.io/persistent-session-header"
_PATH = f"metadata.annotations[{STICKY_SESSION}]"
_KEPT = (
    health_check_pb2.UNKNOWN,
    health_check_pb2.HEALTHY,
    health_check_pb2.DEGRADED,
    health_check_pb2.DRAINING,
)
"""Health of endpoints that keep their sessions."""


class Session(NamedTuple):
    """How a session is known."""

    cookie: str = ""
    """Name of the cookie; empty: the header."""
    path: str = "/"
    ttl_ns: int = 0
    header: str = ""
    strict: bool = False
    """503 when the endpoint is gone."""


def session_of_service(service: Service | None) -> Session | None:
    """What the labels of a service say."""
    labels = {} if service is None else service.labels
    if labels.get(COOKIE_LABEL):
        name, _, path = labels[COOKIE_LABEL].partition(":")
        return Session(name, path or "/")
    if labels.get(HEADER_LABEL):
        return Session(header=labels[HEADER_LABEL])
    return None


def session_of(text: str, service: Service | None) -> Session | None:
    """The session towards a service. `text`: the annotation of its rule, which goes over labels.

    Raises:
        NotCompiledError: The annotation cannot be read.
    """
    if not text:
        return session_of_service(service)
    try:
        wanted = read_sticky_session(text)
    except ValueError as error:
        raise NotCompiledError(_PATH, str(error)) from error
    if wanted.cookie is UNSET:
        return Session(header=wanted.header, strict=wanted.strict)
    cookie = wanted.cookie
    ttl_ns = nanos_of(cookie.ttl, f"{_PATH}.cookie.ttl")
    return Session(cookie.name, cookie.path, ttl_ns, strict=wanted.strict)


def session_in_force(text: str, service: Service | None) -> Session | None:
    """The same; what cannot be read is told where the cluster is made."""
    try:
        return session_of(text, service)
    except NotCompiledError:
        return session_of_service(service)


def has_sessions(reader: Reader, viewer: Viewer) -> bool:
    """Node: something that a viewer calls may have sticky sessions."""
    if any(reader.node(has_sticky_rules, n) for n in reader.node(object_namespaces, _RULES)):
        return True
    services = reader.node(visible_services, viewer).values()
    return any(session_of_service(ref.row) is not None for ref in services)


_RULES = "destinationrules"


def has_sticky_rules(reader: Reader, namespace: str) -> bool:
    """Node: a destination rule of a namespace asks for them."""
    rules = reader.node(destination_rules, namespace)
    return any(ref.row.annotations.get(STICKY_SESSION) for refs in rules.values() for ref in refs)


# --------------------------------------------------------------------------- Envoy


def session_filters(reader: Reader, viewer: Viewer) -> tuple[hcm_pb2.HttpFilter, ...]:
    """The filter, where something that a viewer calls may have sessions; it does nothing but for
    routes that say one."""
    if not reader.node(has_sessions, viewer):
        return ()
    config = any_of(stateful_session_pb2.StatefulSession())
    return (hcm_pb2.HttpFilter(name=SESSION_FILTER, typed_config=config),)


def keep_session(target: Any, session: Session | None) -> None:
    """Say the session at a route or a weighted cluster."""
    if session is not None:
        target.typed_per_filter_config[SESSION_FILTER].CopyFrom(any_of(_per_route(session)))


def _per_route(session: Session) -> stateful_session_pb2.StatefulSessionPerRoute:
    out = stateful_session_pb2.StatefulSessionPerRoute()
    out.stateful_session.strict = session.strict
    chosen = out.stateful_session.session_state
    if session.cookie:
        state = cookie_pb2.CookieBasedSessionState()
        state.cookie.name, state.cookie.path = session.cookie, session.path
        state.cookie.ttl.CopyFrom(duration_of_nanos(session.ttl_ns))
        chosen.name = "envoy.http.stateful_session.cookie"
        chosen.typed_config.CopyFrom(any_of(state))
        return out
    chosen.name = "envoy.http.stateful_session.header"
    chosen.typed_config.CopyFrom(any_of(header_pb2.HeaderBasedSessionState(name=session.header)))
    return out


def apply_session(cluster: cluster_pb2.Cluster, text: str, service: Service) -> None:
    """Let endpoints that drain keep their sessions.

    Raises:
        NotCompiledError: The annotation cannot be read, or the endpoints are not known.
    """
    session = session_of(text, service)
    if session is None:
        return
    if cluster.lb_policy == cluster_pb2.Cluster.CLUSTER_PROVIDED:
        if text:
            raise NotCompiledError(_PATH, "the endpoints of this host are not known beforehand")
        return
    cluster.common_lb_config.override_host_status.statuses.extend(_KEPT)
