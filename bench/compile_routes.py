"""What routes cost: many hosts on one gateway port, many virtual services on the hosts of a mesh.

    python bench/compile_routes.py [--hosts 2000] [--virtual-services 10000] [--profile SCENARIO]

In one process, without bus and streams, as `bench/compile.py`. Printed as JSON: seconds of CPU,
nodes run, resources and virtual hosts encoded.
"""

import argparse
import json
from typing import Any

from compile import Bench, config, host_of, mesh_rows, namespace_of
from meshbus_xds_gateway.classes import collect_rarely

from meshbus.compile.proxy_keys import ProxyKeys, proxy_of_instance
from meshbus.model.keys import Key
from meshbus.model.rows import Row
from meshbus.model.world import world_of

GATEWAY = ProxyKeys(
    "router", "gw-0", "edge", (("istio", "ingress"),), "gw", ("10.1.0.1",), capture="redirect"
)


def exposed(number: int, timeout_s: int) -> tuple[Key, Row]:
    """A virtual service that shows one service at the gateway under a host of its own."""
    route = {
        "timeout": f"{timeout_s}s",
        "route": [{"destination": {"host": host_of(number % 1000), "port": {"number": 80}}}],
    }
    spec = {
        "hosts": [f"site-{number:05}.example.com"],
        "gateways": ["edge/all"],
        "http": [{"match": [{"uri": {"prefix": "/api"}}], **route}, route],
    }
    namespace = namespace_of(number % 1000)
    return config("VirtualService", "virtualservices", namespace, f"site-{number}", spec)


def shared(number: int, hosts: int, timeout_s: int) -> tuple[Key, Row]:
    """One of several virtual services of a mesh host, for paths of its own."""
    at = number % hosts
    rule = {
        "match": [{"uri": {"prefix": f"/part-{number // hosts}"}}],
        "timeout": f"{timeout_s}s",
        "route": [{"destination": {"host": host_of(at), "port": {"number": 80}}}],
    }
    spec = {"hosts": [host_of(at)], "http": [rule]}
    return config("VirtualService", "virtualservices", namespace_of(at), f"part-{number}", spec)


class _Member:
    """A client as classes need it."""

    def __init__(self, keys: ProxyKeys) -> None:
        self.keys = keys


class Routes(Bench):
    """The two scenarios."""

    def gateway(self, hosts: int) -> None:
        """So many hosts on one port of a gateway: cold, one changed, one more, one less."""
        server = {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*/*"]}
        spec = {"selector": {"istio": "ingress"}, "servers": [server]}
        rows = dict([config("Gateway", "gateways", "edge", "all", spec)])
        rows.update(exposed(number, 1) for number in range(hosts))
        self.start(world_of({**mesh_rows(1000, scoped=False), **rows}))
        self.measure("gateway, cold", lambda: self.classes.join(_Member(GATEWAY)) and None)
        self.measure("gateway, one route changed", lambda: self.change(exposed(7, 2)))
        self.measure("gateway, one host more", lambda: self.change(exposed(hosts, 1)))
        self.measure("gateway, one host less", lambda: self.change((exposed(hosts, 1)[0], None)))

    def sidecars(self, count: int, hosts: int) -> None:
        """So many virtual services on the hosts of a mesh: cold for one proxy, then one changed."""
        rows = {
            k: r for k, r in mesh_rows(hosts, scoped=False).items() if k.kind != "virtualservices"
        }
        rows.update(shared(number, hosts, 1) for number in range(count))
        world = world_of(rows)
        self.start(world)
        member = _Member(proxy_of_instance(next(iter(world.all("reg.workloads"))).row))
        self.measure("sidecar, cold", lambda: self.classes.join(member) and None)
        self.measure("sidecar, one route changed", lambda: self.change(shared(7, hosts, 2)))
        self.measure("sidecar, one rule more", lambda: self.change(shared(count, hosts, 1)))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=2000)
    parser.add_argument("--virtual-services", type=int, default=10000)
    parser.add_argument("--profile", default="", help="print the profile of one scenario")
    given = parser.parse_args()
    collect_rarely()
    report: dict[str, Any] = {"hosts": given.hosts, "virtual_services": given.virtual_services}
    bench = Routes(0, False, given.profile)
    bench.report = report
    bench.gateway(given.hosts)
    bench.sidecars(given.virtual_services, 1000)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
