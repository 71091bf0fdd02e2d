"""Dashboards of the chart for Grafana: a table of questions, and the documents made of it."""

import json
from typing import Any, NamedTuple


class Panel(NamedTuple):
    """One graph."""

    title: str
    unit: str
    """Grafana's word: `reqps`, `s`, `ms`, `bytes`, `percentunit`, `short`."""
    queries: tuple[tuple[str, str], ...]
    """PromQL, and the legend."""


class Dashboard(NamedTuple):
    """One page."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    choices: tuple[tuple[str, str], ...] = ()
    """Variables that the reader chooses: name, and the query of their values."""


def _panel(title: str, unit: str, *queries: tuple[str, str]) -> Panel:
    return Panel(title, unit, queries)


def _rate(metric: str, where: str = "", by: str = "") -> str:
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}{where}[5m]))"


def _quantile(metric: str, by: str, where: str = "", quantile: float = 0.99) -> str:
    return f"histogram_quantile({quantile}, sum by ({by}, le) (rate({metric}_bucket{where}[5m])))"


_MEMORY = 'process_resident_memory_bytes{pod=~"(meshbus-|xds-gateway).*"}'
_SERVICES = '{pod=~"(meshbus-|xds-gateway).*"}'
_CONTROL_PLANE = Dashboard(
    "control-plane",
    "Meshbus control plane",
    (
        _panel("Proxies connected", "short", ("sum by (pod) (meshbus_xds_connected)", "{{pod}}")),
        _panel(
            "Time until a change is everywhere, p99",
            "s",
            (_quantile("meshbus_xds_convergence_seconds", "pod"), "{{pod}}"),
        ),
        _panel(
            "Pushes",
            "reqps",
            (_rate("meshbus_xds_pushes_total", by="type"), "{{type}}"),
        ),
        _panel(
            "Refused by proxies, not compiled",
            "reqps",
            (_rate("meshbus_xds_nacks_total", by="type"), "{{type}}"),
            (_rate("meshbus_xds_compile_errors_total"), "not compiled"),
        ),
        _panel(
            "Time of compiling, p99",
            "s",
            (_quantile("meshbus_xds_recompute_seconds", "pod"), "{{pod}}"),
        ),
        _panel(
            "Certificates",
            "reqps",
            (
                _rate("meshbus_ca_certificates_total", by="service, outcome"),
                "{{service}} {{outcome}}",
            ),
        ),
        _panel(
            "Until the root ends",
            "s",
            ("min(meshbus_ca_root_not_after_seconds) - time()", "root"),
            ("min(meshbus_ca_signer_not_after_seconds) - time()", "signer"),
        ),
        _panel(
            "Admissions",
            "reqps",
            (
                _rate("meshbus_admissions_total", by="webhook, answer"),
                "{{webhook}} {{answer}}",
            ),
        ),
        _panel(
            "Time of an admission, p99",
            "s",
            (_quantile("meshbus_admission_seconds", "webhook"), "{{webhook}}"),
        ),
        _panel(
            "Objects that are followed, and that are not in force",
            "short",
            ("sum by (pod) (meshbus_kube_objects)", "{{pod}}"),
            ("sum by (pod) (meshbus_kube_invalid)", "{{pod}} invalid"),
            ("sum by (pod) (meshbus_kube_malformed)", "{{pod}} malformed"),
        ),
        _panel(
            "Events of the API server",
            "reqps",
            (_rate("meshbus_kube_events_total", by="kind"), "{{kind}}"),
        ),
        _panel(
            "Rows that discovery writes",
            "reqps",
            (_rate("meshbus_discovery_rows_written_total"), "rows"),
        ),
        _panel("Not connected to the bus", "short", ("meshbus_bus_connected == 0", "{{pod}}")),
        _panel(
            "Memory",
            "bytes",
            (f"sum by (pod) ({_MEMORY})", "{{pod}}"),
        ),
        _panel(
            "CPU",
            "short",
            (_rate("process_cpu_seconds_total", _SERVICES, "pod"), "{{pod}}"),
        ),
    ),
)

_REQUESTS = "istio_requests_total"
_SERVED = '{reporter="destination"}'
_GOOD = '{reporter="destination",response_code!~"5.."}'
_BAD = '{reporter="destination",response_code=~"5.."}'
_MESH = Dashboard(
    "mesh",
    "Meshbus mesh",
    (
        _panel("Requests", "reqps", (_rate(_REQUESTS, _SERVED), "all")),
        _panel(
            "Without an error of the server",
            "percentunit",
            (
                f"{_rate(_REQUESTS, _GOOD)} / {_rate(_REQUESTS, _SERVED)}",
                "all",
            ),
        ),
        _panel(
            "Requests by service",
            "reqps",
            (
                f"topk(20, sum by (destination_service) (rate(istio_requests_total{_SERVED}[5m])))",
                "{{destination_service}}",
            ),
        ),
        _panel(
            "Errors by service",
            "reqps",
            (
                f"topk(20, {_rate(_REQUESTS, _BAD, 'destination_service')})",
                "{{destination_service}}",
            ),
        ),
        _panel(
            "Time by service, p99",
            "ms",
            (
                _quantile("istio_request_duration_milliseconds", "destination_service", _SERVED),
                "{{destination_service}}",
            ),
        ),
        _panel(
            "Requests by security of the connection",
            "reqps",
            (
                _rate(_REQUESTS, _SERVED, "connection_security_policy"),
                "{{connection_security_policy}}",
            ),
        ),
        _panel(
            "TCP, sent and received",
            "Bps",
            (
                _rate("istio_tcp_sent_bytes_total", _SERVED, "destination_service"),
                "{{destination_service}} sent",
            ),
            (
                _rate("istio_tcp_received_bytes_total", _SERVED, "destination_service"),
                "{{destination_service}} received",
            ),
        ),
        _panel("Denied", "reqps", (_rate("meshbus_telemetry_denied_total"), "denied")),
    ),
)

_IN = (
    '{reporter="destination",destination_workload_namespace="$namespace",'
    'destination_workload="$workload"}'
)
_OUT = '{reporter="source",source_workload_namespace="$namespace",source_workload="$workload"}'
_THERE = '{destination_workload_namespace="$namespace"}'
_WORKLOAD = Dashboard(
    "workload",
    "Meshbus workload",
    (
        _panel(
            "Requests to it, by caller and answer",
            "reqps",
            (
                _rate(_REQUESTS, _IN, "source_workload, response_code"),
                "{{source_workload}} {{response_code}}",
            ),
        ),
        _panel(
            "Time of its answers",
            "ms",
            *(
                (
                    _quantile("istio_request_duration_milliseconds", "reporter", _IN, quantile),
                    f"p{quantile * 100:g}",
                )
                for quantile in (0.5, 0.9, 0.99)
            ),
        ),
        _panel(
            "Its own requests, by service and answer",
            "reqps",
            (
                _rate(_REQUESTS, _OUT, "destination_service, response_code"),
                "{{destination_service}} {{response_code}}",
            ),
        ),
        _panel(
            "Time of its own requests, p99",
            "ms",
            (
                _quantile("istio_request_duration_milliseconds", "destination_service", _OUT),
                "{{destination_service}}",
            ),
        ),
        _panel(
            "Why Envoy answered by itself",
            "reqps",
            (
                _rate(_REQUESTS, _IN, "response_flags"),
                "in {{response_flags}}",
            ),
            (
                _rate(_REQUESTS, _OUT, "response_flags"),
                "out {{response_flags}}",
            ),
        ),
        _panel(
            "Sizes, p99",
            "bytes",
            (_quantile("istio_request_bytes", "reporter", _IN), "requests"),
            (_quantile("istio_response_bytes", "reporter", _IN), "answers"),
        ),
        _panel(
            "TCP connections opened",
            "reqps",
            (_rate("istio_tcp_connections_opened_total", _IN), "in"),
            (_rate("istio_tcp_connections_opened_total", _OUT), "out"),
        ),
    ),
    (
        ("namespace", "label_values(istio_requests_total, destination_workload_namespace)"),
        (
            "workload",
            f"label_values(istio_requests_total{_THERE}, destination_workload)",
        ),
    ),
)
DASHBOARDS = (_CONTROL_PLANE, _MESH, _WORKLOAD)


def dashboard_json(dashboard: Dashboard) -> str:
    """The document that Grafana reads."""
    source = {"type": "prometheus", "uid": "${source}"}
    variables: list[dict[str, Any]] = [
        {"name": "source", "type": "datasource", "query": "prometheus"}
    ]
    variables += [
        {"name": name, "type": "query", "datasource": source, "query": query, "refresh": 2}
        for name, query in dashboard.choices
    ]
    panels = [
        {
            "id": index + 1,
            "title": panel.title,
            "type": "timeseries",
            "gridPos": {"h": 8, "w": 12, "x": 12 * (index % 2), "y": 8 * (index // 2)},
            "fieldConfig": {"defaults": {"unit": panel.unit}},
            "datasource": source,
            "targets": [
                {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend}
                for number, (query, legend) in enumerate(panel.queries)
            ],
        }
        for index, panel in enumerate(dashboard.panels)
    ]
    document = {
        "title": dashboard.title,
        "uid": f"meshbus-{dashboard.name}",
        "schemaVersion": 39,
        "version": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": variables},
        "panels": panels,
    }
    return json.dumps(document, indent=1) + "\n"
