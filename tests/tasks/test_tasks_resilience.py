"""Istio's resilience tasks: faults, timeouts, retries, circuit breaking, mirroring, localities."""

import threading
import uuid
from collections import Counter
from typing import Any

import pytest
from task_mesh import Answer, Config, TaskMesh

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]

ECHO = "http://echo:8000"
HTTPBIN = "http://httpbin:8000"
POOL = "http://pool:8000"


def virtual_service(host: str, http: str) -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {host}}}
spec:
  hosts: [{host}]
  http:
{http}
"""


def policy(host: str, text: str, subsets: str = "[]") -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {host}}}
spec:
  host: {host}
  subsets: {subsets}
  trafficPolicy:
{text}
"""


def identity() -> dict[str, str]:
    return {"x-id": uuid.uuid4().hex}


def test_faults_hit_whom_they_are_for(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        virtual_service(
            "echo",
            """
  - match: [{headers: {end-user: {exact: jason}}}]
    fault: {delay: {percentage: {value: 100}, fixedDelay: 1.5s}}
    route: [{destination: {host: echo}}]
  - match: [{headers: {end-user: {exact: anna}}}]
    fault: {abort: {percentage: {value: 100}, httpStatus: 517}}
    route: [{destination: {host: echo}}]
  - match: [{headers: {end-user: {exact: half}}}]
    fault: {abort: {percentage: {value: 50}, httpStatus: 517}}
    route: [{destination: {host: echo}}]
  - route: [{destination: {host: echo}}]
""",
        )
    )
    slow = task_mesh.get(ECHO, {"end-user": "jason"})
    assert (slow.status, slow.seconds >= 1.5) == (200, True)
    assert task_mesh.get(ECHO, {"end-user": "anna"}).status == 517
    half = task_mesh.many(80, ECHO, {"end-user": "half"})
    assert 15 <= half["517"] <= 65, half
    plain = task_mesh.get(ECHO)
    assert (plain.status, plain.seconds < 1.5) == (200, True)


def test_timeouts(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        virtual_service(
            "echo",
            """
  - match: [{uri: {prefix: /delay}, headers: {x-quick: {}}}]
    timeout: 0.5s
    route: [{destination: {host: echo}}]
  - route: [{destination: {host: echo}}]
""",
        )
    )
    answer = task_mesh.get(f"{ECHO}/delay/3", {"x-quick": "1"})
    assert (answer.status, answer.seconds < 2.5) == (504, True)
    assert task_mesh.get(f"{ECHO}/delay/2").status == 200, "without a timeout there is none"


def test_retries_of_what_may_be_repeated(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        virtual_service(
            "httpbin",
            """
  - retries: {attempts: 3, perTryTimeout: 2s, retryOn: 5xx}
    route: [{destination: {host: httpbin, subset: v1}}]
""",
        )
        + "---"
        + policy(
            "httpbin", "    loadBalancer: {simple: RANDOM}", "[{name: v1, labels: {version: v1}}]"
        )
    )
    same = identity()
    assert task_mesh.get(f"{HTTPBIN}/flaky/503/2", same).status == 200
    assert task_mesh.get(f"{HTTPBIN}/count", same).json["count"] == 3
    same = identity()
    assert task_mesh.get(f"{HTTPBIN}/flaky/503/9", same).status == 503
    assert task_mesh.get(f"{HTTPBIN}/count", same).json["count"] == 4


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_without_rules_nothing_that_reached_the_application_is_repeated(
    task_mesh: TaskMesh, config: Config, method: str
) -> None:
    config.apply(
        virtual_service("httpbin", "  - route: [{destination: {host: httpbin, subset: v1}}]")
        + "---"
        + policy(
            "httpbin", "    loadBalancer: {simple: RANDOM}", "[{name: v1, labels: {version: v1}}]"
        )
    )
    same = identity()
    answer = task_mesh.get(f"{HTTPBIN}/flaky/503/1", same, method=method, body=b"pay once")
    assert answer.status == 503
    assert task_mesh.get(f"{HTTPBIN}/count", same).json["count"] == 1


def test_circuit_breaking_refuses_what_is_too_much(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        policy(
            "httpbin",
            """
    connectionPool:
      tcp: {maxConnections: 1}
      http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}
""",
        )
    )
    answers = in_parallel(task_mesh, 10, f"{HTTPBIN}/delay/1")
    statuses = Counter(a.status for a in answers)
    assert set(statuses) == {200, 503}, statuses
    assert all(a.headers.get("x-envoy-overloaded") for a in answers if a.status == 503)


def in_parallel(mesh: TaskMesh, count: int, url: str) -> list[Answer]:
    """The same request many times at once. The kernel's view of a thread is its own."""
    answers: list[Answer] = []
    mesh.get(url.rpartition("/delay")[0])  # what is remembered per mesh is there before the threads
    threads = [threading.Thread(target=lambda: answers.append(mesh.get(url))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_an_endpoint_that_fails_is_left_out(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        policy(
            "httpbin",
            """
    outlierDetection:
      consecutive5xxErrors: 2
      interval: 0.2s
      baseEjectionTime: 60s
      maxEjectionPercent: 50
""",
            "[{name: v1, labels: {version: v1}}]",
        )
        + "---"
        + virtual_service(
            "httpbin",
            """
  - match: [{uri: {prefix: /status}}]
    route: [{destination: {host: httpbin}}]
  - route: [{destination: {host: httpbin}}]
""",
        )
    )
    task_mesh.many(12, f"{HTTPBIN}/status/500")
    left = task_mesh.many(20, HTTPBIN)
    assert len(left) == 1, f"one of two is ejected: {left}"


def test_mirrored_requests_reach_the_other_version_too(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        policy(
            "httpbin",
            "    loadBalancer: {simple: RANDOM}",
            "[{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]",
        )
        + "---"
        + virtual_service(
            "httpbin",
            """
  - match: [{headers: {x-to: {exact: v2}}}]
    route: [{destination: {host: httpbin, subset: v2}}]
  - route: [{destination: {host: httpbin, subset: v1}}]
    mirror: {host: httpbin, subset: v2}
    mirrorPercentage: {value: 100}
""",
        )
    )
    same = identity()
    for _ in range(3):
        assert task_mesh.get(HTTPBIN, same).version == "v1"
    arrived = task_mesh.get(f"{HTTPBIN}/count", {**same, "x-to": "v2"}).json["count"]
    for _ in range(50):
        if arrived == 3:
            break
        arrived = task_mesh.get(f"{HTTPBIN}/count", {**same, "x-to": "v2"}).json["count"]
    assert arrived == 3


OUTLIERS = """
    outlierDetection: {consecutive5xxErrors: 1, interval: 0.2s, baseEjectionTime: 60s}
    connectionPool: {http: {maxRequestsPerConnection: 1}}
"""


def test_the_own_locality_first_then_the_next(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        policy(
            "echo",
            OUTLIERS
            + """
    loadBalancer:
      simple: ROUND_ROBIN
      localityLbSetting: {enabled: true, failover: [{from: region1, to: region2}]}
""",
        )
    )
    assert set(task_mesh.many(12, ECHO)) == {"v1"}, "region1/zone1"
    task_mesh.many(3, f"{ECHO}/status/503")
    left = set(task_mesh.many(12, ECHO))
    assert "v1" not in left, "an ejected locality is left"
    assert left == {"v2"}, "the same region comes before another"


def test_locality_shares_as_distributed(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        policy(
            "echo",
            OUTLIERS
            + """
    loadBalancer:
      simple: ROUND_ROBIN
      localityLbSetting:
        enabled: true
        distribute:
        - from: region1/zone1/*
          to: {"region1/zone1/*": 70, "region1/zone2/*": 20, "region2/zone3/*": 10}
""",
        )
    )
    got = task_mesh.many(200, ECHO)
    assert got["v1"] > got["v2"] > got["v3"] > 0, got
    assert 100 <= got["v1"] <= 175


def test_consistent_hashing_sticks(task_mesh: TaskMesh, config: Config) -> None:
    def instances(count: int, headers: dict[str, str], url: str = POOL) -> set[str]:
        return {task_mesh.get(url, headers).json["instance"] for _ in range(count)}

    config.apply(policy("pool", "    loadBalancer: {consistentHash: {httpHeaderName: x-user}}"))
    assert len(instances(8, {"x-user": "anna"})) == 1
    everybody = {next(iter(instances(1, {"x-user": f"u{i}"}))) for i in range(30)}
    assert len(everybody) == 3

    config.apply(
        policy("pool", "    loadBalancer: {consistentHash: {httpCookie: {name: who, ttl: 60s}}}")
    )
    first = task_mesh.get(POOL)
    cookie = first.headers["set-cookie"].partition(";")[0]
    assert cookie.startswith("who=")
    assert instances(8, {"cookie": cookie}) == {first.json["instance"]}

    config.apply(
        policy(
            "pool",
            """
    loadBalancer:
      consistentHash: {httpQueryParameterName: q, maglev: {tableSize: 101}}
""",
        )
    )
    assert len(instances(8, {}, f"{POOL}/?q=7")) == 1

    config.apply(policy("pool", "    loadBalancer: {consistentHash: {useSourceIp: true}}"))
    assert len(instances(8, {})) == 1


def test_one_pod_of_a_headless_service_by_its_address(task_mesh: TaskMesh) -> None:
    address = task_mesh.address("default/pool-v1-1")
    answer = task_mesh.get("http://pool-pods:8000/", via=(address, 8080))
    assert answer.json["instance"] == "pool-v1-1"


def instances(mesh: TaskMesh, url: str, headers: dict[str, str], count: int = 12) -> Counter[str]:
    answers = (mesh.get(url, headers) for _ in range(count))
    return Counter(a.json["instance"] if a.status == 200 else str(a.status) for a in answers)


def test_a_cookie_keeps_its_endpoint(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: pool
  annotations:
    traffic.meshbus.io/sticky-session: '{"cookie": {"name": "stick", "ttl": "1h"}}'
spec: {host: pool}
"""
    )
    for _ in range(3):
        first = task_mesh.get(POOL)
        cookie = first.headers["set-cookie"].partition(";")[0]
        assert cookie.startswith("stick=")
        same = {"cookie": cookie}
        assert instances(task_mesh, POOL, same) == {first.json["instance"]: 12}
    assert len(instances(task_mesh, POOL, {}, 40)) == 3


def slice_of(name: str, addresses: dict[str, bool]) -> dict[str, Any]:
    """Endpoints by address, and whether each of them drains."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv6" if any(":" in address for address in addresses) else "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": not drains, "serving": True, "terminating": drains},
            }
            for address, drains in addresses.items()
        ],
    }


def test_an_endpoint_that_drains_keeps_its_sessions(task_mesh: TaskMesh, config: Config) -> None:
    one, two = (task_mesh.address(f"default/pool-v1-{i}") for i in (0, 1))
    kept = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kept",
            "labels": {"istio.io/persistent-session-header": "x-session"},
        },
        "spec": {
            "ipFamilies": [f"IPv{task_mesh.family}"],
            "ports": [{"name": "http", "port": 8000}],
        },
    }
    config.apply([kept, slice_of("kept", {one: False, two: False})])
    url = "http://kept:8000"
    sessions = {}
    while len(sessions) < 2:
        answer = task_mesh.get(url)
        sessions[answer.json["instance"]] = {"x-session": answer.headers["x-session"]}
    config.apply([slice_of("kept", {one: True, two: False})])
    for instance, session in sessions.items():
        assert instances(task_mesh, url, session) == {instance: 12}
    assert instances(task_mesh, url, {}) == {"pool-v1-1": 12}
    config.apply([slice_of("kept", {two: False})])
    assert instances(task_mesh, url, sessions["pool-v1-0"]) == {"pool-v1-1": 12}


def test_a_retry_budget_limits_retries(task_mesh: TaskMesh, config: Config) -> None:
    route = """
  - retries: {attempts: 3, retryOn: 5xx, backoff: 1s}
    route: [{destination: {host: httpbin, subset: v1}}]
"""
    subsets = "[{name: v1, labels: {version: v1}}]"

    def sent() -> int:
        """What 10 requests at the same time, all of which fail, come to with their retries."""
        same = identity()
        calls = [
            threading.Thread(target=task_mesh.get, args=(f"{HTTPBIN}/status/503", same))
            for _ in range(10)
        ]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
        count: int = task_mesh.get(f"{HTTPBIN}/count", same).json["count"]
        return count

    config.apply(
        virtual_service("httpbin", route)
        + "---"
        + policy("httpbin", "    loadBalancer: {simple: RANDOM}", subsets)
    )
    assert sent() == 40
    budget = "    retryBudget: {percent: 0, minRetryConcurrency: 1, budgetInterval: 1s}"
    config.apply(policy("httpbin", budget, subsets))
    assert 10 <= sent() < 30
    dump = task_mesh.envoy("default/curl-0", "/config_dump?resource=dynamic_active_clusters")
    assert '"budget_interval": "1s"' in dump
