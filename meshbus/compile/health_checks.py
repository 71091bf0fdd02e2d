"""Active health checks of clusters: annotation `traffic.meshbus.io/health-check` of a rule."""

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import health_check_pb2
from msgspec import UNSET

from meshbus.api.health_check import HEALTH_CHECK, read_health_check
from meshbus.compile.findings import NotCompiledError
from meshbus.compile.values import duration, uint32

_PATH = f"metadata.annotations[{HEALTH_CHECK}]"


def apply_health_check(cluster: cluster_pb2.Cluster, text: str) -> None:
    """Let proxies ask the endpoints of a cluster.

    Raises:
        NotCompiledError: The annotation says no health check, or the endpoints are not known.
    """
    if not text:
        return
    try:
        wanted = read_health_check(text)
    except ValueError as error:
        raise NotCompiledError(_PATH, str(error)) from error
    if cluster.lb_policy == cluster_pb2.Cluster.CLUSTER_PROVIDED:
        raise NotCompiledError(_PATH, "the endpoints of this host are not known beforehand")
    check = health_check_pb2.HealthCheck(
        interval=duration(wanted.interval, f"{_PATH}.interval"),
        timeout=duration(wanted.timeout, f"{_PATH}.timeout"),
        unhealthy_threshold=uint32(wanted.unhealthy_threshold),
        healthy_threshold=uint32(wanted.healthy_threshold),
    )
    if wanted.path:
        check.http_health_check.path = wanted.path
        check.http_health_check.host = wanted.host
    elif wanted.grpc is not UNSET:
        check.grpc_health_check.service_name = str(wanted.grpc)
    else:
        check.tcp_health_check.SetInParent()
    cluster.health_checks.append(check)
