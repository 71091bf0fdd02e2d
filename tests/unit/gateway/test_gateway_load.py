"""What a replica makes of its own load and of what the others report."""

import msgspec
import pytest
from meshbus_xds_gateway.load import Load, LoadLimits, memory_limit, resident_bytes

from meshbus.bus.interface import Message
from meshbus.model.status import GatewayReport, status_subject


class Hours:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def heard(load: Load, pod: str, proxies: int, *, cpu: float = 0.1, memory: float = 0.1) -> None:
    report = GatewayReport(pod, 7, proxies, 7, cpu=cpu, memory=memory)
    subject = status_subject("c", "xds-gateway", pod, "report")
    load.apply([Message(subject, msgspec.json.encode(report), 1)])


@pytest.fixture
def hours() -> Hours:
    return Hours()


@pytest.fixture
def load(hours: Hours) -> Load:
    """Of a replica that is always overloaded."""
    made = Load("c", "gw-0", LoadLimits(cpu=-1.0, memory_bytes=0), hours)
    made.look()
    return made


def test_what_is_above_the_fair_share_goes(load: Load) -> None:
    assert load.excess(1000) == 0, "nobody else is there"
    heard(load, "gw-0", 1000)
    assert load.excess(1000) == 0, "its own report is no other replica"
    heard(load, "gw-1", 0)
    assert load.excess(1000) == 475, "half of 1,000, and 5 % more"
    assert load.to_shed(1000) == 20, "a little at a time"
    assert load.prefers_others(1000)
    heard(load, "gw-1", 490)
    assert load.excess(510) == 0
    assert load.to_shed(510) == 0
    assert not load.prefers_others(510)


def test_replicas_that_are_busy_or_silent_are_no_help(load: Load, hours: Hours) -> None:
    heard(load, "gw-1", 0, cpu=1.0)
    heard(load, "gw-2", 0, memory=0.95)
    assert load.excess(1000) == 0
    heard(load, "gw-3", 0)
    assert load.excess(1000) == 475
    hours.now += 30
    assert load.excess(1000) == 0
    heard(load, "gw-3", 0)
    load.apply([Message(status_subject("c", "xds-gateway", "gw-3", "report"), b"", 2)])
    assert load.excess(1000) == 0, "its report was deleted"


def test_one_that_is_not_overloaded_sheds_nobody(hours: Hours) -> None:
    load = Load("c", "gw-0", LoadLimits(cpu=0.8, memory_bytes=0), hours)
    heard(load, "gw-1", 0)
    hours.now += 1000
    heard(load, "gw-1", 0)
    load.look()
    assert load.cpu < 0.8
    assert load.excess(1000) == 475
    assert load.to_shed(1000) == 0
    assert not load.prefers_others(1000)


def test_memory_that_is_full_is_load(hours: Hours) -> None:
    hours.now = 100.0
    full = Load("c", "gw-0", LoadLimits(cpu=2.0, memory_bytes=resident_bytes()), hours)
    assert full.memory_is_full()
    assert full.overloaded
    hours.now = 200.0
    roomy = Load("c", "gw-0", LoadLimits(cpu=2.0, memory_bytes=100 * resident_bytes()), hours)
    assert not roomy.memory_is_full()
    assert 0 < roomy.memory < 0.1


def test_the_limit_of_memory_is_what_is_said() -> None:
    assert memory_limit(512, 4) == 512 << 20
    assert memory_limit(0, 2) in (0, memory_limit(0, 1) // 2)
