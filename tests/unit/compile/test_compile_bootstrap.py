"""EnvoyFilters of bootstraps: whose, in which order, what is told; and the gateway's side of it."""

from typing import Any

from meshes import Rendered, config, mesh_config, rows, sidecar
from meshes import compiled as snapshot_of

from meshbus.compile.bootstrap_patches import (
    MARK,
    NO_PATCHES,
    bootstrap_mark,
    bootstrap_patches,
    patched_bootstrap,
)

DOCUMENT: dict[str, Any] = {
    "node": {"id": "sidecar~1.1.1.1~a.default~x", "metadata": {"NAME": "a"}},
    "dynamic_resources": {"lds_config": {"ads": {}, "initial_fetch_timeout": "0s"}},
    "layered_runtime": {"layers": [{"name": "static", "static_layer": {"a:b": False}}]},
}
TAG = {"statsConfig": {"statsTags": [{"tagName": "mine", "fixedValue": "yes"}]}}


def patch(
    value: dict[str, Any], operation: str = "MERGE", context: str = "ANY", **spec: Any
) -> dict[str, Any]:
    one = {
        "applyTo": "BOOTSTRAP",
        "match": {"context": context},
        "patch": {"operation": operation, "value": value},
    }
    return {"configPatches": [one], **spec}


def started(*filters: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    found = bootstrap_patches(rows(*filters).items(), sidecar("a"), "istio-system")
    document, findings = patched_bootstrap(DOCUMENT, found)
    return document, {f.path: f.message for f in findings}


def test_a_bootstrap_without_patches_stays_as_it_is() -> None:
    other = patch(TAG, workloadSelector={"labels": {"app": "other"}})
    gateways = patch(TAG, context="GATEWAY")
    document, told = started(
        config("EnvoyFilter", "other", other),
        config("EnvoyFilter", "gateways", gateways),
        config("EnvoyFilter", "elsewhere", patch(TAG), "elsewhere"),
    )
    assert document == DOCUMENT
    assert told == {}


def test_patches_are_merged_and_marked() -> None:
    layer = {"layeredRuntime": {"layers": [{"name": "own", "staticLayer": {"x": 1}}]}}
    document, told = started(
        config("EnvoyFilter", "own", patch(TAG)),
        config("EnvoyFilter", "root", patch(layer), "istio-system"),
    )
    assert told == {}
    assert document["stats_config"]["stats_tags"] == [{"tag_name": "mine", "fixed_value": "yes"}]
    assert [one["name"] for one in document["layered_runtime"]["layers"]] == ["static", "own"]
    assert document["dynamic_resources"]["lds_config"]["initial_fetch_timeout"] == "0s"
    assert document["layered_runtime"]["layers"][0]["static_layer"] == {"a:b": False}
    assert document["node"]["metadata"]["NAME"] == "a"
    assert document["node"]["metadata"][MARK] not in ("", NO_PATCHES)


def test_later_patches_go_over_earlier_ones_and_bad_ones_are_told() -> None:
    def cluster(name: str) -> dict[str, Any]:
        return {"clusterManager": {"localClusterName": name}}

    document, told = started(
        config("EnvoyFilter", "late", patch(cluster("late"), priority=5)),
        config("EnvoyFilter", "early", patch(cluster("early"), priority=-5)),
        config("EnvoyFilter", "bad", patch({"noSuchField": 1})),
    )
    assert document["cluster_manager"]["local_cluster_name"] == "late"
    assert list(told) == ["spec.configPatches[0].patch.value"]
    _, told = started(config("EnvoyFilter", "add", patch(TAG, "ADD")))
    assert told == {"spec.configPatches[0].patch.operation": "ADD is not for a BOOTSTRAP"}


def test_the_gateway_tells_what_waits_for_the_next_start() -> None:
    held = config("EnvoyFilter", "own", patch(TAG))
    mark = bootstrap_mark(bootstrap_patches(held.items(), sidecar("a"), "istio-system"))
    world = rows(mesh_config(), held)

    def told(*metadata: tuple[str, str]) -> dict[str, str]:
        found = snapshot_of(world, sidecar("a", metadata=metadata))
        return {f.path: f.message for f in found.findings}

    assert told((MARK, mark)) == {}
    waits = {"spec.configPatches[0].patch": "takes effect when the proxy starts again"}
    assert told((MARK, NO_PATCHES)) == waits
    assert told((MARK, "other")) == waits
    assert told() == {}, "nobody has started it yet"


def test_resources_are_not_touched() -> None:
    world = mesh_config()
    plain = Rendered(world, sidecar("a")).snapshot.resources
    held = rows(world, config("EnvoyFilter", "own", patch(TAG)))
    assert Rendered(held, sidecar("a")).snapshot.resources == plain
