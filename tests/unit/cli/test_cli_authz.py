"""`meshbus authz`: what it prints and how it exits, without a mesh."""

import json
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from meshbus.cli.authz import authz

APP = typer.Typer()
APP.add_typer(authz, name="authz")

MANIFESTS = """
apiVersion: standalone.meshbus.io/v1alpha1
kind: Workload
metadata: {name: reviews-v1, namespace: books, labels: {app: reviews}}
spec: {address: 127.0.0.9, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: books}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: books}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/books/sa/page]}}]
    to: [{operation: {methods: [GET]}}]
    when: [{key: "request.headers[x-team]", values: [red]}]
"""


def run(tmp_path: Path, *args: str) -> Any:
    file = tmp_path / "m.yaml"
    file.write_text(MANIFESTS)
    return CliRunner().invoke(APP, ["authz", "check", "--offline", "-f", str(file), *args])


def test_check(tmp_path: Path) -> None:
    who = ("--from", "books/page", "--to", "books/reviews")
    allowed = run(tmp_path, *who, "--header", "x-team: red")
    assert allowed.exit_code == 0, allowed.output
    assert "ALLOW rule 0 of AuthorizationPolicy books/readers" in allowed.stdout
    denied = run(tmp_path, *who, "-H", "x-team=blue", "-o", "json")
    assert denied.exit_code == 1
    document = json.loads(denied.stdout)
    assert (document["outcome"], document["status"], document["rule"]) == ("denied", 403, None)


def test_wrong_use(tmp_path: Path) -> None:
    for args in (
        ("--to", "books/nothing"),
        ("--to", "books/reviews:http"),
        ("--to", "books/reviews", "--from", "page"),
        ("--to", "books/reviews", "--jwt-claims", "[]"),
        ("--to", "books/reviews", "--jwt-claims", "{"),
        ("--to", "books/reviews", "--header", "x"),
    ):
        result = run(tmp_path, *args)
        assert result.exit_code == 2, args
        assert "authz check" in result.stderr
