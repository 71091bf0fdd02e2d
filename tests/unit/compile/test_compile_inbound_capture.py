"""How captured traffic comes in: redirected, or with the addresses that it has."""

import pytest
from meshes import bookinfo

from meshbus.compile.engine import Engine
from meshbus.compile.proxy import compile_proxy
from meshbus.compile.proxy_keys import proxy_of_json
from meshbus.compile.render import render_snapshot
from meshbus.model.world import world_of


@pytest.mark.parametrize(
    ("mode", "transparent"), [("REDIRECT", False), ("TPROXY", True), ("", False), ("NONE", False)]
)
def test_a_proxy_says_how_it_captures(mode: str, transparent: bool) -> None:
    """Source: Istio's node metadata INTERCEPTION_MODE."""
    proxy = proxy_of_json(
        {
            "name": "reviews-v1-0",
            "labels": {"app": "reviews", "version": "v1"},
            "ips": ["10.0.0.3"],
            "metadata": {"INTERCEPTION_MODE": mode},
        }
    )
    rendered = render_snapshot(Engine(world_of(bookinfo())).get(compile_proxy, proxy))
    inbound = next(x for x in rendered["listeners"] if x["name"] == "virtualInbound")
    filters = [one["name"].rpartition(".")[2] for one in inbound["listenerFilters"]]
    assert inbound.get("transparent", False) is transparent
    expected = ["original_dst", "original_src"] if transparent else ["original_dst"]
    assert filters[: len(expected)] == expected
    assert ("original_src" in filters) is transparent
    outbound = next(x for x in rendered["listeners"] if x["name"] == "virtualOutbound")
    assert "transparent" not in outbound
