"""Names of clusters in statistics, as MeshConfig's patterns have them.

Source: Istio, MeshConfig reference, outboundClusterStatName and inboundClusterStatName.
"""

from meshbus.compile.engine import Reader
from meshbus.compile.names import CLUSTER_DOMAIN
from meshbus.model.rows import Service, ServicePort
from meshbus.model.world import Query


def outbound_stat_name(pattern: str, row: Service, port: ServicePort, subset: str) -> str:
    """The name of an outbound cluster; empty without a pattern."""
    target = port.target_port or port.number
    return _filled(pattern, row.host, row.name, port.number, port.name, target, subset)


def inbound_stat_name(
    reader: Reader, pattern: str, host: str, namespace: str, port: int, target: int
) -> str:
    """The name of the cluster of an application's port, by the service that it belongs to; empty
    without a pattern."""
    if not pattern:
        return ""
    for entry in reader.entries(Query("reg.services", "host", host)):
        row: Service = entry.row
        if row.namespace == namespace:
            named = next((p.name for p in row.ports if p.number == port), "")
            return _filled(pattern, row.host, row.name, port, named, target, "")
    return ""


def _filled(
    pattern: str, host: str, name: str, port: int, port_name: str, target: int, subset: str
) -> str:
    if not pattern:
        return ""
    values = {
        "%SERVICE%": host.removesuffix(f".svc.{CLUSTER_DOMAIN}"),
        "%SERVICE_NAME%": name,
        "%SERVICE_FQDN%": host,
        "%SUBSET_NAME%": subset,
        "%SERVICE_PORT%": str(port),
        "%SERVICE_PORT_NAME%": port_name,
        "%TARGET_PORT%": str(target),
    }
    for word, value in values.items():
        pattern = pattern.replace(word, value)
    # What follows a `;` in a name is no part of the tag that Envoy takes from it.
    return f"{pattern};"
