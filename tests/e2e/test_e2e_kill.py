"""kill -9 of any one process while traffic flows: nothing fails, it comes back, nothing is lost."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from standalone import all_ready, gateway_port, mesh, pid_of, remaining, rows, status_of, until

from meshbus.local.api import MeshApi
from meshbus.local.demo import sample_manifests
from meshbus.local.end import end_mesh
from meshbus.local.home import Home, HomeError
from meshbus.local.traffic import Traffic, fetch

pytestmark = [pytest.mark.real, pytest.mark.slow]

SERVICES = ("config", "discovery", "ca", "xds-gateway", "policy", "telemetry")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("kill")
    (folder / "h").mkdir(mode=0o700)
    (folder / "h" / "settings.yaml").write_text("xds: {workers: 2}\n")
    with mesh(folder) as running:
        yield running


def change_route(home: Home, step: str) -> None:
    """A route change is accepted, as soon as the API takes changes, and reaches every proxy."""
    count = len(status_of(home).instances)
    changes: list[int] = []

    def connected() -> bool:
        try:
            return len(api.get("/v1/proxies")["proxies"]) == count
        except HomeError:  # refused with a reason while a part is away: that is allowed
            return False

    def accepted() -> bool:
        try:
            changes.append(api.apply(sample_manifests(step))[0])
        except HomeError:  # config may be back, and not lead yet
            return False
        return True

    with MeshApi(home) as api:
        # An Envoy comes back to a gateway that was away within its back-off of at most 5 s.
        until(connected, "all proxies are connected")
        until(accepted, "the change is accepted")
        receipt = api.receipt(changes[-1])
    assert receipt.state == "converged", receipt
    assert receipt.total == count


@pytest.mark.parametrize(
    "victim",
    [*(f"service/{name}" for name in SERVICES), "nats-server", "guard", "supervisor"],
)
def test_traffic_survives_the_death_of(home: Home, victim: str) -> None:
    change_route(home, "reviews-v1")
    before = rows(home)
    others = {name: pid_of(home, name) for name in ("envoy/default/reviews-v1-0", "nats-server")}
    with Traffic("127.0.0.1", gateway_port(home), per_second=25) as traffic:
        until(lambda: sum(traffic.versions.values()) > 10, "traffic flows")
        pid = pid_of(home, victim)
        assert pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid_of(home, victim) not in (0, pid), f"{victim} is back")
        until(lambda: all_ready(home), "everything is ready")
        served = sum(traffic.versions.values())
        until(lambda: sum(traffic.versions.values()) > served + 25, "traffic goes on")
        assert rows(home) == before
        change_route(home, "reviews-v3")
        until(lambda: traffic.versions["v3"] > 5, "the change takes effect")
        assert traffic.problems == []
    for name, held in others.items():
        if name != victim:
            assert pid_of(home, name) == held, f"{name} was restarted for nothing"


def workers(home: Home) -> list[int]:
    """Pids of the gateway's workers that are ready."""
    about = json.loads((home.services / "admin-xds-gateway.json").read_text())
    page = httpx.get(f"http://{about['address']}/debug/xds-gateway/workers").json()
    return [worker["pid"] for worker in page["workers"] if worker["ready"]]


def test_traffic_survives_the_death_of_a_worker(home: Home) -> None:
    change_route(home, "reviews-v1")
    with Traffic("127.0.0.1", gateway_port(home), per_second=25) as traffic:
        until(lambda: sum(traffic.versions.values()) > 10, "traffic flows")
        gateway = pid_of(home, "service/xds-gateway")
        until(lambda: len(workers(home)) == 2, "both workers are ready")
        for victim in workers(home):
            os.kill(victim, signal.SIGKILL)
            until(
                lambda victim=victim: len(workers(home)) == 2 and victim not in workers(home),
                "the worker is back",
            )
            change_route(home, "reviews-v3")
            change_route(home, "reviews-v1")
        assert traffic.problems == []
        assert pid_of(home, "service/xds-gateway") == gateway


def test_a_dead_application_leaves_the_endpoints_and_comes_back(home: Home) -> None:
    with MeshApi(home) as api:
        api.receipt(api.delete(sample_manifests("reviews-v1")))
    with Traffic("127.0.0.1", gateway_port(home), per_second=25) as traffic:
        until(lambda: len(traffic.versions) == 3, "all versions are used")
        for victim in ("app/default/reviews-v2-0", "envoy/default/reviews-v3-0"):
            pid = pid_of(home, victim)
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid, victim=victim: pid_of(home, victim) not in (0, pid), "restart")
            until(lambda: all_ready(home), "everything is ready")
        before = traffic.versions
        until(
            lambda: all(traffic.versions[v] > before[v] for v in ("v1", "v2", "v3")),
            "all versions are used again",
        )
        # Requests that were on their way to the dead ones may fail; productpage asks twice.
        assert traffic.problems == []


def test_down_ends_everything_also_without_supervisor_and_guard(tmp_path: Path) -> None:
    with mesh(tmp_path) as home:
        port = gateway_port(home)
        assert fetch("127.0.0.1", port).status == 200
        for victim in ("guard", "supervisor"):
            os.kill(pid_of(home, victim), signal.SIGKILL)
        end_mesh(home)
        assert remaining(home) == []
        assert fetch("127.0.0.1", port).status == 0


def test_the_bus_hangs_for_a_while(home: Home) -> None:
    change_route(home, "reviews-v1")
    before = rows(home)
    pid = pid_of(home, "nats-server")
    with Traffic("127.0.0.1", gateway_port(home), per_second=25) as traffic:
        until(lambda: traffic.versions["v1"] > 10, "traffic flows")
        os.kill(pid, signal.SIGSTOP)
        try:
            with MeshApi(home) as api, pytest.raises(HomeError) as refusal:
                api.apply(sample_manifests("reviews-v3"))
            assert re.search("50[0-9]", str(refusal.value)), "refused with a reason"
            served = sum(traffic.versions.values())
            until(lambda: sum(traffic.versions.values()) > served + 50, "proxies go on alone")
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: all_ready(home), "everything is ready")
        changed = rows(home)
        changed.pop("/apis/networking.istio.io/v1/virtualservices default/reviews")
        before.pop("/apis/networking.istio.io/v1/virtualservices default/reviews")
        assert changed == before, "applied late or not at all, and nothing else"
        change_route(home, "reviews-v3")
        assert traffic.problems == []
