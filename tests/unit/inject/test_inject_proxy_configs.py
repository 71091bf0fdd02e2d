"""ProxyConfig objects: which concern a proxy, and what goes over what."""

from typing import Any

import pytest

from meshbus.inject import Injector
from meshbus.inject.proxy_configs import proxy_wishes
from meshbus.inject.workloads import owner_of_pod
from meshbus.model.rows import ConfigObject

ROOT = "istio-system"


def proxy_config(name: str, namespace: str, created: float = 0.0, **spec: Any) -> ConfigObject:
    return ConfigObject(
        api_version="networking.istio.io/v1beta1",
        kind="ProxyConfig",
        namespace=namespace,
        name=name,
        uid=name,
        generation=1,
        created=created,
        spec=spec,
    )


def chosen(**labels: str) -> dict[str, Any]:
    return {"matchLabels": labels}


MESH = proxy_config("mesh", ROOT, concurrency=1, environmentVariables={"A": "mesh", "M": "mesh"})
SPACE = proxy_config("space", "default", concurrency=2, environmentVariables={"A": "space"})
OWN = proxy_config("own", "default", selector=chosen(app="web"), concurrency=4)
ELSEWHERE = proxy_config("elsewhere", "other", concurrency=9)
IN_ROOT = proxy_config("gateways", ROOT, selector=chosen(app="web"), concurrency=7)
OBJECTS = [MESH, SPACE, OWN, ELSEWHERE, IN_ROOT]


@pytest.mark.parametrize(
    ("labels", "namespace", "own", "threads"),
    [
        ({"app": "web"}, "default", {}, 4),
        ({"app": "web"}, "default", {"concurrency": 3}, 4),
        ({"app": "db"}, "default", {}, 2),
        ({"app": "db"}, "default", {"concurrency": 3}, 3),
        ({"app": "web"}, "third", {}, 1),
        ({"app": "web"}, ROOT, {}, 7),
        ({"app": "db"}, ROOT, {}, 1),
    ],
)
def test_the_most_specific_wins(
    labels: dict[str, str], namespace: str, own: dict[str, Any], threads: int
) -> None:
    wishes = proxy_wishes(OBJECTS, labels, namespace, ROOT)
    assert wishes.over({"concurrency": 8}, own)["concurrency"] == threads


def test_variables_are_merged_one_by_one() -> None:
    wishes = proxy_wishes(OBJECTS, {"app": "web"}, "default", ROOT)
    default = {"proxyMetadata": {"A": "default", "D": "default"}}
    given = wishes.over(default, {"proxyMetadata": {"O": "own"}})
    expected = {"A": "space", "D": "default", "M": "mesh", "O": "own"}
    assert given["proxyMetadata"] == expected


def test_of_equals_the_older_counts_field_by_field() -> None:
    older = proxy_config("z", "default", 1.0, environmentVariables={"A": "older"})
    newer = proxy_config("a", "default", 2.0, concurrency=5, environmentVariables={"A": "newer"})
    given = proxy_wishes([newer, older], {}, "default", ROOT).over({}, {})
    assert given == {"concurrency": 5, "proxyMetadata": {"A": "older"}}


def test_a_pod_is_injected_accordingly() -> None:
    pod = {
        "metadata": {
            "name": "web",
            "labels": {"app": "web"},
            "annotations": {"proxy.istio.io/config": "concurrency: 3\nproxyMetadata: {O: own}"},
        },
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    }
    wishes = proxy_wishes(OBJECTS, {"app": "web"}, "default", ROOT)
    made = Injector({}).inject(pod, owner_of_pod(pod, "default"), wishes=wishes).pod
    everything = [*made["spec"]["containers"], *made["spec"]["initContainers"]]
    proxy = next(c for c in everything if c["name"] == "istio-proxy")
    assert proxy["args"][proxy["args"].index("--concurrency") + 1] == "4"
    variables = {v["name"]: v.get("value") for v in proxy["env"]}
    assert (variables["A"], variables["O"], variables["M"]) == ("space", "own", "mesh")
