"""Rules that bring the traffic of a network namespace to its Envoy, as in a pod of Istio. Pure.

Source: https://istio.io/latest/docs/ops/deployment/application-requirements/ (ports, uid 1337)
and the chains of Istio's init container, under names of our own.
"""

from collections.abc import Sequence
from typing import NamedTuple

PROXY_UID = 1337
TUNNEL_PORT = 15008
DIRECT_PORTS = (15021, 15090)
"""Readiness and statistics: served by Envoy itself, never redirected."""
PASSTHROUGH_SOURCE = "127.0.0.6"
PASSTHROUGH_SOURCE6 = "::6"
"""Source of what Envoy passes to the application; it is not captured again."""


class CapturePorts(NamedTuple):
    """Where an Envoy takes captured traffic in."""

    outbound: int = 15001
    inbound: int = 15006


STANDARD_PORTS = CapturePorts()


def capture_rules(
    family: int,
    resolver: str,
    *,
    ports: CapturePorts = STANDARD_PORTS,
    direct_ports: Sequence[int] = DIRECT_PORTS,
) -> str:
    """Input of `iptables-restore` or `ip6tables-restore` for a fresh namespace.

    Args:
        family: 4 or 6.
        resolver: Address of mesh DNS: long answers come by TCP, past Envoy.
    """
    loopback = "127.0.0.1/32" if family == 4 else "::1/128"
    passthrough = f"{PASSTHROUGH_SOURCE}/32" if family == 4 else f"{PASSTHROUGH_SOURCE6}/128"
    to_self = f"-o lo ! -d {loopback} -p tcp ! --dport {TUNNEL_PORT}"
    lines = [
        "*nat",
        ":MESH_INBOUND - [0:0]",
        ":MESH_REDIRECT - [0:0]",
        ":MESH_IN_REDIRECT - [0:0]",
        ":MESH_OUTPUT - [0:0]",
        f"-A MESH_REDIRECT -p tcp -j REDIRECT --to-ports {ports.outbound}",
        f"-A MESH_IN_REDIRECT -p tcp -j REDIRECT --to-ports {ports.inbound}",
        *(
            f"-A MESH_INBOUND -p tcp --dport {port} -j RETURN"
            for port in (TUNNEL_PORT, *direct_ports)
        ),
        "-A MESH_INBOUND -p tcp -j MESH_IN_REDIRECT",
        f"-A MESH_OUTPUT -o lo -s {passthrough} -j RETURN",
    ]
    for owner in (f"--uid-owner {PROXY_UID}", f"--gid-owner {PROXY_UID}"):
        lines += [
            # The application called its own service: Envoy's connection to its own address goes
            # to the inbound side, as from any other client.
            f"-A MESH_OUTPUT {to_self} -m owner {owner} -j MESH_IN_REDIRECT",
            f"-A MESH_OUTPUT -o lo -m owner ! {owner} -j RETURN",
            f"-A MESH_OUTPUT -m owner {owner} -j RETURN",
        ]
    lines += [
        f"-A MESH_OUTPUT -d {loopback} -j RETURN",
        f"-A MESH_OUTPUT -p tcp -d {resolver} --dport 53 -j RETURN",
        "-A MESH_OUTPUT -p tcp -j MESH_REDIRECT",
        "-A PREROUTING -p tcp -j MESH_INBOUND",
        "-A OUTPUT -p tcp -j MESH_OUTPUT",
        "COMMIT",
    ]
    return "\n".join(lines) + "\n"


def hosts_file(names: Sequence[tuple[str, Sequence[str]]]) -> str:
    """An /etc/hosts for a namespace.

    Args:
        names: (address, names) lines, in order.
    """
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {' '.join(aliases)}" for address, aliases in names]
    return "\n".join(lines) + "\n"


def resolver_file(server: str, namespace: str) -> str:
    """An /etc/resolv.conf: short names are looked for where a pod of the namespace would.

    Args:
        server: Address of mesh DNS.
        namespace: Of the workload; empty: names are taken as they are.
    """
    lines = [f"nameserver {server}"]
    if namespace:
        lines.append(f"search {namespace}.svc.cluster.local svc.cluster.local cluster.local")
        lines.append("options ndots:5 timeout:1 attempts:3")
    return "\n".join(lines) + "\n"


def service_names(name: str, namespace: str, host: str, client_namespace: str) -> list[str]:
    """The names by which a workload of a namespace may call a Kubernetes service."""
    names = [host, f"{name}.{namespace}.svc", f"{name}.{namespace}"]
    if namespace == client_namespace:
        names.append(name)
    return names
