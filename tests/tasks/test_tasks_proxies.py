"""What one proxy's own annotation asks of it, on real Envoys."""

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
    document = workload("marked", "http:8080", ports=[{"name": "http", "port": 8080}])
    document["metadata"]["annotations"] = {"proxy.istio.io/config": ANNOTATION}
    config.apply([document, service("marked", ("http", 8000, 8080))])

    def ready() -> bool:
        found = status_of(started_mesh.home).instances.get("default/marked-0")
        return found is not None and found.ready

    until(ready, "the workload runs")
    return "default/marked-0"


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
