"""Limits of connections in what proxies start with: of the whole proxy, and of its listeners."""

import json
from typing import Any

import pytest

from meshbus.compile.own_proxy_config import own_fields
from meshbus.inject import Injector, Owner
from meshbus.inject.ads import CONNECTIONS
from meshbus.inject.bootstrap import BOOTSTRAP_FILE, UNLIMITED_FILE, bootstrap_files
from meshbus.inject.reports import Reporter
from meshbus.local.bootstrap import ProxyIdentity, envoy_bootstrap
from meshbus.local.proxy_start import start_of

OWNER = Owner("apps/v1", "Deployment", "web", "shop")
LISTENERS = {
    "name": "listener-limits",
    "rtds_layer": {
        "name": "listener-limits",
        "rtds_config": {"ads": {}, "resource_api_version": "V3"},
    },
}


def arguments(mesh: dict[str, Any], own: str = "") -> list[str]:
    notes = {"proxy.istio.io/config": own} if own else {}
    pod = {
        "metadata": {"labels": {"app": "web"}, "annotations": notes},
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    }
    spec = Injector({}, {"defaultConfig": mesh}).inject(pod, OWNER).pod["spec"]
    proxies = [*spec.get("initContainers", []), *spec["containers"]]
    args: list[str] = next(c["args"] for c in proxies if c["name"] == "istio-proxy")
    return args


def document(args: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(args[args.index("--config-yaml") + 1])
    return found


def limit_of(bootstrap: dict[str, Any]) -> int:
    (monitor,) = bootstrap["overload_manager"]["resource_monitors"]
    found: int = monitor["typed_config"]["max_active_downstream_connections"]
    return found


def machine(given: dict[str, Any]) -> dict[str, Any]:
    """The bootstrap of a process of this machine."""
    identity = ProxyIdentity("sidecar", "a-0", "default", "a", "a", ["127.0.0.2"], {}, "c")
    start = start_of(given, Reporter("127.0.0.2", "default", in_pod=False))
    return envoy_bootstrap(identity, ("127.0.0.1", 1), "xds", "/x", start)


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ({}, None),
        ({"connectionSettings": {"profile": "EDGE"}}, None),
        ({"connectionSettings": {"globalDownstreamConnectionLimit": 7}}, 7),
        ({"proxyMetadata": {"ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": "8"}}, 8),
        ({"runtimeValues": {"overload.global_downstream_max_connections": "9"}}, 9),
        (
            {
                "connectionSettings": {"globalDownstreamConnectionLimit": 7},
                "proxyMetadata": {"ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": "8"},
                "runtimeValues": {"overload.global_downstream_max_connections": "9"},
            },
            7,
        ),
        (
            {
                "proxyMetadata": {"ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": "many"},
                "runtimeValues": {"overload.global_downstream_max_connections": "9"},
            },
            9,
        ),
    ],
)
def test_a_proxy_takes_as_many_connections_as_is_said(
    given: dict[str, Any], limit: int | None
) -> None:
    files = bootstrap_files()
    args = arguments(given)
    shared = files[args[args.index("-c") + 1].rpartition("/")[2]]
    # Envoy adds the lists of both: one of them has a limit.
    both = [json.loads(shared), document(args)]
    (limited,) = (part for part in both if "overload_manager" in part)
    assert limit_of(limited) == (limit or CONNECTIONS)
    assert limit_of(machine(given)) == (limit or CONNECTIONS)


def test_the_two_shared_files_differ_in_the_limit_alone() -> None:
    files = {name: json.loads(text) for name, text in bootstrap_files().items()}
    limited = files[BOOTSTRAP_FILE]
    assert limited.pop("overload_manager")
    assert limited == files[UNLIMITED_FILE]


def test_who_has_limited_listeners_asks_for_their_limits() -> None:
    given = {"connectionSettings": {"listenerConnectionLimit": 5}, "runtimeValues": {"a": "1"}}
    own = {"name": "own", "static_layer": {"a": "1"}}
    assert document(arguments(given))["layered_runtime"]["layers"] == [LISTENERS, own]
    assert machine(given)["layered_runtime"]["layers"][1:] == [LISTENERS, own]
    assert "layered_runtime" not in document(arguments({"connectionSettings": {}}))


def test_settings_of_a_pod_stand_in_place_of_the_meshs() -> None:
    mesh = {
        "connectionSettings": {"globalDownstreamConnectionLimit": 7, "listenerConnectionLimit": 5}
    }
    own = "connectionSettings: {globalDownstreamConnectionLimit: 6}"
    found = document(arguments(mesh, own))
    assert limit_of(found) == 6
    assert "layered_runtime" not in found
    other = document(arguments(mesh, "connectionSettings: {profile: EDGE}"))
    assert "overload_manager" not in other


def test_names_of_fields_may_be_those_of_proto() -> None:
    own = """
connection_settings: {global_downstream_connection_limit: 6}
proxy_metadata: {MY_NAME: kept}
"""
    assert limit_of(document(arguments({}, own))) == 6
    assert own_fields(own) == {
        "connectionSettings": {"globalDownstreamConnectionLimit": 6},
        "proxyMetadata": {"MY_NAME": "kept"},
    }
    assert limit_of(machine(own_fields(own))) == 6
    tags = "tracing: {custom_tags: {a_b: {header: {default_value: x}}}}"
    (named,) = own_fields(tags)["tracing"]["customTags"]
    assert named == "a_b"
    assert own_fields("tracing: [") == own_fields("text") == own_fields("") == {}
