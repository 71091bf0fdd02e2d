"""How fast and how dear: one gateway, many proxies, one change at a time.

    python bench/gateway_fanout.py [--proxies 200] [--services 50] [--rounds 10]

A real nats-server; the gateway in this process; the proxies in another one, speaking delta ADS to
the plaintext listener and acknowledging everything. Prints one JSON document: seconds and CPU
seconds of the gateway's process (which also serves the change's writer), bytes, resident memory.
Numbers of the next transport are compared with those; nothing here is asserted.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from grpc import aio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/integration/gateway"))

import structlog
from gateway_mesh import Mesh, config, endpoints, service
from nats_process import NatsServer, connections

from meshbus.compile.resources import CDS, EDS, LDS, RDS

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


async def proxy(port: int, number: int) -> None:
    """One sidecar: asks for everything and acknowledges it."""
    async with aio.insecure_channel(
        f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]
    ) as c:
        call = c.stream_stream(METHOD)()
        asked: set[str] = set()

        async def say(**fields: Any) -> None:
            request = discovery_pb2.DeltaDiscoveryRequest(**fields)
            if not asked:
                request.node.id = (
                    f"sidecar~10.0.{number // 250}.{number % 250 + 1}~p-{number}.default"
                    "~default.svc.cluster.local"
                )
            asked.add(fields["type_url"])
            await call.write(request.SerializeToString())

        await say(type_url=CDS)
        while (data := await call.read()) is not aio.EOF:
            response = discovery_pb2.DeltaDiscoveryResponse.FromString(data)
            await say(type_url=response.type_url, response_nonce=response.nonce)
            if response.type_url == CDS and EDS not in asked:
                names = [r.name for r in response.resources if r.name.startswith("outbound")]
                await say(type_url=EDS, resource_names_subscribe=names)
                await say(type_url=LDS)
            if response.type_url == LDS and RDS not in asked:
                await say(type_url=RDS, resource_names_subscribe=["80"])


def proxies(port: int, count: int) -> None:
    """The process of the proxies."""

    async def run() -> None:
        await asyncio.gather(*(proxy(port, number) for number in range(count)))

    asyncio.run(run())


def usage() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(count: int, services: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Everything that is printed."""
    server = NatsServer(folder / "nats")
    server.start()
    try:
        async with connections(server) as bus_for:
            names = ("config", "discovery", "ca", "xds-gateway", "local")
            mesh = Mesh(folder, {name: await bus_for(name) for name in names}, bus_for)
            await mesh.start()
            try:
                return await rounds_of(mesh, count, services, rounds)
            finally:
                await mesh.close()
    finally:
        server.kill()


async def rounds_of(mesh: Mesh, count: int, services: int, rounds: int) -> dict[str, Any]:
    """Connect, then change endpoints and routes."""
    gateway = await mesh.start_gateway(plaintext="127.0.0.1:0")
    for number in range(services):
        name = f"s{number}"
        await mesh.write(service(name, 80), endpoints(name, {"i": "10.9.0.1"}, 8080))
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=proxies, args=(gateway.plaintext_port, count), daemon=True)
    began, cpu = time.monotonic(), usage()
    child.start()
    try:
        sequence = mesh.mirror.world.sequence
        while (await mesh.converged(sequence, 1)).converged < count:
            pass
        out: dict[str, Any] = {
            "proxies": count,
            "services": services,
            "cold_s": round(time.monotonic() - began, 3),
            "cold_cpu_s": round(usage() - cpu, 3),
        }
        for kind in ("endpoint", "route"):
            latencies, used = [], []
            for turn in range(rounds):
                rows = (
                    endpoints("s0", {"i": f"10.9.1.{turn + 1}"}, 8080)
                    if kind == "endpoint"
                    else config("VirtualService", "virtualservices", "s0", route(turn))
                )
                before = usage()
                reply = await mesh.converged(await mesh.write(rows), 20)
                used.append(usage() - before)
                latencies.append(reply.latency_s or float("nan"))
            out[f"{kind}_ms_p50"] = round(statistics.median(latencies) * 1000, 1)
            out[f"{kind}_ms_max"] = round(max(latencies) * 1000, 1)
            out[f"{kind}_cpu_ms"] = round(statistics.median(used) * 1000, 1)
        out["rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return out
    finally:
        child.kill()
        child.join()


def route(turn: int) -> dict[str, Any]:
    """A VirtualService that differs each time."""
    return {
        "hosts": ["s0"],
        "http": [{"route": [{"destination": {"host": "s0"}}], "timeout": f"{turn + 1}s"}],
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proxies", type=int, default=200)
    parser.add_argument("--services", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(args.proxies, args.services, args.rounds, Path(folder)))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
