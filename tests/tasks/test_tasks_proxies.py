"""What one proxy's own annotation asks of it, on real Envoys."""

import json
from typing import Any

import pytest
from standalone import status_of, until
from task_mesh import Config, TaskMesh, service, workload

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]

ANNOTATION = """
proxyHeaders:
  server: {value: marked}
  requestId: {disabled: true}
  attemptCount: {disabled: true}
  preserveHttp1HeaderCase: true
  xForwardedHost: {enabled: true}
  xForwardedPort: {enabled: true}
concurrency: 3
runtimeValues: {own.value: "7"}
proxyMetadata: {ISTIO_META_COLOR: annotation, ISTIO_META_SHAPE: annotation}
"""
PROXY_CONFIG = """
apiVersion: networking.istio.io/v1beta1
kind: ProxyConfig
metadata: {name: marked}
spec:
  selector: {matchLabels: {app: marked}}
  concurrency: 2
  environmentVariables: {ISTIO_META_COLOR: object}
---
apiVersion: networking.istio.io/v1beta1
kind: ProxyConfig
metadata: {name: all, namespace: istio-system}
spec:
  concurrency: 4
  environmentVariables: {ISTIO_META_SIZE: mesh}
"""
REWRITE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo]
  http:
  - rewrite: {authority: other.example.com}
    route: [{destination: {host: echo}}]
"""


@pytest.fixture
def marked(started_mesh: TaskMesh, config: Config) -> str:
    """A client and server with an annotation of its own."""
    config.apply(PROXY_CONFIG)
    document = workload("marked", "http:8080", ports=[{"name": "http", "port": 8080}])
    document["metadata"]["annotations"] = {"proxy.istio.io/config": ANNOTATION}
    config.apply([document, service("marked", ("http", 8000, 8080))])

    def ready() -> bool:
        found = status_of(started_mesh.home).instances.get("default/marked-0")
        return found is not None and found.ready

    until(ready, "the workload runs")
    own = "default/marked-0"
    until(
        lambda: started_mesh.get("http://marked:8000", client=own).status == 200,
        "its proxy knows where it is itself",
    )
    return own


def test_a_sidecar_writes_the_headers_of_its_annotation(
    task_mesh: TaskMesh, config: Config, marked: str
) -> None:
    config.apply(REWRITE)
    plain = task_mesh.get("http://echo:8000")
    assert plain.headers["server"] == "istio-envoy"
    assert {"x-envoy-attempt-count", "x-request-id"} <= plain.seen.keys()
    assert {"x-forwarded-host", "x-forwarded-port"}.isdisjoint(plain.seen)
    own = task_mesh.get("http://echo:8000", client=marked)
    assert own.headers["server"] == "marked"
    assert "x-envoy-attempt-count" not in own.seen
    assert own.seen["host"] == "other.example.com"
    assert own.seen["x-forwarded-host"] == "echo:8000"


def test_the_case_of_header_names_is_kept_where_both_sides_keep_it(
    task_mesh: TaskMesh, marked: str
) -> None:
    sent = {"X-MiXed-Case": "1"}
    kept = task_mesh.get("http://marked:8000", sent, client=marked)
    assert "X-MiXed-Case" in kept.json["names"], kept.json
    assert "x-request-id" not in kept.seen
    lowered = task_mesh.get("http://echo:8000", sent)
    assert "x-mixed-case" in lowered.json["names"]


def document(body: str) -> Any:
    """JSON of an answer in one chunk."""
    return json.loads(body[body.index("{") : body.rindex("}") + 1])


def test_a_proxy_starts_with_what_objects_and_annotation_say(
    started_mesh: TaskMesh, marked: str
) -> None:
    info = document(started_mesh.envoy(marked, "/server_info"))
    assert info["command_line_options"]["concurrency"] == 2
    metadata = info["node"]["metadata"]
    assert (metadata["COLOR"], metadata["SHAPE"], metadata["SIZE"]) == (
        "object",
        "annotation",
        "mesh",
    )
    assert metadata["NAME"] == "marked-0"
    runtime = document(started_mesh.envoy(marked, "/runtime"))
    assert runtime["entries"]["own.value"]["final_value"] == "7"
    other = document(started_mesh.envoy("default/curl-0", "/server_info"))
    assert other["command_line_options"]["concurrency"] == 1
