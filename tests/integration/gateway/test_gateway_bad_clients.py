"""Two thousand streams, of which many read nothing or refuse everything: the others notice nothing.

The sidecars are those of the bench, in a process of their own.
"""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from meshbus_xds_gateway.carrier_choice import native_is_installed

# Last: the bench has a module `standalone`, and so have the tests of whole meshes.
sys.path.append(str(Path(__file__).parents[3] / "bench"))

from processes import Gateway, bus, driver, resident_mb
from scenarios import Bench
from topology import Size, Topology

pytestmark = [pytest.mark.real, pytest.mark.slow]
STREAMS = 2000
CHANGES = 12
NATIVE = pytest.mark.skipif(not native_is_installed(), reason="meshbus_native is not installed")


@pytest_asyncio.fixture(params=["grpc", pytest.param("native", marks=NATIVE)])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    topology = Topology(Size(services=200, scoped=False))
    async with bus(tmp_path) as rows, driver(topology.size) as sidecars:
        sequence = await rows.write(topology.rows())
        gateway = Gateway(rows, tmp_path, 1, request.param)
        gateway.start()
        try:
            await gateway.converged(sequence)
            yield Bench(topology, rows, gateway, sidecars)
        finally:
            gateway.kill()


async def test_the_word_that_all_have_a_change_is_not_early(bench: Bench) -> None:
    """A change of many bytes for a fleet: it takes the gateway some turns to give it to all."""
    count = 400
    await bench.cold(count)
    early = []
    for step in range(6):
        await bench.driver.tell("mark")
        sequence = await bench.bus.write(bench.topology.route(10 * (step % 3), 10 + step))
        replies = await bench.gateway.converged(sequence)
        told = len(await bench.driver.tell("lasts"))
        assert [reply.converged for reply in replies] == [count]
        await bench.driver.quiet(count)
        early.append(len(await bench.driver.tell("lasts")) - told)
    assert early == [0] * 6


async def test_clients_that_read_nothing_or_refuse_everything_delay_nobody(bench: Bench) -> None:
    deaf = {str(index): "deaf" for index in range(0, STREAMS, 20)}
    refusing = {str(index): "nacking" for index in range(1, STREAMS, 4)}
    cold = await bench.cold(STREAMS, deaf | refusing)
    assert cold.reached == STREAMS
    first = await bench.endpoint_beside_refusals(1, len(deaf))
    held_mb = resident_mb(bench.gateway.pids)
    row = await bench.endpoint_beside_refusals(CHANGES, len(deaf))
    # Everybody who reads was told every endpoint, though five hundred refused a route each time.
    assert row.reached == first.reached == STREAMS - len(deaf)
    # What a deaf one missed is never queued.
    assert resident_mb(bench.gateway.pids) - held_mb < 60
    stats = await bench.driver.tell("stats")
    assert stats["ends"] == 0, "no stream has ended"
