"""How captured traffic comes in: redirected, or with the addresses that it has."""

from typing import Any

import pytest
from meshes import bookinfo

from meshbus.compile.engine import Engine
from meshbus.compile.proxy import compile_proxy
from meshbus.compile.proxy_keys import proxy_of_json
from meshbus.compile.render import render_snapshot
from meshbus.model.world import world_of


def listeners(mode: str) -> list[dict[str, Any]]:
    """Those of a proxy that says this mode."""
    proxy = proxy_of_json(
        {
            "name": "reviews-v1-0",
            "labels": {"app": "reviews", "version": "v1"},
            "ips": ["10.0.0.3"],
            "metadata": {"INTERCEPTION_MODE": mode},
        }
    )
    snapshot = Engine(world_of(bookinfo())).get(compile_proxy, proxy)
    found: list[dict[str, Any]] = render_snapshot(snapshot)["listeners"]
    return found


def test_a_proxy_to_which_nothing_is_redirected_binds_what_it_listens_on() -> None:
    made = listeners("NONE")
    assert {x["name"] for x in made} & {"virtualInbound", "virtualOutbound"} == set()
    assert made
    assert all(x.get("bindToPort", True) for x in made)


@pytest.mark.parametrize(
    ("mode", "transparent"), [("REDIRECT", False), ("TPROXY", True), ("", False)]
)
def test_a_proxy_says_how_it_captures(mode: str, transparent: bool) -> None:
    """Source: Istio's node metadata INTERCEPTION_MODE."""
    made = listeners(mode)
    inbound = next(x for x in made if x["name"] == "virtualInbound")
    filters = [one["name"].rpartition(".")[2] for one in inbound["listenerFilters"]]
    assert inbound.get("transparent", False) is transparent
    expected = ["original_dst", "original_src"] if transparent else ["original_dst"]
    assert filters[: len(expected)] == expected
    assert ("original_src" in filters) is transparent
    outbound = next(x for x in made if x["name"] == "virtualOutbound")
    assert "transparent" not in outbound
