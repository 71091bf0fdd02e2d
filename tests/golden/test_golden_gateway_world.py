"""A gateway keeps a part of the model: it compiles from that what compile gives of all of it."""

from typing import Any

import pytest
from meshbus_xds_gateway.classes import NOT_COMPILED
from test_golden_walk import documents_of, proxy_of, scenarios

from meshbus.compile.engine import Engine, Reader
from meshbus.compile.offline import world_of_documents
from meshbus.compile.proxy import compile_proxy, proxy_of_json
from meshbus.model.world import Put, Query, World


def kept(world: World) -> World:
    """What a gateway's mirror holds of it."""
    puts = [
        Put(entry.key, entry.sequence, entry.ts, entry.row)
        for table in world.tables()
        if table not in NOT_COMPILED
        for entry in world.all(table)
    ]
    return World().apply(puts)[0]


@pytest.mark.parametrize("scenario", scenarios())
def test_nothing_that_is_compiled_is_left_out(scenario: dict[str, Any]) -> None:
    world = world_of_documents(documents_of(scenario), scenario.get("meshConfig"))
    proxy = proxy_of_json(proxy_of(scenario))
    whole = Engine(world).get(compile_proxy, proxy)
    part = Engine(kept(world), NOT_COMPILED).get(compile_proxy, proxy)
    for type_url, resources in whole.resources.items():
        assert dict(part.resources[type_url]) == dict(resources)
    assert part.findings == whole.findings


def all_pods(reader: Reader) -> Any:
    return reader.entries(Query("cfg.pods", "all", None))


def test_what_is_left_out_is_not_taken_for_absent() -> None:
    with pytest.raises(LookupError, match=r"cfg\.pods"):
        Engine(World(), NOT_COMPILED).get(all_pods)
