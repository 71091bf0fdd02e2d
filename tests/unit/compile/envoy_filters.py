"""EnvoyFilters, and what is compiled under them."""

from typing import Any

from meshes import (
    Rendered,
    Rows,
    config,
    endpoints,
    mesh_config,
    rows,
    service,
    sidecar,
)

MESH = rows(
    service("a", ("http", 80, "HTTP"), ("tcp", 5432, "TCP"), addresses=["10.96.0.1"]),
    endpoints("a", "10.0.0.1", ports={"http": 80, "tcp": 5432}),
    service("b", ("http", 80, "HTTP"), addresses=["10.96.0.2"]),
    mesh_config(),
)
LUA = {
    "name": "lua",
    "typedConfig": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
        "defaultSourceCode": {"inlineString": "function envoy_on_request(handle) end"},
    },
}
HCM = "envoy.filters.network.http_connection_manager"
Changes = dict[str, Any]


def patch(
    apply_to: str, operation: str, value: Changes | None = None, **match: Any
) -> dict[str, Any]:
    out: dict[str, Any] = {"applyTo": apply_to, "patch": {"operation": operation}, "match": match}
    if value is not None:
        out["patch"]["value"] = value
    return out


def envoy_filter(
    *patches: Changes, name: str = "f", namespace: str = "default", **spec: Any
) -> Rows:
    return config("EnvoyFilter", name, {"configPatches": list(patches), **spec}, namespace)


def followed(*filters: Rows, **proxy: Any) -> Rendered:
    return Rendered(rows(MESH, *filters), sidecar("a", **proxy))


def http_filters(listener: Changes) -> list[str]:
    for chain in listener["filterChains"]:
        for item in chain["filters"]:
            if item["name"] == HCM:
                return [f["name"] for f in item["typedConfig"]["httpFilters"]]
    raise AssertionError("no connection manager")


def at(name: str, **inner: Any) -> Changes:
    chain = {"filter": {"name": HCM, "subFilter": {"name": name}}}
    return {"filterChain": chain, **inner}


def findings(found: Rendered) -> dict[str, str]:
    return {f.path: f.message for f in found.snapshot.findings}


def chain_names(listener: Changes, filter_name: str) -> list[str]:
    return [
        chain.get("name", "")
        for chain in listener["filterChains"]
        if any(item["name"] == filter_name for item in chain["filters"])
    ]


NETWORK = {
    "name": "mine",
    "typedConfig": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3."
        "ConnectionLimit",
        "statPrefix": "mine",
        "maxConnections": "9",
    },
}
