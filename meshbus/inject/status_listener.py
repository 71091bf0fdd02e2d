"""Static listeners of a pod's Envoy: its readiness, the application's probes, and metrics.

What an agent beside the proxy would do is done by Envoy itself: an HTTP probe is a route to the
application, a TCP or gRPC probe an active health check that a filter reports, and the metrics of
the application are added to Envoy's own by a few lines of Lua. They open, like every listener,
when the proxy has had its first configuration. Bound to the pod's address (the kubelet and the
scraper call that) and to loopback, not to every address: no family is assumed.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

TYPE = "type.googleapis.com/"
READY_PORT = 15021
STATS_PORT = 15090
READY_PATH = "/healthz/ready"
METRICS_PATH = "/stats/prometheus"
QUIT_PATH = "/quitquitquit"
_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_LARGEST_METRICS_BYTES = 32 << 20
_DEFAULT_TIMEOUT_S = 1
_LOOPBACK = "127.0.0.1"

_SCRIPTS = {
    # The application's metrics after the proxy's own; TARGETS: {cluster, path, authority}.
    "metrics": """
function envoy_on_response(handle)
  if handle:headers():get(":status") ~= "200" then return end
  local buffer = handle:body()
  local parts = {buffer:getBytes(0, buffer:length())}
  for _, target in ipairs({TARGETS}) do
    local headers, body = handle:httpCall(target[1], {[":method"] = "GET", [":path"] = target[2],
      [":authority"] = target[3]}, "", 8000)
    if headers[":status"] == "200" and body then parts[#parts + 1] = body end
  end
  handle:headers():remove("content-length")
  handle:body():setBytes(table.concat(parts, "\\n"))
end
""",
    # The kubelet follows redirects on the host it asked: they must lead back here.
    "follow": """
local KEY = "meshbus.probe"
function envoy_on_request(handle)
  local path = handle:headers():get(":path"):gsub("/redirect/.*", "")
  handle:streamInfo():dynamicMetadata():set(KEY, "path", path)
end
function envoy_on_response(handle)
  local status = tonumber(handle:headers():get(":status"))
  local location = handle:headers():get("location") or ""
  if status < 300 or status > 399 or location:sub(1, 1) ~= "/" or location:sub(1, 2) == "//" then
    return
  end
  local path = handle:streamInfo():dynamicMetadata():get(KEY)["path"]
  handle:headers():replace("location", path .. "/redirect" .. location)
end
""",
    # Envoy's admin interface takes commands by POST; scripts that end a Job may use either.
    "post": """
function envoy_on_request(handle)
  handle:headers():replace(":method", "POST")
end
""",
}


class Prober(NamedTuple):
    """How the application is probed."""

    kind: str
    """`http`, `https`, `tcp` or `grpc`."""
    port: int
    path: str = "/"
    """Of HTTP."""
    service: str = ""
    """Of gRPC."""
    timeout_s: int = _DEFAULT_TIMEOUT_S


class Scrape(NamedTuple):
    """Metrics of the application."""

    port: int
    path: str = "/metrics"


def status_resources(
    *,
    ports: Sequence[int],
    admin_port: int,
    probers: Mapping[str, Prober],
    scrapes: Sequence[Scrape],
    captured: bool,
    application: str,
    compressed: bool = True,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The listeners and clusters.

    Args:
        ports: Where readiness, probes and merged metrics are served.
        captured: Calls to the application come from the address that capture lets through.
        application: Address the application is called at.
        compressed: Metrics are compressed for a scraper that takes it.
    """
    clusters = [_cluster("envoy-admin", _LOOPBACK, admin_port)]
    own = {"match": {"path": METRICS_PATH}, "route": {"cluster": "envoy-admin"}}
    routes: list[dict[str, Any]] = [
        _get(READY_PATH, {"cluster": "envoy-admin", "prefix_rewrite": "/ready"}),
    ]
    checks: list[dict[str, Any]] = []
    for path, prober in sorted(probers.items()):
        name = f"probe-{prober.kind}-{prober.port}"
        if prober.kind in ("http", "https"):
            routes += _http_probe(path, prober, name)
        else:
            # Two probes may ask different services or wait differently.
            name = f"{name}{path.replace('/', '-')}"
            checks.append(_reported(path, name))
        if all(cluster["name"] != name for cluster in clusters):
            clusters.append(_probe_cluster(name, application, prober, captured))
    for scrape in scrapes:
        name = f"metrics-{scrape.port}"
        if all(cluster["name"] != name for cluster in clusters):
            clusters.append(_from_proxy(_cluster(name, application, scrape.port), captured))
    routes.append({**own, **_lua("metrics")} if scrapes else own)
    routes.append(
        {
            "match": {"path": QUIT_PATH},
            "route": {"cluster": "envoy-admin"},
            **_lua("post"),
        }
    )
    squeezed = _compressors() if compressed else []
    listeners = [
        _listener("status", ports, routes, [*checks, *squeezed], _targets(scrapes)),
        _listener("stats", (STATS_PORT,), [own], squeezed),
    ]
    return listeners, clusters


def _get(path: str, route: dict[str, Any]) -> dict[str, Any]:
    return {"match": {"path": path}, "route": route}


def _http_probe(path: str, prober: Prober, cluster: str) -> list[dict[str, Any]]:
    """The probe, and where its redirects within the application lead."""
    # A hook takes as long as the pod's grace period lets it.
    timeout = f"{max(prober.timeout_s, 1)}s" if path.startswith("/app-health/") else "0s"
    target = prober.path if prober.path.startswith("/") else f"/{prober.path}"
    return [
        {
            "match": {"path": path},
            "route": {"cluster": cluster, "prefix_rewrite": target, "timeout": timeout},
            **_lua("follow"),
        },
        {
            "match": {"prefix": f"{path}/redirect/"},
            "route": {"cluster": cluster, "prefix_rewrite": "/", "timeout": timeout},
            **_lua("follow"),
        },
    ]


def _targets(scrapes: Sequence[Scrape]) -> str:
    return ", ".join(
        "{" + ", ".join(map(json.dumps, (f"metrics-{s.port}", s.path, f"localhost:{s.port}"))) + "}"
        for s in scrapes
    )


def _lua(script: str) -> dict[str, Any]:
    return {
        "typed_per_filter_config": {
            "envoy.filters.http.lua": {
                "@type": f"{TYPE}envoy.extensions.filters.http.lua.v3.LuaPerRoute",
                "name": script,
            }
        }
    }


def _scripts(routes: Sequence[Mapping[str, Any]], targets: str) -> dict[str, Any]:
    """The filter with the scripts that routes name."""
    used = {
        config["name"]
        for route in routes
        for config in route.get("typed_per_filter_config", {}).values()
    }
    return {
        "@type": f"{TYPE}envoy.extensions.filters.http.lua.v3.Lua",
        "source_codes": {
            name: {"inline_string": code.strip().replace("TARGETS", targets)}
            for name, code in _SCRIPTS.items()
            if name in used
        },
    }


def _reported(path: str, cluster: str) -> dict[str, Any]:
    """A filter that answers a path with the health of a cluster."""
    return {
        "name": f"health{path.replace('/', '-')}",
        "typed_config": {
            "@type": f"{TYPE}envoy.extensions.filters.http.health_check.v3.HealthCheck",
            "pass_through_mode": False,
            "headers": [{"name": ":path", "string_match": {"exact": path}}],
            "cluster_min_healthy_percentages": {cluster: {"value": 100}},
        },
    }


def _compressors() -> list[dict[str, Any]]:
    """Filters that compress what is answered, as the caller takes it."""
    libraries = {"brotli": "Brotli", "zstd": "Zstd", "gzip": "Gzip"}
    kind = f"{TYPE}envoy.extensions.compression"
    filters = [
        {
            "name": f"envoy.filters.http.compressor.{name}",
            "typed_config": {
                "@type": f"{TYPE}envoy.extensions.filters.http.compressor.v3.Compressor",
                "compressor_library": {
                    "name": name,
                    "typed_config": {"@type": f"{kind}.{name}.compressor.v3.{message}"},
                },
            },
        }
        for name, message in libraries.items()
    ]
    # The last of them alone: each reads the header that the one before would have removed.
    last: dict[str, Any] = filters[-1]["typed_config"]  # type: ignore[assignment]
    last["response_direction_config"] = {"remove_accept_encoding_header": True}
    return filters


def _listener(
    name: str,
    ports: Sequence[int],
    routes: Sequence[Mapping[str, Any]],
    before: Sequence[Mapping[str, Any]],
    targets: str = "",
) -> dict[str, Any]:
    addresses = [
        {"socket_address": {"address": address, "port_value": port}}
        for port in ports
        for address in ("$(INSTANCE_IP)", _LOOPBACK)
    ]
    filters = f"{TYPE}envoy.extensions.filters.http"
    http_filters: list[Mapping[str, Any]] = [*before]
    if any("typed_per_filter_config" in route for route in routes):
        http_filters += [
            {"name": "envoy.filters.http.rbac", "typed_config": _local_quits()},
            {"name": "envoy.filters.http.lua", "typed_config": _scripts(routes, targets)},
        ]
    http_filters.append(
        {
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": f"{filters}.router.v3.Router",
                "suppress_envoy_headers": True,
            },
        }
    )
    manager = {
        "@type": TYPE + _HCM,
        "stat_prefix": name,
        "generate_request_id": False,
        "route_config": {
            "name": name,
            "virtual_hosts": [{"name": name, "domains": ["*"], "routes": list(routes)}],
        },
        "http_filters": http_filters,
    }
    listener: dict[str, Any] = {
        "name": name,
        "address": addresses[0],
        "additional_addresses": [{"address": address} for address in addresses[1:]],
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }
    if targets:
        listener["per_connection_buffer_limit_bytes"] = _LARGEST_METRICS_BYTES
    return listener


def _local_quits() -> dict[str, Any]:
    """Only the pod itself may end its proxy."""
    rbac = f"{TYPE}envoy.extensions.filters.http.rbac.v3.RBAC"
    local = [
        {"direct_remote_ip": {"address_prefix": "127.0.0.0", "prefix_len": 8}},
    ]
    return {
        "@type": rbac,
        "rules": {
            "action": "DENY",
            "policies": {
                "quit": {
                    "permissions": [{"url_path": {"path": {"exact": QUIT_PATH}}}],
                    "principals": [{"not_id": {"or_ids": {"ids": local}}}],
                }
            },
        },
    }


def _cluster(name: str, address: str, port: int) -> dict[str, Any]:
    endpoint = {"address": {"socket_address": {"address": address, "port_value": port}}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
        # One that the application closed would fail the next probe.
        "common_http_protocol_options": {"max_requests_per_connection": 1},
    }


def _from_proxy(cluster: dict[str, Any], captured: bool) -> dict[str, Any]:
    """Calls that capture must not bring back to Envoy."""
    if captured:
        cluster["upstream_bind_config"] = {
            "source_address": {"address": "127.0.0.6", "port_value": 0},
            "extra_source_addresses": [{"address": {"address": "::6", "port_value": 0}}],
        }
    return cluster


def _probe_cluster(name: str, address: str, prober: Prober, captured: bool) -> dict[str, Any]:
    cluster = _from_proxy(_cluster(name, address, prober.port), captured)
    if prober.kind == "https":
        tls = f"{TYPE}envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
        # The kubelet does not verify either.
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": tls, "common_tls_context": {}},
        }
    elif prober.kind in ("tcp", "grpc"):
        check: dict[str, Any] = {
            "timeout": f"{max(prober.timeout_s, 1)}s",
            "interval": "1s",
            # Nothing else uses the cluster: without this it would be asked once a minute.
            "no_traffic_interval": "1s",
            "unhealthy_threshold": 1,
            "healthy_threshold": 1,
        }
        if prober.kind == "tcp":
            check["tcp_health_check"] = {}
        else:
            check["grpc_health_check"] = {"service_name": prober.service}
            options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
            del cluster["common_http_protocol_options"]
            cluster["typed_extension_protocol_options"] = {
                options: {
                    "@type": TYPE + options,
                    "explicit_http_config": {"http2_protocol_options": {}},
                }
            }
        cluster["health_checks"] = [check]
    return cluster
