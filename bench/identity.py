"""How fast the ca signs, and how soon a fleet has its first certificates.

`python bench/identity.py sign [--seconds S]`: leaves a second and core, EC and RSA.
`python bench/identity.py fleet [--sidecars N]`: a ca and a gateway's keys on a real bus, each in a
process of its own; from the first workload that connects to the last certificate.
`python bench/identity.py whole [--sidecars N]`: the same with all that it takes: a ca that asks for
proofs and a gateway, each in a process of its own, over TLS a stream for each sidecar with its join
token, which nobody has used before; from the first stream to the last certificate that has arrived.
"""

import argparse
import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fleet_state import NO_NAMES, request, told
from fleet_state import Names as Asked
from meshbus_ca.issue import Names, Signer, issue_leaf, make_root, pem_of, public_key_of
from meshbus_ca.service import CaService, CaSettings
from meshbus_xds_gateway.leaves import Leaves

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from nats_process import NatsServer

from meshbus.bus.connection import NatsBus
from meshbus.bus.mirror import WorldMirror
from meshbus.bus.nkeys import UserKey
from meshbus.bus.writer import ModelWriter
from meshbus.compile.resources import CDS, LDS, SDS
from meshbus.model.keys import Key
from meshbus.model.requests import JOIN_TOKEN, JoinTokenReply, JoinTokenRequest
from meshbus.model.rows import WorkloadInstance
from meshbus.runtime.calls import call
from meshbus.runtime.clock import SystemClock
from meshbus.runtime.process import make_context
from meshbus.runtime.sealed import recipient
from meshbus.runtime.settings import ProcessSettings

TRUST = Key("c", "sec", "trust", "", "cluster.local")
_CHANNELS = 40
_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
_STREAMS: list[Any] = []
"""Those that are open: a sidecar stays."""


def csr_of(key: Any) -> str:
    """A CSR without a name."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def sign(seconds: float) -> None:
    """CSR in, PEM out."""
    now = time.time()
    root = make_root("cluster.local", now)
    csr = csr_of(ec.generate_private_key(ec.SECP256R1()))
    rsa_csr = csr_of(rsa.generate_private_key(65537, 2048))
    rsa_key = rsa.generate_private_key(65537, 2048)
    rsa_root = Signer(root.certificate, rsa_key)
    names = Names("spiffe://cluster.local/ns/default/sa/web", common_name="web")
    for title, signer, asked in (
        ("EC signs EC", root, csr),
        ("EC signs RSA 2048", root, rsa_csr),
        ("RSA 2048 signs EC", rsa_root, csr),
    ):
        count, began = 0, time.process_time()
        while time.process_time() - began < seconds:
            pem_of(issue_leaf(signer, public_key_of(asked), names, 3600, now))
            count += 1
        print(f"{title}: {count / (time.process_time() - began):.0f} leaves a second and core")


def run_ca(url: str, seed: str, state: str, require_proof: bool = False) -> None:
    """A ca in a process of its own."""

    async def run() -> None:
        bus = NatsBus(url, "ca", UserKey.from_seed(seed))
        bus.start()
        process = ProcessSettings(state=state, cluster="c")
        settings = CaSettings(require_proof=require_proof)
        await CaService(make_context(CaService, settings, process, bus)).run()

    asyncio.run(run())


async def fleet(sidecars: int) -> None:
    """First certificates of a fleet that comes at once."""
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder) / "nats")
        server.start()
        names = ("ca", "xds-gateway", "config")
        seeds = {name: (server.seeds / f"{name}.seed").read_text() for name in names}
        buses = {
            name: NatsBus(server.url, name, UserKey.from_seed(seeds[name])) for name in names[1:]
        }
        for bus in buses.values():
            bus.start()
        while not all(bus.connected for bus in buses.values()):
            await asyncio.sleep(0.01)
        await buses["config"].ensure_streams()
        ca = multiprocessing.get_context("spawn").Process(
            target=run_ca, args=(server.url, seeds["ca"], f"{folder}/state"), daemon=True
        )
        ca.start()
        import structlog

        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
        context = SimpleNamespace(
            bus=buses["xds-gateway"],
            clock=SystemClock(),
            log=structlog.get_logger(),
            name="xds-gateway",
            pod="xds-gateway-0",
            trust_domain="cluster.local",
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                done: asyncio.Queue[Any] = asyncio.Queue()
                leaves = Leaves(context, tasks, 3600, done.put_nowait)
                leaves.hold(("default", "first", "first"))
                await done.get()  # the ca is ready
                began, spent = time.monotonic(), time.process_time()
                for number in range(sidecars):
                    leaves.hold(("default", f"sa-{number}", f"w-{number}"))
                for _ in range(sidecars):
                    await done.get()
                took = time.monotonic() - began
                spent = time.process_time() - spent
                print(f"{sidecars} first certificates in {took:.2f} s (gateway CPU {spent:.2f} s)")
                leaves.release(("default", "first", "first"))
                for number in range(sidecars):
                    leaves.release(("default", f"sa-{number}", f"w-{number}"))
        finally:
            ca.kill()
            server.kill()


def run_gateway(url: str, seed: str, state: str, at: Any) -> None:
    """A gateway in a process of its own; tells its port, and at the end its CPU seconds."""
    from meshbus_xds_gateway.service import XdsGatewayService, XdsGatewaySettings

    async def run() -> None:
        bus = NatsBus(url, "xds-gateway", UserKey.from_seed(seed))
        bus.start()
        process = ProcessSettings(state=state, cluster="c")
        settings = XdsGatewaySettings(listen="127.0.0.1:0", max_streams=20_000)
        gateway = XdsGatewayService(make_context(XdsGatewayService, settings, process, bus))
        task = asyncio.create_task(gateway.run())
        while gateway.port is None:
            await asyncio.sleep(0.01)
        at.send(gateway.port)
        await task

    asyncio.run(run())


def cpu_of(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def whole(sidecars: int) -> None:
    """First certificates of a fleet with proofs and streams."""
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder) / "nats")
        server.start()
        names = ("ca", "xds-gateway", "config", "discovery", "local")
        seeds = {name: (server.seeds / f"{name}.seed").read_text() for name in names}
        buses = {
            name: NatsBus(server.url, name, UserKey.from_seed(seeds[name])) for name in names[2:]
        }
        for bus in buses.values():
            bus.start()
        while not all(bus.connected for bus in buses.values()):
            await asyncio.sleep(0.01)
        await buses["config"].ensure_streams()
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        ca = spawn.Process(
            target=run_ca, args=(server.url, seeds["ca"], f"{folder}/ca", True), daemon=True
        )
        gateway = spawn.Process(
            target=run_gateway,
            args=(server.url, seeds["xds-gateway"], f"{folder}/gw", theirs),
            daemon=True,
        )
        ca.start()
        gateway.start()
        try:
            writer = ModelWriter(buses["discovery"], cluster="c", service="discovery", pod="d-0")
            writing = asyncio.create_task(writer.run())
            await writer.wait_leading()
            rows = [
                (Key("c", "reg", "workloads", "default", f"w-{n}-0"), workload(n))
                for n in range(sidecars)
            ]
            for start in range(0, sidecars, 1000):
                await writer.commit(rows[start : start + 1000])
            mirror = WorldMirror()
            following = asyncio.create_task(mirror.follow(buses["config"]).run())
            while (trust := mirror.world.get(TRUST)) is None:
                await asyncio.sleep(0.01)
            port = await asyncio.to_thread(ours.recv)
            tokens = [await token_of(buses["local"], n) for n in range(sidecars)]
            credentials = grpc.ssl_channel_credentials(trust.roots_pem.encode())
            options = [("grpc.ssl_target_name_override", "xds-gateway.istio-system.svc")]
            channels = [
                grpc.aio.secure_channel(
                    f"127.0.0.1:{port}", credentials, [*options, ("grpc.channel_id", n)]
                )
                for n in range(_CHANNELS)
            ]
            for channel in channels:
                await channel.channel_ready()
            before = {p.name: cpu_of(p.pid or 0) for p in (ca, gateway)}
            began, own = time.monotonic(), time.process_time()
            await asyncio.gather(
                *(
                    first_certificate(channels[n % _CHANNELS], n, token)
                    for n, token in enumerate(tokens)
                )
            )
            took, own = time.monotonic() - began, time.process_time() - own
            used = [cpu_of(p.pid or 0) - before[p.name] for p in (ca, gateway)]
            print(
                f"{sidecars} first certificates over streams with proofs in {took:.2f} s "
                f"(CPU: ca {used[0]:.2f} s, gateway {used[1]:.2f} s, sidecars {own:.2f} s)"
            )
            for task in (writing, following):
                task.cancel()
        finally:
            gateway.kill()
            ca.kill()
            server.kill()


def workload(number: int) -> WorkloadInstance:
    """A sidecar with a service account of its own."""
    return WorkloadInstance(
        name=f"w-{number}-0",
        namespace="default",
        workload=f"w-{number}",
        service_account=f"sa-{number}",
        labels={"app": f"w-{number}"},
        addresses=[f"10.{number // 62_500}.{number // 250 % 250}.{number % 250 + 1}"],
    )


async def token_of(bus: NatsBus, number: int) -> str:
    """A join token that nobody has used."""
    mine = recipient()
    account, name = f"sa-{number}", f"w-{number}"
    request = JoinTokenRequest("default", account, f"{name}-0", name, mine.public_key, 3600)
    reply = await call(bus, JOIN_TOKEN, request, JoinTokenReply, timeout=10)
    return mine.open(reply.sealed).decode()


async def first_certificate(channel: grpc.aio.Channel, number: int, token: str) -> None:
    """What a sidecar does until it has its certificate, its listeners and what they lead to; the
    stream stays open."""
    call_of = channel.stream_stream(_METHOD)
    stream = call_of(metadata=[("authorization", f"Bearer {token}")])
    _STREAMS.append(stream)
    node = (f"sidecar~10.0.0.1~w-{number}-0.default~default.svc.cluster.local", {})
    await stream.write(request(CDS, node=node))
    for type_url, names in ((LDS, ()), (SDS, ("default",))):
        await stream.write(request(type_url, names))
    asked: dict[str, Asked] = {}
    lacks = {CDS, LDS, SDS}
    while (data := await stream.read()) is not grpc.aio.EOF:
        response = told(data)
        await stream.write(response.ack)
        for type_url, names in response.asks.items():
            asked[type_url], new = asked.get(type_url, NO_NAMES).after(names)
            if new:
                lacks.add(type_url)
                await stream.write(request(type_url, new))
        if response.versions:
            lacks.discard(response.type_url)
        if not lacks:
            return
    raise RuntimeError(f"sidecar {number}: {await stream.code()} {await stream.details()}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["sign", "fleet", "whole"])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--sidecars", type=int, default=2000)
    given = parser.parse_args()
    if given.what == "sign":
        sign(given.seconds)
    else:
        asyncio.run({"fleet": fleet, "whole": whole}[given.what](given.sidecars))


if __name__ == "__main__":
    main()
