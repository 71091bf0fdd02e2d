"""Extensions in real Envoys: scripts and modules, their order, what they see, what stands in."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from standalone import until
from task_mesh import Config, TaskMesh
from tiny_wasm import module

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]

URL = "http://httpbin:8000/"
MODULE = module("x-wasm", "yes")


class Files:
    """An HTTP server of one module, which can be away."""

    def __init__(self) -> None:
        self.content = MODULE
        self.status = 200
        self.asked = 0
        files = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                files.asked += 1
                self.send_response(files.status)
                self.end_headers()
                self.wfile.write(files.content if files.status == 200 else b"")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/plugin.wasm"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def files() -> Iterator[Files]:
    made = Files()
    yield made
    made.close()


def extension(name: str, **spec: Any) -> dict[str, Any]:
    selector = {"matchLabels": {"app": "httpbin"}}
    return {
        "apiVersion": "extensions.istio.io/v1alpha1",
        "kind": "TrafficExtension",
        "metadata": {"name": name},
        "spec": {"selector": selector, **spec},
    }


def plugin(name: str, url: str, **spec: Any) -> dict[str, Any]:
    selector = {"matchLabels": {"app": "httpbin"}}
    return {
        "apiVersion": "extensions.istio.io/v1alpha1",
        "kind": "WasmPlugin",
        "metadata": {"name": name},
        "spec": {"selector": selector, "url": url, **spec},
    }


def adds(text: str) -> dict[str, str]:
    """A script that writes down that it was here."""
    return {
        "inlineCode": f"""
function envoy_on_request(handle)
  local before = handle:headers():get("x-order") or ""
  handle:headers():replace("x-order", before .. "{text}")
end
function envoy_on_response(handle)
  handle:headers():add("x-{text}", "seen")
end
"""
    }


def everywhere(mesh: TaskMesh, name: str, value: str) -> bool:
    """Every instance of the service saw a header."""
    answers = [mesh.get(URL) for _ in range(8)]
    return all(a.status == 200 and a.seen.get(name) == value for a in answers)


def refused(mesh: TaskMesh, status: int) -> bool:
    """Every instance answers with a status."""
    return all(mesh.get(URL).status == status for _ in range(8))


def test_scripts_in_their_phases_and_by_priority(task_mesh: TaskMesh, config: Config) -> None:
    config.apply(
        [
            extension("last", lua=adds("e")),
            extension("stats", phase="STATS", lua=adds("d")),
            extension("authz", phase="AUTHZ", lua=adds("c")),
            extension("authn-low", phase="AUTHN", priority=1, lua=adds("b")),
            extension("authn-high", phase="AUTHN", priority=10, lua=adds("a")),
        ]
    )
    until(lambda: everywhere(task_mesh, "x-order", "abcde"), "all five, in order")
    assert task_mesh.get(URL).headers["x-e"] == "seen"
    assert "x-order" not in task_mesh.get("http://echo:8000/").seen, "others are not selected"
    changed = extension("last", lua=adds("z"))
    config.apply([changed])
    assert task_mesh.get(URL).seen["x-order"] == "abcdz", "ECDS: no listener is drained"


def test_traffic_that_a_script_sees(task_mesh: TaskMesh, config: Config) -> None:
    client = {"selector": {"matchLabels": {"app": "curl"}}}
    config.apply(
        [
            extension("server", match=[{"mode": "SERVER"}], lua=adds("s")),
            extension("client", **client, match=[{"mode": "CLIENT"}], lua=adds("c")),
            extension("other-side", **client, match=[{"mode": "SERVER"}], lua=adds("no")),
            extension("port", **client, match=[{"ports": [{"number": 8000}]}], lua=adds("p")),
            extension("no-port", **client, match=[{"ports": [{"number": 81}]}], lua=adds("q")),
        ]
    )
    until(lambda: everywhere(task_mesh, "x-order", "cps"), "client, then server")
    assert task_mesh.get(URL, client="default/sleep-0").seen["x-order"] == "s"


def test_a_script_of_a_gateway_that_answers_itself(task_mesh: TaskMesh, config: Config) -> None:
    code = """
function envoy_on_request(handle)
  handle:respond({[":status"] = "418"}, "teapot")
end
"""
    teapot = extension("teapot", lua={"inlineCode": code})
    teapot["metadata"]["namespace"] = "istio-system"
    teapot["spec"]["selector"] = {"matchLabels": {"istio": "ingressgateway"}}
    config.apply([teapot])
    config.apply("""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: entry}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: entry}
spec:
  hosts: ["*"]
  gateways: [entry]
  http: [{route: [{destination: {host: httpbin, port: {number: 8000}}}]}]
""")
    until(lambda: task_mesh.ingress("http://a.example.com/").status == 418, "it answers")
    config.delete("TrafficExtension", "teapot", "istio-system")
    until(lambda: task_mesh.ingress("http://a.example.com/").status == 200, "it is gone")


def test_a_module_is_fetched_once_and_runs(
    task_mesh: TaskMesh, config: Config, files: Files
) -> None:
    digest = hashlib.sha256(MODULE).hexdigest()
    config.apply([plugin("tiny", files.url, sha256=digest, pluginConfig={"a": 1})])
    until(lambda: everywhere(task_mesh, "x-wasm", "yes"), "the module runs")
    assert files.asked == 1
    files.status = 404
    config.apply([plugin("tiny", files.url, sha256=digest, pluginConfig={"a": 2})])
    assert everywhere(task_mesh, "x-wasm", "yes"), "what was fetched once is there"
    assert files.asked == 1
    config.delete("WasmPlugin", "tiny")
    until(lambda: "x-wasm" not in task_mesh.get(URL).seen, "it is gone")


@pytest.mark.parametrize(
    ("strategy", "status"), [("FAIL_CLOSE", 403), ("FAIL_OPEN", 200), ("FAIL_RELOAD", 403)]
)
def test_a_module_that_cannot_be_had(
    task_mesh: TaskMesh, config: Config, files: Files, strategy: str, status: int
) -> None:
    files.status = 500
    config.apply([plugin("tiny", files.url, failStrategy=strategy)])
    until(lambda: files.asked > 0, "it was asked for")
    until(lambda: refused(task_mesh, status), "it is stood in for")
    files.status = 200

    until(lambda: everywhere(task_mesh, "x-wasm", "yes"), "it is tried again")


def test_what_is_no_module_or_another_one_is_refused(
    task_mesh: TaskMesh, config: Config, files: Files
) -> None:
    files.content = b"<html>"
    config.apply([plugin("tiny", files.url)])
    until(lambda: refused(task_mesh, 403), "nothing gets by")
    config.clear()
    files.content = MODULE
    config.apply([plugin("tiny", files.url, sha256="0" * 64)])
    until(lambda: refused(task_mesh, 403), "nothing gets by")


def test_a_module_that_an_envoy_refuses_leaves_the_last_good_one(
    task_mesh: TaskMesh, config: Config, files: Files
) -> None:
    config.apply([plugin("tiny", files.url)])
    until(lambda: everywhere(task_mesh, "x-wasm", "yes"), "the module runs")
    other = Files()
    other.content = MODULE[:60]  # begins as a module does
    try:
        task_mesh.api.apply([plugin("tiny", other.url)])
        until(lambda: other.asked > 0, "it was fetched")
        until(lambda: task_mesh.get(URL).status in (200, 403, 500, 503), "an answer comes")
        assert task_mesh.get("http://echo:8000/").status == 200, "nobody else is hurt"
    finally:
        other.close()
