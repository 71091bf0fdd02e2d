"""How fast the ca signs, and how soon a fleet has its first certificates.

`python bench/identity.py sign [--seconds S]`: leaves a second and core, EC and RSA.
`python bench/identity.py fleet [--sidecars N]`: a ca and a gateway's keys on a real bus, each in a
process of its own; from the first workload that connects to the last certificate.
"""

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from meshbus_ca.issue import Names, Signer, issue_leaf, make_root, pem_of, public_key_of
from meshbus_ca.service import CaService, CaSettings
from meshbus_xds_gateway.leaves import Leaves

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from nats_process import NatsServer

from meshbus.bus.connection import NatsBus
from meshbus.bus.nkeys import UserKey
from meshbus.runtime.clock import SystemClock
from meshbus.runtime.process import make_context
from meshbus.runtime.settings import ProcessSettings


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


def run_ca(url: str, seed: str, state: str) -> None:
    """A ca in a process of its own."""

    async def run() -> None:
        bus = NatsBus(url, "ca", UserKey.from_seed(seed))
        bus.start()
        process = ProcessSettings(state=state, cluster="c")
        await CaService(make_context(CaService, CaSettings(), process, bus)).run()

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


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["sign", "fleet"])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--sidecars", type=int, default=2000)
    given = parser.parse_args()
    if given.what == "sign":
        sign(given.seconds)
    else:
        asyncio.run(fleet(given.sidecars))


if __name__ == "__main__":
    main()
