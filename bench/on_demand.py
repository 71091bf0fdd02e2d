"""What a cold start of a mesh costs when sidecars are sent everything, or ask for what they call.

    python bench/on_demand.py [--services 1000] [--sidecars 2000] [--asks hosts clusters] [--scoped]

In one process, without bus and sockets: rows go to the classes of a gateway, their contents to a
session for each sidecar, responses to a driver that acknowledges and asks for what they lead to;
then each sidecar calls the services that its own calls (5 to 10), once. At last one route and one
endpoint change. Printed as JSON: bytes of responses, seconds of CPU of the gateway's part, MB
resident (of both).
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "services/xds-gateway"))

from envoy.service.discovery.v3 import discovery_pb2
from fleet_state import NO_NAMES, Names, request, told
from meshbus_xds_gateway.classes import Classes, collect_rarely
from meshbus_xds_gateway.delta import DeltaProtocol, asked_names
from meshbus_xds_gateway.session import Session
from meshbus_xds_gateway.verdicts import Verdicts
from topology import PORT, Rows, Size, Topology

from meshbus.compile.proxy_keys import ProxyKeys, proxy_of_instance
from meshbus.compile.resources import CDS, LDS, VHDS
from meshbus.model.world import Put, world_of

SETTINGS = {"hosts": "MESHBUS_VIRTUAL_HOSTS", "clusters": "MESHBUS_CLUSTERS"}


class Sidecar:
    """One session, and the requests that it has not read."""

    def __init__(self, keys: ProxyKeys, verdicts: Verdicts, calls: Iterable[str]) -> None:
        self.keys = keys
        self.session = Session(keys.name, verdicts)
        self.protocol = DeltaProtocol(self.session)
        self.calls = tuple(calls)
        self.asked: dict[str, Names] = {}
        self.says = [request(CDS), request(LDS)]

    def hears(self, message: bytes) -> None:
        """What a response makes it say."""
        response = told(message)
        self.says.append(response.ack)
        for type_url, names in response.asks.items():
            held = self.asked.get(type_url, NO_NAMES)
            self.asked[type_url], new = held.after(names)
            if new:
                self.says.append(request(type_url, new))


class Bench:
    """A mesh and its sidecars."""

    def __init__(self, size: Size, count: int, asks: list[str]) -> None:
        self.topology = Topology(size)
        self.asks = asks
        rows = {key: row for key, row in self.topology.rows().items() if row is not None}
        self.world = world_of(rows)
        self.classes = Classes(lambda what: print("not compiled", what, file=sys.stderr))
        self.classes.update(self.world, ())
        verdicts = Verdicts()
        own = json.dumps({"proxyMetadata": {SETTINGS[what]: "on-demand" for what in asks}})
        self.sidecars = []
        for index, entry in enumerate(self.world.all("reg.workloads")[:count]):
            keys = replace(proxy_of_instance(entry.row), proxy_config=own, may_ask=bool(asks))
            called = map(self.topology.host, self.topology.calls[index // size.replicas])
            self.sidecars.append(Sidecar(keys, verdicts, called))
        self.bytes = self.messages = 0
        self.driver_s = 0.0
        self.report: dict[str, Any] = {"asks": asks, "sidecars": len(self.sidecars)}

    def measure(self, name: str, act: Callable[[], None]) -> None:
        """What something costs until nobody has anything to say."""
        self.bytes = self.messages = 0
        self.driver_s, began = 0.0, time.process_time()
        act()
        self.settle()
        took = time.process_time() - began - self.driver_s
        gc.collect()
        status = Path("/proc/self/status").read_text()
        self.report[name] = {
            "kB": self.bytes // 1000,
            "messages": self.messages,
            "cpu_s": round(took, 2),
            "rss_mb": int(status.split("VmRSS:")[1].split()[0]) // 1000,
        }

    def settle(self) -> None:
        """Let all speak until all are silent."""
        moved = True
        while moved:
            moved = False
            for sidecar in self.sidecars:
                moved |= self._turn(sidecar)

    def _turn(self, sidecar: Sidecar) -> bool:
        moved = bool(sidecar.says)
        says, sidecar.says = sidecar.says, []
        for said in says:
            heard = sidecar.protocol.decode(said)
            names = asked_names(heard)
            if names is not None and heard.type_url in (CDS, VHDS) and self.asks:
                self.classes.asked.ask(sidecar, heard.type_url, *names)  # type: ignore[arg-type]
                self.give(sidecar, {})
            sidecar.protocol.receive(heard, 0.0)
        while (push := sidecar.session.poll(0.0)) is not None:
            message = sidecar.protocol.encode(push)
            self.bytes += len(message)
            self.messages += 1
            began = time.process_time()
            sidecar.hears(message)
            self.driver_s += time.process_time() - began
            moved = True
        return moved

    def give(self, sidecar: Sidecar, contents: Any) -> None:
        """The session should have these of its class."""
        proxies = self.classes.class_of(sidecar)  # type: ignore[arg-type]
        assert proxies is not None
        own = self.classes.contents_for(sidecar, proxies, contents)  # type: ignore[arg-type]
        sidecar.session.update(own, self.world.sequence, 0.0)

    def connect(self) -> None:
        """All of them begin."""
        for sidecar in self.sidecars:
            proxies = self.classes.join(sidecar)  # type: ignore[arg-type]
            assert proxies is not None
            self.give(sidecar, proxies.contents)
            if "hosts" in self.asks:
                sidecar.says.append(request(VHDS))
            self._turn(sidecar)

    def call(self) -> None:
        """Each calls what it calls for the first time."""
        for sidecar in self.sidecars:
            for host in sidecar.calls:
                for type_url, name in (
                    (VHDS, f"{PORT}/{host}"),
                    (CDS, f"outbound|{PORT}||{host}"),
                ):
                    if ("hosts" if type_url == VHDS else "clusters") in self.asks:
                        asked = discovery_pb2.DeltaDiscoveryRequest(
                            type_url=type_url, resource_names_subscribe=[name]
                        )
                        sidecar.says.append(asked.SerializeToString())

    def change(self, rows: Rows) -> None:
        """One step of the world, to those whom it concerns."""
        puts = [Put(key, self.world.sequence + 1, 0.0, row) for key, row in rows.items()]
        self.world, touched = self.world.apply(puts)
        self.classes.update(self.world, touched)
        self.classes.engine.advance()
        classes, clients, _ = self.classes.changed()
        for proxies, contents in classes.items():
            for member in proxies.members:
                self.give(member, contents)  # type: ignore[arg-type]
        for client in clients:
            self.give(client, {})  # type: ignore[arg-type]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--sidecars", type=int, default=2000)
    parser.add_argument("--asks", nargs="*", choices=sorted(SETTINGS), default=[])
    parser.add_argument("--scoped", action="store_true")
    given = parser.parse_args()
    collect_rarely()
    bench = Bench(Size(given.services, scoped=given.scoped), given.sidecars, given.asks)
    bench.measure("cold start", bench.connect)
    bench.measure("first calls", bench.call)
    bench.measure("route", lambda: bench.change(bench.topology.route(10, 50)))
    bench.measure("endpoint", lambda: bench.change(bench.topology.endpoints(10, 7)))
    bench.measure("service", lambda: bench.change(bench.topology.service(given.services)))
    print(json.dumps(bench.report, indent=1))


if __name__ == "__main__":
    main()
