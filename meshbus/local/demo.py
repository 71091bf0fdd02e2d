"""The demo: Bookinfo, and a story that each step proves by what real requests got."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from meshbus.local.api import MeshApi, Receipt
from meshbus.local.home import Home, HomeError
from meshbus.local.manifests import load
from meshbus.local.probe_metrics import metrics_of
from meshbus.local.status import SupervisorStatus, read_status
from meshbus.local.traffic import Answer, Traffic, fetch

GATEWAY = "istio-system/istio-ingressgateway:8080"
REVIEWS = "default/reviews-v3-0"
JASON = {"cookie": "meshbus-bookinfo-user=jason"}
SAMPLE = 200
"""Requests that a share is measured with."""
SHARE = (0.02, 0.25)
"""Of a tenth: six standard deviations around it at 200 requests."""
DEADLINE_S = 20.0


class StepError(Exception):
    """What a step promised did not happen."""


class Stage(Protocol):
    """Where the story is told."""

    def title(self, text: str) -> None:
        """A step begins."""

    def say(self, text: str) -> None:
        """Something was seen."""

    def pause(self) -> None:
        """Between steps: time to look, where somebody looks."""

    def watch(self, traffic: Traffic | None) -> None:
        """Show these counts from now on."""


class Cast(NamedTuple):
    """What the steps work with."""

    api: MeshApi
    home: Home
    status: SupervisorStatus
    traffic: Traffic
    stage: Stage

    @property
    def port(self) -> int:
        """Where the gateway is, on localhost."""
        return self.status.forwards[GATEWAY]


def sample_manifests(step: str = "") -> list[dict[str, Any]]:
    """Documents of the sample: its base, or those of one step."""
    with as_file(files("bookinfo") / "manifests") as folder:
        found = load([folder / "steps" / f"{step}.yaml" if step else folder])
    return [document.content for document in found]


def sample_path() -> Path:
    """The folder of the sample's manifests."""
    return Path(str(files("bookinfo") / "manifests"))


def run_story(home: Home, status: SupervisorStatus, stage: Stage) -> None:
    """All steps, in order.

    Raises:
        StepError, HomeError: A step did not get what it promised.
    """
    with MeshApi(home) as api, _traffic(status) as traffic:
        cast = Cast(api, home, status, traffic, stage)
        for step in (_services, _to_v1, _a_tenth, _to_v3, _fault, _strict, _quota, _seen):
            step(cast)
            stage.pause()
        stage.watch(None)
        if traffic.problems:
            raise StepError(
                f"{len(traffic.problems)} requests of the steady traffic went wrong, the first: "
                f"{traffic.problems[0]}"
            )
        total = sum(traffic.versions.values())
        stage.say(f"{total} pages were served meanwhile, none went wrong")


@contextmanager
def _traffic(status: SupervisorStatus) -> Iterator[Traffic]:
    port = status.forwards.get(GATEWAY)
    if port is None:
        raise StepError(f"there is no gateway {GATEWAY}")
    _until(
        lambda: fetch("localhost", port).status == 200,
        lambda: f"no page: {fetch('localhost', port)[:2]}",
    )
    with Traffic("localhost", port) as traffic:
        yield traffic


# ---------------------------------------------------------------------- steps


def _services(cast: Cast) -> None:
    cast.stage.title("Six services, Bookinfo and its Envoys")
    parts = ", ".join(name for name, problem in cast.status.services.items() if not problem)
    cast.stage.say(f"ready: {parts}")
    expected = len(cast.status.instances)
    _until(
        lambda: _connected(cast) == expected,
        lambda: f"{_connected(cast)} of {expected} Envoys are connected",
    )
    cast.stage.say(f"{expected} Envoys are connected; the page answers 200")
    cast.stage.watch(cast.traffic)


def _to_v1(cast: Cast) -> None:
    cast.stage.title("All traffic to reviews v1")
    _apply(cast, sample_manifests("reviews-v1"))
    counts = _counted_all(cast, "v1")
    cast.stage.say(f"of 40 pages: {_shown(counts)}")


def _a_tenth(cast: Cast) -> None:
    cast.stage.title("A tenth to reviews v3")
    _apply(cast, sample_manifests("reviews-90-10"))
    counts = _counted(cast, SAMPLE)
    share = counts["v3"] / SAMPLE
    low, high = SHARE
    _expect(
        set(counts) == {"v1", "v3"} and low <= share <= high,
        f"about 90 % v1 and 10 % v3 were expected, not {_shown(counts)}",
    )
    cast.stage.say(f"of {SAMPLE} pages: {_shown(counts)}")


def _to_v3(cast: Cast) -> None:
    cast.stage.title("All traffic to reviews v3: red stars")
    _apply(cast, sample_manifests("reviews-v3"))
    counts = _counted_all(cast, "v3")
    _expect('class="stars red"' in _page(cast).body, "the page has no red stars")
    cast.stage.say(f"of 40 pages: {_shown(counts)}, with red stars")


def _fault(cast: Cast) -> None:
    cast.stage.title("A fault for the user jason: ratings answers 500")
    _apply(cast, sample_manifests("ratings-abort"))
    broken = "Ratings service is currently unavailable"
    _until(lambda: broken in _page(cast, JASON).body, lambda: "jason does not see the fault")
    _expect(broken not in _page(cast).body, "others see the fault too")
    cast.stage.say(f"jason sees “{broken}”, everybody else sees stars")
    change = cast.api.delete(sample_manifests("ratings-abort"))
    _receipt(cast, change)
    _until(
        lambda: 'class="stars red"' in _page(cast, JASON).body,
        lambda: "jason still sees no stars",
    )
    cast.stage.say("the fault is removed: jason sees stars again")


def _strict(cast: Cast) -> None:
    cast.stage.title("Mutual TLS, strictly: plaintext is refused")
    address = cast.status.instances[REVIEWS].addresses[0]
    before = fetch(address, 9080, "/reviews/0")
    _expect(before.status == 200, f"plaintext before: 200 was expected, not {before[:2]}")
    cast.stage.say(f"before: a plaintext call to reviews at {address} gets 200")
    _apply(cast, sample_manifests("mtls-strict"))
    _until(
        lambda: fetch(address, 9080, "/reviews/0").status == 0,
        lambda: f"plaintext is still taken: {fetch(address, 9080, '/reviews/0').status}",
    )
    refusal = fetch(address, 9080, "/reviews/0").body
    _expect(_page(cast).status == 200, "the mesh itself does not get through")
    cast.stage.say(f"after: it is refused ({refusal}), the mesh goes on with mutual TLS")


def _quota(cast: Cast) -> None:
    cast.stage.title("A quota on productpage: two requests in five seconds")
    documents = sample_manifests("quota")
    with cast.traffic.paused():
        _apply(cast, documents)
        seen: Counter[int] = Counter()

        def both_seen() -> bool:
            seen[_page(cast).status] += 1
            return seen[200] > 0 and seen[429] > 0

        _until(both_seen, lambda: f"200 and 429 were expected, not {dict(seen)}")
        cast.stage.say(f"answers: {seen[200]} times 200, then 429")
        _receipt(cast, cast.api.delete(documents))
        _until(
            lambda: all(_page(cast).status == 200 for _ in range(5)),
            lambda: "429 also after the quota was removed",
        )
        cast.stage.say("the quota is removed: 200 again")


def _seen(cast: Cast) -> None:
    cast.stage.title("What telemetry saw")
    wanted = {("productpage-v1", "reviews-v3"), ("reviews-v3", "ratings-v1")}

    def edges() -> set[tuple[str, str]]:
        return graph_edges(cast.api.get("/v1/graph"))

    _until(lambda: wanted <= edges(), lambda: f"the graph lacks {sorted(wanted - edges())}")
    cast.stage.say(f"graph: {', '.join(f'{a} → {b}' for a, b in sorted(edges()))}")

    def by_code() -> Counter[str]:
        return metrics_of(cast.home).total("istio_requests_total", "response_code")

    _until(
        lambda: by_code()["200"] > 0 and by_code()["429"] > 0,
        lambda: f"istio_requests_total lacks 200 or 429: {dict(by_code())}",
    )
    shown = ", ".join(f"{code}: {int(n)}" for code, n in sorted(by_code().items()))
    cast.stage.say(f"istio_requests_total by response_code: {shown}")


# ---------------------------------------------------------------------- parts of steps


def _connected(cast: Cast) -> int:
    """Proxies that the gateways serve; 0 while no gateway has reported to the API."""
    try:
        return len(cast.api.get("/v1/proxies")["proxies"])
    except HomeError:
        return 0


def _apply(cast: Cast, documents: list[dict[str, Any]]) -> None:
    change, _ = cast.api.apply(documents)
    _receipt(cast, change)


def _receipt(cast: Cast, change: int) -> None:
    receipt = cast.api.receipt(change)
    cast.stage.say(describe(receipt))
    _expect(receipt.state == "converged", f"change {change} is {receipt.state}")


def describe(receipt: Receipt) -> str:
    """`change 412 live on 9 of 9 proxies in 38 ms`."""
    text = f"change {receipt.change} live on {receipt.converged} of {receipt.total} proxies"
    if receipt.latency_ms is not None:
        text += f" in {receipt.latency_ms:.0f} ms"
    return "; ".join([text, *receipt.problems])


def _page(cast: Cast, headers: dict[str, str] | None = None) -> Answer:
    return fetch("localhost", cast.port, headers=headers)


def _counted(cast: Cast, number: int) -> Counter[str]:
    """Versions that a number of requests, begun from now on, got."""
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: _page(cast), range(number)))
    bad = [answer for answer in answers if answer.status != 200 or not answer.version]
    if bad:
        raise StepError(f"{len(bad)} of {number} requests went wrong: {bad[0].status}")
    return Counter(answer.version for answer in answers)


def _counted_all(cast: Cast, version: str) -> Counter[str]:
    """Count until one version gets everything.

    An Envoy acknowledges a change when it has taken it; its worker threads follow just after.
    """
    counts = Counter[str]()

    def settled() -> bool:
        nonlocal counts
        counts = _counted(cast, 40)
        return set(counts) == {version}

    _until(settled, lambda: f"only {version} was expected, not {_shown(counts)}")
    return counts


def _shown(counts: Counter[str]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{name} {n} ({n / total:.0%})" for name, n in sorted(counts.items()))


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StepError(otherwise)


def _until(holds: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Wait for what comes in its own time.

    Raises:
        StepError: It did not come.
    """
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > deadline:
            raise StepError(otherwise())
        time.sleep(0.1)


def graph_edges(graph: Any) -> set[tuple[str, str]]:
    """(caller, callee) of `/v1/graph`, by name."""
    names = {node["id"]: node["name"] for node in graph.get("nodes", [])}
    return {
        (names.get(edge["source"], "?"), names.get(edge["destination"], "?"))
        for edge in graph.get("edges", [])
    }


def reset(home: Home) -> int:
    """Take away what an earlier telling of the story may have left; the last change, 0 if none."""
    with MeshApi(home) as api:
        changes = [
            api.delete(sample_manifests(step))
            for step in ("ratings-abort", "mtls-strict", "quota", "reviews-v1")
        ]
    return max(changes)


def current_status(home: Home) -> SupervisorStatus:
    """What runs now.

    Raises:
        HomeError: Nothing does.
    """
    status = read_status(home)
    if status is None:
        raise HomeError(f"no mesh runs in {home.path}")
    return status
