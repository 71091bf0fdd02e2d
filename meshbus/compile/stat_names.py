"""Names of clusters in statistics, as MeshConfig's patterns have them.

Source: Istio, MeshConfig reference, outboundClusterStatName.
"""

from meshbus.compile.names import CLUSTER_DOMAIN
from meshbus.model.rows import Service, ServicePort


def outbound_stat_name(pattern: str, row: Service, port: ServicePort, subset: str) -> str:
    """The name of an outbound cluster; empty without a pattern."""
    target = port.target_port or port.number
    return _filled(pattern, row.host, row.name, port.number, port.name, target, subset)


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
