"""Calls that walk through what `compile` gives: `walk/<case>.yaml`.

```yaml
meshConfig: {...}
scenarios:
- name: what it shows
  proxy: {type, name, ...}     # as P.json; left out: a sidecar `app-0` of `default`
  meshConfig: {...}
  documents: [...]             # Kubernetes documents, or text with several
  calls:
  - [CALL, EXPECTED]
  endpoints: {CLUSTER: {"ADDRESS:PORT": WEIGHT}}
  findings: [part of one]
```
A call is that of `walker.Call`; what is expected is the fields of `walker.Met` that matter, `error`
among them: without it there must be none. Every `compile` is asked twice with the documents the
other way round, for order must not matter.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from walker import Call, Met, walk

from meshbus.compile.offline import compile_documents

FOLDER = Path(__file__).parent / "walk"
SIDECAR = {
    "type": "sidecar",
    "name": "app-0",
    "namespace": "default",
    "labels": {"app": "app"},
    "ips": ["1.1.1.1"],
}
ROUTER = {
    "type": "router",
    "name": "gateway-0",
    "namespace": "istio-system",
    "labels": {"istio": "ingressgateway"},
    "ips": ["1.1.1.1"],
}


def scenarios() -> list[Any]:
    return [
        pytest.param(scenario, id=f"{path.stem}: {scenario['name']}")
        for path in sorted(FOLDER.glob("*.yaml"))
        for scenario in yaml.safe_load(path.read_text())
    ]


def documents_of(scenario: dict[str, Any]) -> list[dict[str, Any]]:
    held = scenario["documents"]
    return list(yaml.safe_load_all(held)) if isinstance(held, str) else held


def proxy_of(scenario: dict[str, Any]) -> dict[str, Any]:
    held = scenario.get("proxy", "sidecar")
    if held == "sidecar":
        return SIDECAR
    return ROUTER if held == "router" else {**SIDECAR, **held}


def told(met: Met, wanted: dict[str, Any]) -> dict[str, Any]:
    """What was met, of the fields that are expected."""
    fields = {"error", *wanted}
    found = {name: getattr(met, name) for name in fields}
    if "clusters" in found:
        found["clusters"] = dict(found["clusters"])
    return {name: value for name, value in found.items() if value or name in wanted}


def endpoints_of(document: dict[str, Any], cluster: str) -> dict[str, int]:
    """Addresses of a cluster, with their weights."""
    found = {}
    held = next((e for e in document["endpoints"] if e["clusterName"] == cluster), {})
    for group in held.get("endpoints", ()):
        for member in group["lbEndpoints"]:
            socket = member["endpoint"]["address"]["socketAddress"]
            where = f"{socket['address']}:{socket['portValue']}"
            found[where] = found.get(where, 0) + member["loadBalancingWeight"]
    return found


@pytest.mark.parametrize("scenario", scenarios())
def test_walk(scenario: dict[str, Any]) -> None:
    documents, proxy = documents_of(scenario), proxy_of(scenario)
    mesh = scenario.get("meshConfig")
    made = compile_documents(documents, proxy=proxy, mesh_config=mesh)
    turned = compile_documents(documents[::-1], proxy=proxy, mesh_config=mesh)
    assert made.document == turned.document
    router = proxy["type"] == "router"
    wrong = []
    for call, wanted in scenario.get("calls", ()):
        described = Call(**{"gateway": router, **call})
        found = told(walk(made.document, described), wanted)
        if found != wanted:
            wrong.append(f"{call}\n  wanted {wanted}\n  met    {found}")
    assert not wrong, "\n".join(wrong)
    for cluster, wanted in scenario.get("endpoints", {}).items():
        assert endpoints_of(made.document, cluster) == wanted, cluster
    for wanted in scenario.get("findings", ()):
        assert any(wanted in f"{f['object']} {f['path']}: {f['message']}" for f in made.findings), (
            f"no finding {wanted!r} in {made.findings}"
        )
