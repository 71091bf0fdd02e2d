"""`meshbus validate`, `analyze` and `compile`: what they print and how they exit."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from meshbus.cli.analyze import analyze
from meshbus.cli.compile import compile_command
from meshbus.cli.validate import validate

APP = typer.Typer()
APP.command("validate")(validate)
APP.command("analyze")(analyze)
APP.command("compile")(compile_command)

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080}]
---
apiVersion: standalone.meshbus.io/v1alpha1
kind: Workload
metadata: {name: reviews-v1, labels: {app: reviews, version: v1}}
spec:
  command: [python3, -m, reviews]
  ports: [{name: http, port: 9080}]
"""
ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews}}]
"""


def run(*args: str) -> Any:
    return CliRunner().invoke(APP, list(args))


def write(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_validate_answers_for_every_document(tmp_path: Path) -> None:
    bad = ROUTE.replace("host: reviews", "hots: reviews").replace("{name: reviews}", "{name: bad}")
    path = write(tmp_path, "a.yaml", f"{ROUTE}---\n{bad}---\n: [\n---\nkind: Foo\napiVersion: v1\n")
    result = run("validate", "-f", path, "-o", "json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert [(r["index"], r["kind"], r["name"], r["valid"]) for r in answer["results"]] == [
        (0, "VirtualService", "reviews", True),
        (1, "VirtualService", "bad", False),
        (2, "", "", False),
        (3, "Foo", "", False),
    ]
    first = answer["results"][1]
    assert first["namespace"] == "default"
    assert first["errors"][0] == {
        "path": "spec.http[0].route[0].destination.hots",
        "code": "Unknown",
        "message": "unknown field 'hots' (did you mean 'host'?)",
        "line": 17,
    }
    assert answer["results"][2]["errors"][0]["code"] == "Malformed"


LISTED = """\
apiVersion: v1
kind: List
items:
- apiVersion: networking.istio.io/v1
  kind: VirtualService
  metadata:
    name: one
  spec: &spec
    hosts:
    - reviews
    - a_b
    http:
    - route:
      - destination:
          host: reviews
        weight: many
- apiVersion: networking.istio.io/v1
  kind: VirtualService
  metadata:
    name: two
  spec: *spec
---
{"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
	"metadata": {"name": "three", "labels": {
		"a b": "c"}},
	"spec": {
		"hosts": ["reviews"]}}
"""


def test_validate_names_the_line_of_each_field(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", LISTED)
    results = json.loads(run("validate", "-f", path, "-o", "json").stdout)["results"]
    said = [[(e["path"], e["line"]) for e in result["errors"]] for result in results]
    assert ("spec.http[0].route[0].weight", 16) in said[0]
    # Where an anchor is meant, what is wrong stands at the anchor.
    assert said[1] == said[0]
    assert ("metadata.labels[a b]", 25) in said[2]
    text = run("validate", "-f", path).stdout
    assert f"  error: {path}:16: spec.http[0].route[0].weight: must be an integer" in text


def test_validate_exits_0_when_all_is_valid(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", ROUTE)
    write(tmp_path, "b.yaml", SERVICE)
    result = run("validate", "-f", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "3 documents, 0 invalid" in result.stdout


def test_what_is_not_carried_out_is_a_warning(tmp_path: Path) -> None:
    sidecar = """
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default}
spec: {outboundTrafficPolicy: {mode: ALLOW_ANY, tls: {mode: SIMPLE}}}
"""
    result = run("validate", "-f", write(tmp_path, "a.yaml", sidecar), "-o", "json")
    assert result.exit_code == 0
    warnings = json.loads(result.stdout)["results"][0]["warnings"]
    assert [w["code"] for w in warnings] == ["Unsupported"]


@pytest.mark.parametrize("args", [["validate"], ["validate", "-f", "/no/such/file"], ["compile"]])
def test_wrong_use_exits_2(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stderr


def test_compile_prints_the_resources_of_a_workload(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", f"{SERVICE}---\n{ROUTE}")
    result = run("compile", "-f", path, "--workload", "default/reviews-v1", "-o", "json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert set(answer) == {"listeners", "routes", "clusters", "endpoints", "extensions", "secrets"}
    names = [cluster["name"] for cluster in answer["clusters"]]
    assert "outbound|9080||reviews.default.svc.cluster.local" in names


def test_compile_refuses_what_is_invalid(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", ROUTE.replace("hosts: [reviews]", "hosts: ['*']"))
    result = run("compile", "-f", path, "--workload", "default/x")
    assert result.exit_code == 1
    assert "spec.hosts[0]" in result.stderr
    assert not result.stdout


def test_compile_of_a_workload_that_is_not_there(tmp_path: Path) -> None:
    result = run("compile", "-f", write(tmp_path, "a.yaml", SERVICE), "--workload", "default/none")
    assert result.exit_code == 1
    assert "no workload default/none" in result.stderr


def test_they_start_without_what_they_do_not_need(tmp_path: Path) -> None:
    """No gRPC, NATS or HTTP client is loaded: answers come within a second."""
    path = write(tmp_path, "a.yaml", f"{SERVICE}---\n{ROUTE}")
    program = (
        "import sys, typer\n"
        "from meshbus.cli.validate import validate\n"
        "from meshbus.cli.compile import compile_command\n"
        "app = typer.Typer(); app.command('validate')(validate)\n"
        "app.command('compile')(compile_command)\n"
        "try:\n    app(sys.argv[1:])\n"
        "finally:\n"
        "    print([m for m in ('grpc', 'nats', 'httpx') if m in sys.modules], file=sys.stderr)\n"
    )
    for args in (
        ["validate", "-f", path],
        ["compile", "-f", path, "--workload", "default/reviews-v1"],
    ):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program, *args], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip().endswith("[]"), done.stderr
        assert time.monotonic() - began < 10


def test_analyze_says_what_is_wrong_with_documents_together(tmp_path: Path) -> None:
    good = write(tmp_path, "a.yaml", f"{SERVICE}---{ROUTE}")
    result = run("analyze", good, "-o", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"messages": []}
    lost = ROUTE.replace("host: reviews", "host: review")
    bad = write(tmp_path, "b.yaml", f"{SERVICE}---{lost}")
    result = run("analyze", bad, "--use-kube=false", "-o", "json")
    assert result.exit_code == 1
    (said,) = json.loads(result.stdout)["messages"]
    assert "'review'" in said.pop("message")
    assert said == {
        "code": "IST0101",
        "level": "Error",
        "object": "VirtualService default/reviews",
        "file": bad,
        "line": 22,
    }
    text = run("analyze", bad)
    assert text.exit_code == 1
    assert f"Error [IST0101] (VirtualService default/reviews {bad}:22)" in text.stdout


def test_analyze_takes_what_validation_says_of_each(tmp_path: Path) -> None:
    rules = "  - route: [{destination: {host: reviews}}]\n"
    twice = ROUTE + rules
    wrong = ROUTE.replace("hosts: [reviews]", "hosts: [a_b]").replace("{name: rev", "{name: a-rev")
    path = write(tmp_path, "a.yaml", f"{SERVICE}---{twice}---{wrong}")
    said = json.loads(run("analyze", path, "-o", "json").stdout)["messages"]
    assert [(m["code"], m["object"]) for m in said] == [
        ("IST0106", "VirtualService default/a-reviews"),
        ("IST0130", "VirtualService default/reviews"),
    ]
    assert said[0]["message"].startswith("spec.hosts[0]: ")


def test_analyze_reads_the_mesh_config(tmp_path: Path) -> None:
    gateway = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
"""
    path = write(tmp_path, "a.yaml", gateway)
    mesh = write(tmp_path, "mesh.yaml", 'ingressControllerMode: "OFF"\n')
    assert json.loads(run("analyze", path, "-o", "json").stdout) == {"messages": []}
    said = json.loads(run("analyze", path, "--mesh-config", mesh, "-o", "json").stdout)
    assert [m["code"] for m in said["messages"]] == ["IST0101"]


def test_analyze_asks_one_analyzer_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", ROUTE.replace("hosts:", "gateways: [gone]\n  hosts:"))

    def codes(*options: str) -> list[str]:
        found = json.loads(run("analyze", path, "-o", "json", *options).stdout)
        return [message["code"] for message in found["messages"]]

    assert codes() == ["IST0101", "IST0101", "IST0132"]
    assert codes("--analyzer", "virtualservice.GatewayAnalyzer") == ["IST0101", "IST0132"]
    assert codes("--analyzer", "schema.ValidationAnalyzer") == []
    assert run("analyze", path, "--analyzer", "gone").exit_code == 2
    listed = run("analyze", "-L")
    assert listed.exit_code == 0
    assert "virtualservice.GatewayAnalyzer\n" in listed.stdout
    assert run("analyze").exit_code == 2


def test_analyze_ends_with_2_where_it_cannot_look(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", ROUTE)
    away = run("analyze", path, "--use-kube=true", "--home", str(tmp_path))
    assert away.exit_code == 2
    assert "no mesh runs in" in away.stderr
    assert run("analyze", path, "--use-kube=perhaps").exit_code == 2
    assert run("analyze", path, "--use-kube=false", "--home", str(tmp_path)).exit_code == 1
    assert run("analyze", str(tmp_path / "none.yaml")).exit_code == 2
    assert run("analyze", write(tmp_path, "b.yaml", "a: [\n")).exit_code == 2
