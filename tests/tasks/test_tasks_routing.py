"""Istio's traffic management tasks: what requests get, over real Envoys."""

from pathlib import Path

import pytest
from standalone import until
from task_mesh import Config, TaskMesh

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]

ECHO = "http://echo:8000"
SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec:
  host: echo
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
"""


def routes(http: str) -> str:
    """The versions of echo as subsets, and a VirtualService with these routes."""
    return f"""{SUBSETS}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: echo}}
spec:
  hosts: [echo]
  http:
{http}
"""


def test_without_rules_every_version_answers(task_mesh: TaskMesh) -> None:
    assert set(task_mesh.many(40, ECHO)) == {"v1", "v2", "v3"}


def test_all_traffic_to_one_version_and_by_header_and_user(
    task_mesh: TaskMesh, config: Config
) -> None:
    config.apply(
        routes("""
  - match:
    - headers: {end-user: {exact: jason}}
      uri: {prefix: /status}
    - headers: {cookie: {regex: "^(.*?;)?(user=jason)(;.*)?$"}}
    route: [{destination: {host: echo, subset: v2}}]
  - match: [{queryParams: {v: {exact: "3"}}}]
    route: [{destination: {host: echo, subset: v3}}]
  - match: [{withoutHeaders: {x-keep: {}}, uri: {exact: /rewritten}}]
    rewrite: {uri: /status/204}
    route: [{destination: {host: echo, subset: v3}}]
  - match: [{uri: {prefix: /old/}}]
    redirect: {uri: /new, authority: new.example.com, redirectCode: 308}
  - match: [{uri: {exact: /teapot}}]
    directResponse: {status: 418, body: {string: short}}
  - route: [{destination: {host: echo, subset: v1}}]
""")
    )
    assert set(task_mesh.many(10, ECHO)) == {"v1"}
    jason = {"end-user": "jason"}
    assert task_mesh.get(f"{ECHO}/status/200", jason).version == "v2"
    assert task_mesh.get(f"{ECHO}/other", jason).version == "v1"
    assert task_mesh.get(ECHO, {"cookie": "a=b; user=jason"}).version == "v1", "a space is no match"
    assert task_mesh.get(ECHO, {"cookie": "a=b;user=jason"}).version == "v2"
    assert task_mesh.get(f"{ECHO}/?a=1&v=3").version == "v3"
    assert task_mesh.get(f"{ECHO}/rewritten").status == 204
    assert task_mesh.get(f"{ECHO}/rewritten", {"x-keep": "1"}).json["path"] == "/rewritten"
    moved = task_mesh.get(f"{ECHO}/old/page?x=1")
    assert (moved.status, moved.headers["location"]) == (308, "http://new.example.com/new?x=1")
    teapot = task_mesh.get(f"{ECHO}/teapot")
    assert (teapot.status, teapot.text) == (418, "short")


def test_by_labels_of_the_caller(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        routes("""
  - match: [{sourceLabels: {env: test}}]
    route: [{destination: {host: echo, subset: v3}}]
  - match: [{sourceNamespace: elsewhere}]
    route: [{destination: {host: echo, subset: v2}}]
  - route: [{destination: {host: echo, subset: v1}}]
""")
    )
    assert set(task_mesh.many(5, ECHO, client="default/sleep-0")) == {"v3"}
    assert set(task_mesh.many(5, ECHO, client="default/curl-0")) == {"v1"}


def test_headers_are_changed_on_the_way(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        routes("""
  - headers:
      request: {set: {x-set: one}, add: {x-add: two}, remove: [x-gone]}
      response: {set: {x-answer: three}, remove: [content-type]}
    route:
    - destination: {host: echo, subset: v1}
      headers: {request: {set: {x-of-destination: four}}}
    rewrite: {authority: other.example.com}
""")
    )
    answer = task_mesh.get(f"{ECHO}/", {"x-gone": "1", "x-add": "zero"})
    seen = answer.seen
    assert (seen["x-set"], seen["x-of-destination"]) == ("one", "four")
    assert "two" in seen["x-add"]
    assert "x-gone" not in seen
    assert seen["host"] == "other.example.com"
    assert answer.headers["x-answer"] == "three"
    assert "content-type" not in answer.headers


def test_traffic_shifts_by_weight(task_mesh: TaskMesh, config: Config) -> None:
    shares = """
  - route:
    - {{destination: {{host: echo, subset: v1}}, weight: {0}}}
    - {{destination: {{host: echo, subset: v3}}, weight: {1}}}
"""
    config.apply(routes(shares.format(75, 25)))
    got = task_mesh.many(200, ECHO)
    assert set(got) == {"v1", "v3"}
    assert 25 <= got["v3"] <= 80, got
    config.apply(routes(shares.format(0, 100)))
    assert set(task_mesh.many(30, ECHO)) == {"v3"}


def test_tcp_shifting_by_the_published_samples(
    task_mesh: TaskMesh, config: Config, shared_data: Path
) -> None:
    folder = shared_data / "samples" / "tcp-echo"
    if not folder.is_dir():
        pytest.skip("the published samples are not here")
    ingress = task_mesh.address("istio-system/istio-ingressgateway-0")

    def versions(count: int) -> list[str]:
        return [task_mesh.say(ingress, 31400, "date", client="") for _ in range(count)]

    config.apply(folder / "tcp-echo-all-v1.yaml")
    until(lambda: versions(1) == ["v1 date"], "the gateway's workers listen")
    assert set(versions(12)) == {"v1 date"}
    config.apply(folder / "tcp-echo-20-v2.yaml")
    got = versions(100)
    assert set(got) == {"v1 date", "v2 date"}
    assert 6 <= got.count("v2 date") <= 40


def test_tcp_shifting_inside_the_mesh(task_mesh: TaskMesh, config: Config) -> None:
    config.apply("""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: tcp-echo}
spec:
  host: tcp-echo
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tcp-echo}
spec:
  hosts: [tcp-echo]
  tcp:
  - match: [{port: 9001}]
    route: [{destination: {host: tcp-echo, subset: v2, port: {number: 9000}}}]
  - route: [{destination: {host: tcp-echo, subset: v1, port: {number: 9000}}}]
""")
    # An Envoy ACKs a listener before its workers have it.
    until(lambda: task_mesh.say("tcp-echo", 9001) == "v2 hi", "the last listener is in force")
    assert {task_mesh.say("tcp-echo", 9000) for _ in range(8)} == {"v1 hi"}
    assert {task_mesh.say("tcp-echo", 9001) for _ in range(8)} == {"v2 hi"}


def test_delegates_of_another_namespace(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        routes("""
  - match: [{uri: {prefix: /team}}]
    delegate: {name: team, namespace: elsewhere}
  - route: [{destination: {host: echo, subset: v1}}]
""")
        + """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: team, namespace: elsewhere}
spec:
  http:
  - match: [{uri: {prefix: /team/two}}]
    route: [{destination: {host: echo.default.svc.cluster.local, subset: v2}}]
  - route: [{destination: {host: echo.default.svc.cluster.local, subset: v3}}]
"""
    )
    assert task_mesh.get(f"{ECHO}/team/two/x").version == "v2"
    assert task_mesh.get(f"{ECHO}/team/x").version == "v3"
    assert task_mesh.get(f"{ECHO}/x").version == "v1"


def test_a_missing_subset_answers_503_and_breaks_nothing_else(
    task_mesh: TaskMesh, config: Config
) -> None:
    config.apply(
        routes("""
  - match: [{uri: {prefix: /gone}}]
    route: [{destination: {host: echo, subset: v9}}]
  - route: [{destination: {host: echo, subset: v1}}]
""")
    )
    assert task_mesh.get(f"{ECHO}/gone").status == 503
    assert task_mesh.get(f"{ECHO}/").version == "v1"
