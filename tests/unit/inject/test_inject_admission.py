"""The webhook's part of injection: paths, patches, and pods as an API server sends them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshbus.inject import InjectionError, Injector
from meshbus.inject.admission import admit_pod, json_patch, path_variables
from meshbus.model.rows import ConfigObject

TABLES = Path(__file__).parents[3].parent / "shared" / "data" / "tables" / "scalars.json"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text("a/~", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("a/~", max_size=2), inner, max_size=3)
    ),
)


def applied(document: Any, patch: list[dict[str, Any]]) -> Any:
    """RFC 6902, as far as it is used."""
    holder = {"": copy.deepcopy(document)}
    for operation in patch:
        steps = [s.replace("~1", "/").replace("~0", "~") for s in operation["path"].split("/")]
        place: Any = holder
        for step in steps[:-1]:
            place = place[int(step)] if isinstance(place, list) else place[step]
        last: Any = int(steps[-1]) if isinstance(place, list) else steps[-1]
        if operation["op"] == "remove":
            del place[last]
        else:
            place[last] = operation["value"]
    return holder[""]


@given(VALUES, VALUES)
@example([False, True, True], [False, True, 1])
def test_patch_turns_one_into_the_other(before: Any, after: Any) -> None:
    assert json.dumps(applied(before, json_patch(before, after)), sort_keys=True) == json.dumps(
        after, sort_keys=True
    )
    assert json_patch(after, copy.deepcopy(after)) == []


@pytest.mark.skipif(not TABLES.is_file(), reason="the data of others is not here")
def test_paths_of_a_peers_table() -> None:
    table = json.loads(TABLES.read_text())["pkg/kube/inject/webhook_test.go::TestParseInjectEnvs"]
    for case in table:
        if isinstance(case["in"], str):
            assert path_variables(case["in"]) == case["want"], case["name"]


@pytest.mark.skipif(not TABLES.is_file(), reason="the data of others is not here")
def test_annotations_of_a_peers_table() -> None:
    table = json.loads(TABLES.read_text())[
        "pkg/kube/inject/validate_test.go::TestValidateAnnotations"
    ]
    for case in table:
        written = pod(annotations=case["annotations"])
        if case["wantErr"]:
            with pytest.raises(InjectionError):
                admit_pod(Injector({}), written, "a")
        else:
            assert admit_pod(Injector({}), written, "a").patch, case["name"]


def pod(**metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "web-7d4b-",
            "labels": {"app": "web", "pod-template-hash": "7d4b"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d4b",
                 "controller": True}
            ],
            **metadata,
        },
        "spec": {"containers": [{"name": "web", "image": "web"}]},
        "status": {},
    }  # fmt: skip


def proxy(admitted: dict[str, Any]) -> dict[str, str]:
    container = next(c for c in admitted["spec"]["initContainers"] if c["name"] == "istio-proxy")
    return {item["name"]: item.get("value", "") for item in container["env"]}


def test_a_pod_of_a_deployment_is_its() -> None:
    path = "/inject/cluster/east/net/n1/custom/x"
    admission = admit_pod(Injector({}), pod(), "shop", path=path)
    admitted = applied(pod(), admission.patch)
    variables = proxy(admitted)
    assert variables["ISTIO_META_OWNER"] == (
        "kubernetes://apis/apps/v1/namespaces/shop/deployments/web"
    )
    assert variables["ISTIO_META_CLUSTER_ID"] == "east"
    assert variables["ISTIO_META_NETWORK"] == "n1"
    assert variables["CUSTOM"] == "x"
    assert admitted["metadata"]["labels"]["topology.istio.io/network"] == "n1"
    again = admit_pod(Injector({}), admitted, "shop", path=path)
    assert again.patch == [], "done again, nothing changes"


def test_a_pod_that_asks_for_none_gets_none() -> None:
    admission = admit_pod(
        Injector({}), pod(annotations={"sidecar.istio.io/inject": "false"}), "shop"
    )
    assert admission.patch == []
    assert "disabled" in admission.reason


@pytest.mark.parametrize("broken", [{}, {"spec": []}, {"spec": {"containers": [1]}}])
def test_what_is_no_pod_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(InjectionError):
        admit_pod(Injector({}), broken, "shop")


def test_envoy_filters_patch_the_bootstrap_of_the_pods_they_select() -> None:
    def envoy_filter(labels: dict[str, str], value: dict[str, Any]) -> ConfigObject:
        patch = {"applyTo": "BOOTSTRAP", "patch": {"operation": "MERGE", "value": value}}
        spec = {"workloadSelector": {"labels": labels}, "configPatches": [patch]}
        return ConfigObject(
            "networking.istio.io/v1alpha3", "EnvoyFilter", "shop", "tags", "uid", 1, 0.0, spec=spec
        )

    pod = {
        "metadata": {"name": "cart", "labels": {"app": "cart"}},
        "spec": {"containers": [{"name": "cart", "image": "cart"}]},
    }

    def bootstrap(*filters: ConfigObject) -> tuple[dict[str, Any], list[str]]:
        admission = admit_pod(Injector({}), pod, "shop", envoy_filters=filters)
        spec = applied(pod, admission.patch)["spec"]
        proxies = [
            c for c in (*spec["initContainers"], *spec["containers"]) if "proxy" in c["name"]
        ]
        args = proxies[0]["args"]
        return json.loads(args[args.index("--config-yaml") + 1]), admission.warnings

    plain, _ = bootstrap()
    other, _ = bootstrap(envoy_filter({"app": "other"}, {"statsFlushInterval": "9s"}))
    assert other == plain
    chosen, warnings = bootstrap(envoy_filter({"app": "cart"}, {"statsFlushInterval": "9s"}))
    assert chosen["stats_flush_interval"] == "9s"
    assert chosen["node"]["id"] == plain["node"]["id"]
    assert "$(POD_NAME)" in chosen["node"]["id"]
    assert warnings == []
    bad, warnings = bootstrap(envoy_filter({"app": "cart"}, {"noSuchField": 1}))
    assert "stats_flush_interval" not in bad
    assert "EnvoyFilter shop/tags: spec.configPatches[0].patch.value" in warnings[0]


def test_tracing_of_one_pod_is_warned_of() -> None:
    pod = {
        "metadata": {
            "name": "cart",
            "annotations": {"proxy.istio.io/config": "tracing: {sampling: 50}"},
        },
        "spec": {"containers": [{"name": "cart", "image": "cart"}]},
    }
    (warning,) = admit_pod(Injector({}), pod, "shop").warnings
    assert warning.startswith("metadata.annotations[proxy.istio.io/config].tracing: has no effect")
