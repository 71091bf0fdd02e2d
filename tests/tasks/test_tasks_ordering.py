"""Changes in any order lose no request: what each request got is explained by a state around it.

Two hundred seeded changes (fifty where a mesh has one family of addresses alone) add, move and
remove subsets, routes, gateways and ports, documents of one apply in the wrong order on purpose,
references to what is not there among them. Meanwhile requests flow, inside the mesh, over TCP and
from outside. A request may get what the configuration before, during or after it says; a 404, a 503
or a closed connection that none of these explains is a failure.
"""

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from standalone import until
from task_mesh import INGRESS, Config, TaskMesh, service

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]

CHANGES = 200
SETTLED_S = 0.3
"""An Envoy ACKs before each of its workers has a change."""
VERSIONS = ("v1", "v2", "v3")
NAMES = ("a", "b", "c", "d")
API = "networking.istio.io/v1"
Documents = dict[tuple[str, str], dict[str, Any]]


def rule(host: str, subsets: dict[str, str]) -> dict[str, Any]:
    listed = [{"name": n, "labels": {"version": v}} for n, v in sorted(subsets.items())]
    spec = {"host": host, "subsets": listed}
    return {
        "apiVersion": API,
        "kind": "DestinationRule",
        "metadata": {"name": host},
        "spec": spec,
    }


def virtual_service(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": API, "kind": "VirtualService", "metadata": {"name": name}, "spec": spec}


def shares(host: str, weights: dict[str, int], **destination: Any) -> list[dict[str, Any]]:
    return [
        {"destination": {"host": host, "subset": name, **destination}, "weight": weight}
        for name, weight in weights.items()
    ]


def gateway(hosts: list[str]) -> dict[str, Any]:
    port = {"number": 80, "name": "http", "protocol": "HTTP"}
    spec = {"selector": {"istio": "ingressgateway"}, "servers": [{"port": port, "hosts": hosts}]}
    return {"apiVersion": API, "kind": "Gateway", "metadata": {"name": "entry"}, "spec": spec}


class Generator:
    """The next configuration, a few steps from the one before."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.subsets = {"echo": {"a": "v1", "b": "v2"}, "tcp-echo": {"a": "v1", "b": "v2"}}
        self.weights: dict[str, dict[str, int]] = {"echo": {"a": 100}, "entry": {"b": 100}}
        self.tcp = "a"
        self.hosts = ["echo.example.com"]
        self.more_ports = False
        self.present = {"echo", "tcp-echo", "entry", "gateway"}

    def step(self) -> None:
        """Change one to three things."""
        for _ in range(self.random.randint(1, 3)):
            self.random.choice(
                [
                    *(self._subset, self._subset, self._weights, self._weights),
                    *(self._tcp, self._hosts, self._ports, self._presence),
                ]
            )()

    def _subset(self) -> None:
        host = self.random.choice(list(self.subsets))
        versions = VERSIONS if host == "echo" else VERSIONS[:2]
        name = self.random.choice(NAMES)
        if name in self.subsets[host] and self.random.random() < 0.4:
            del self.subsets[host][name]
        else:
            self.subsets[host][name] = self.random.choice(versions)

    def _known(self, host: str) -> str:
        """Mostly a subset that is there."""
        known = sorted(self.subsets[host])
        return self.random.choice(known if known and self.random.random() < 0.85 else NAMES)

    def _weights(self) -> None:
        which = self.random.choice(["echo", "entry"])
        first, second = self._known("echo"), self._known("echo")
        share = self.random.choice([20, 50, 100])
        self.weights[which] = {first: 100} if first == second else {first: share}
        if first != second and share < 100:
            self.weights[which][second] = 100 - share

    def _tcp(self) -> None:
        self.tcp = self._known("tcp-echo")

    def _hosts(self) -> None:
        self.hosts = self.random.choice(
            [["echo.example.com"], ["*"], ["echo.example.com", "other.example.com"]]
        )

    def _ports(self) -> None:
        self.more_ports = not self.more_ports

    def _presence(self) -> None:
        self.present ^= {self.random.choice(["echo", "tcp-echo", "entry", "gateway"])}

    def documents(self) -> Documents:
        """The whole configuration."""
        ports = [("http", 8000, 8080), ("tcp", 9000, 9000), ("tcp-other", 9001, 9001)]
        ports.append(("grpc", 7070, 7070))
        if self.more_ports:
            ports.insert(self.random.randint(0, 3), ("http-more", 8100, 8080))
        made = [service("echo", *ports)]
        made += [rule(host, subsets) for host, subsets in self.subsets.items() if subsets]
        if "echo" in self.present:
            routes = shares("echo", self.weights["echo"])
            made.append(virtual_service("echo", hosts=["echo"], http=[{"route": routes}]))
        if "tcp-echo" in self.present:
            route = [{"route": shares("tcp-echo", {self.tcp: 100}, port={"number": 9000})}]
            made.append(virtual_service("tcp-echo", hosts=["tcp-echo"], tcp=route))
        if "gateway" in self.present:
            made.append(gateway(self.hosts))
        if "entry" in self.present:
            routes = shares("echo", self.weights["entry"], port={"number": 8000})
            made.append(
                virtual_service(
                    "entry",
                    hosts=["echo.example.com"],
                    gateways=["entry"],
                    http=[{"route": routes}],
                )
            )
        return {(d["kind"], d["metadata"]["name"]): d for d in made}


def outcomes(documents: Documents) -> dict[str, set[str]]:
    """What a request of each kind may get under a configuration."""

    def versions(host: str, routes: list[dict[str, Any]], missing: str) -> set[str]:
        found = documents.get(("DestinationRule", host))
        listed = found["spec"]["subsets"] if found else []
        known = {s["name"]: s["labels"]["version"] for s in listed}
        return {known.get(r["destination"]["subset"], missing) for r in routes}

    out = {"inside": set(VERSIONS), "tcp": {"v1", "v2"}, "entry": {"0"}}
    if inside := documents.get(("VirtualService", "echo")):
        out["inside"] = versions("echo", inside["spec"]["http"][0]["route"], "503")
    if tcp := documents.get(("VirtualService", "tcp-echo")):
        out["tcp"] = versions("tcp-echo", tcp["spec"]["tcp"][0]["route"], "closed")
    ports = {p["port"] for p in documents["Service", "echo"]["spec"]["ports"]}
    out["more"] = out["inside"] if 8100 in ports else {"0", "502", "503", "404"}
    entry = documents.get(("VirtualService", "entry"))
    if ("Gateway", "entry") in documents:
        out["entry"] = {"404"}
        if entry:
            out["entry"] = versions("echo", entry["spec"]["http"][0]["route"], "503")
    return out


class Span(NamedTuple):
    """When a configuration may show: from the moment it is applied until the next is in force."""

    begin: float
    end: float
    documents: Documents
    what: str


def explains(kind: str, outcome: str, around: list[Span]) -> bool:
    """A state gives this outcome. A version may also come of the routes of one state, the subsets
    of the next and the ports of a third, when they change together: clusters come before routes,
    and routes before the listeners of ports that go. No refusal may."""
    if any(outcome in outcomes(span.documents)[kind] for span in around):
        return True
    if outcome not in VERSIONS:
        return False
    for routes, subsets, ports in itertools.product(around, repeat=3):
        others = {"DestinationRule": subsets.documents, "Service": ports.documents}
        mixed = {k: d for k, d in routes.documents.items() if k[0] not in others}
        for of, documents in others.items():
            mixed |= {k: d for k, d in documents.items() if k[0] == of}
        if outcome in outcomes(mixed)[kind]:
            return True
    return False


class Probes:
    """Requests of each kind, one after the other, each kind in a thread."""

    def __init__(self, mesh: TaskMesh) -> None:
        self._mesh = mesh
        self._end = threading.Event()
        self.seen: list[tuple[str, float, float, str, str]] = []
        """(kind, begin, end, outcome, more)."""
        kinds: dict[str, Callable[[], tuple[str, str]]] = {
            "inside": lambda: self._get("http://echo:8000/"),
            "more": lambda: self._get("http://echo:8100/"),
            "tcp": self._say,
            "entry": lambda: self._get("http://echo.example.com/", outside=True),
        }
        mesh.address(INGRESS)
        hosts = ("echo", "tcp-echo")
        self._addresses = {host: mesh.resolve("default/curl-0", host) for host in hosts}
        self._threads = [
            threading.Thread(target=self._run, args=(kind, call)) for kind, call in kinds.items()
        ]

    def _get(self, url: str, *, outside: bool = False) -> tuple[str, str]:
        if outside:
            answer = self._mesh.ingress(url)
        else:
            port = int(url.rpartition(":")[2].strip("/"))
            # An address that nobody has any more is not refused: it is waited for in vain.
            answer = self._mesh.get(url, via=(self._addresses["echo"], port), timeout_s=2)
        return (answer.version if answer.status == 200 else str(answer.status)), answer.text[:200]

    def _say(self) -> tuple[str, str]:
        said = self._mesh.say(self._addresses["tcp-echo"], 9000)
        return (said.split()[0] if said else "closed"), said

    def _run(self, kind: str, call: Callable[[], tuple[str, str]]) -> None:
        while not self._end.is_set():
            begin = time.monotonic()
            outcome, more = call()
            self.seen.append((kind, begin, time.monotonic(), outcome, more))
            self._end.wait(0.005)

    def __enter__(self) -> "Probes":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def test_no_request_is_lost_by_changes_in_any_order(task_mesh: TaskMesh, config: Config) -> None:
    both = len(task_mesh.families) > 1
    changes = CHANGES if both else CHANGES // 4
    made = Generator(seed=task_mesh.family + both)
    held = made.documents()
    config.apply(list(held.values()))
    until(lambda: task_mesh.ingress("http://echo.example.com/").status == 200, "it listens")
    spans: list[Span] = []
    begun = time.monotonic()
    with Probes(task_mesh) as probes:
        count = 0
        while count < changes:
            made.step()
            wanted = made.documents()
            changed = [d for key, d in wanted.items() if held.get(key) != d]
            gone = [d for key, d in held.items() if key not in wanted]
            made.random.shuffle(changed)
            steps = [("apply", changed), ("delete", gone)]
            made.random.shuffle(steps)
            for verb, documents in steps:
                if not documents:
                    continue
                before, at = held, time.monotonic()
                if verb == "apply":
                    held = {**held, **{(d["kind"], d["metadata"]["name"]): d for d in documents}}
                    task_mesh.apply(documents)
                else:
                    gone_keys = {(d["kind"], d["metadata"]["name"]) for d in documents}
                    held = {k: d for k, d in held.items() if k not in gone_keys}
                    task_mesh.delete(documents)
                named = ", ".join(f"{d['kind']} {d['metadata']['name']}" for d in documents)
                end = time.monotonic() + SETTLED_S
                spans.append(Span(begun, end, before, f"before {verb} {named}"))
                begun = at
                count += 1
    spans.append(Span(begun, time.monotonic() + SETTLED_S, held, "at the end"))
    config.apply([service("echo", ("http", 8000, 8080), ("tcp", 9000, 9000),
                          ("tcp-other", 9001, 9001), ("grpc", 7070, 7070))])  # fmt: skip
    config._held.pop(("Service", "default", "echo"))
    problems = []
    for kind, begin, end, outcome, more in probes.seen:
        around = [span for span in spans if span.begin <= end and span.end >= begin]
        if not explains(kind, outcome, around):
            allowed = [(sorted(outcomes(span.documents)[kind]), span.what) for span in around]
            at = f"{begin - spans[0].begin:.3f}s"
            problems.append(f"{at} {kind}: {outcome} {more} not in {allowed}")
    counts = Counter(kind for kind, *_ in probes.seen)
    assert min(counts[kind] for kind in ("inside", "tcp", "entry")) > changes, counts
    assert counts["more"] > 0, counts
    assert not problems, f"{len(problems)} of {counts}:\n" + "\n".join(problems[:20])
