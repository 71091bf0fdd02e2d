"""Fields of the mesh config that make the sidecar of a pod."""

import json
from typing import Any

import pytest

from meshbus.inject import Injector, Owner

OWNER = Owner("apps/v1", "Deployment", "web", "shop")


def pod(**notes: str) -> dict[str, Any]:
    ports = [{"name": "http", "containerPort": 8080}]
    return {
        "metadata": {"labels": {"app": "web"}, "annotations": notes},
        "spec": {"containers": [{"name": "web", "image": "web", "ports": ports}]},
    }


def injected(mesh: dict[str, Any], **notes: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod and its proxy."""
    found = Injector({}, mesh).inject(pod(**notes), OWNER).pod
    spec = found["spec"]
    proxies = [*spec.get("initContainers", []), *spec["containers"]]
    return found, next(c for c in proxies if c["name"] == "istio-proxy")


def bootstrap(mesh: dict[str, Any], **notes: str) -> dict[str, Any]:
    args = injected(mesh, **notes)[1]["args"]
    document: dict[str, Any] = json.loads(args[args.index("--config-yaml") + 1])
    return document


def proxy(**config: Any) -> dict[str, Any]:
    return {"defaultConfig": config}


def test_the_program_and_its_ends() -> None:
    _, plain = injected({})
    _, own = injected(proxy(binaryPath="/opt/envoy", drainDuration="7s"))
    assert (plain["command"], own["command"]) == (["/usr/local/bin/envoy"], ["/opt/envoy"])
    args = own["args"]
    assert args[args.index("--drain-time-s") + 1] == "7"


def test_the_port_of_the_admin_interface() -> None:
    where = bootstrap(proxy(proxyAdminPort=16000))["admin"]["address"]["socket_address"]
    assert where == {"address": "127.0.0.1", "port_value": 16000}


def test_runtime_values_and_kept_statistics() -> None:
    assert "layered_runtime" not in bootstrap({})
    layers = bootstrap(proxy(runtimeValues={"a.b": "1"}))["layered_runtime"]["layers"]
    assert layers == [{"name": "own", "static_layer": {"a.b": "1"}}]
    kept = bootstrap(proxy(proxyStatsMatcher={"inclusionPrefixes": ["mine"]}))["stats_config"]
    assert {"prefix": "mine"} in kept["stats_matcher"]["inclusion_list"]["patterns"]


def test_variables_of_the_proxy_are_its_metadata() -> None:
    mesh = proxy(proxyMetadata={"ISTIO_META_MINE": "yes", "OTHER": "1"})
    _, container = injected(mesh)
    assert {"name": "OTHER", "value": "1"} in container["env"]
    assert bootstrap(mesh)["node"]["metadata"]["MINE"] == "yes"


@pytest.mark.parametrize("mode", ["REDIRECT", "NONE"])
def test_how_traffic_is_captured(mode: str) -> None:
    found, _ = injected(proxy(interceptionMode=mode))
    names = [c["name"] for c in found["spec"].get("initContainers", [])]
    assert ("istio-init" in names) is (mode == "REDIRECT")


def test_the_port_of_the_status() -> None:
    def ports(mesh: dict[str, Any]) -> set[int]:
        return {
            address["socket_address"]["port_value"]
            for one in bootstrap(mesh)["static_resources"]["listeners"]
            for address in (
                one["address"],
                *(a["address"] for a in one.get("additional_addresses", [])),
            )
            if "socket_address" in address
        }

    assert ports(proxy(statusPort=16020)) - ports({}) == {16020}


def test_the_application_waits() -> None:
    values = {"pilot": {"env": {"ENABLE_NATIVE_SIDECARS": "false"}}}

    def first(**config: Any) -> tuple[str, bool]:
        found = Injector(values, proxy(**config)).inject(pod(), OWNER).pod
        container = found["spec"]["containers"][0]
        return container["name"], "postStart" in container.get("lifecycle", {})

    assert first(holdApplicationUntilProxyStarts=True) == ("istio-proxy", True)
    assert first()[1] is False


def test_metrics_of_the_application_beside_those_of_the_proxy() -> None:
    notes = {"prometheus.io/scrape": "true", "prometheus.io/port": "9100"}
    merged, _ = injected({}, **notes)
    apart, _ = injected({"enablePrometheusMerge": False}, **notes)
    assert merged["metadata"]["annotations"]["prometheus.io/port"] == "15020"
    assert apart["metadata"]["annotations"]["prometheus.io/port"] == "9100"
