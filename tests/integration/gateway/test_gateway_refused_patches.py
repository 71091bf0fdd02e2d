"""A patch that Envoy refuses is left out alone: real Envoys, and everything else goes on."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from gateway_mesh import (
    CLUSTER,
    Envoy,
    Rows,
    application,
    config,
    endpoints,
    envoy_binary,
    host,
    mesh_on,
    service,
    workload,
)
from meshbus_xds_gateway.service import XdsGatewayService, XdsGatewaySettings

from meshbus.bus.interface import EVENTS, STATUS
from meshbus.compile.resources import SHORT_NAMES
from meshbus.model.status import GatewayReport, ProxyProblem, status_subject
from meshbus.runtime.process import make_context

pytestmark = [pytest.mark.real, pytest.mark.slow]
LUA = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
GOOD = "function envoy_on_request(handle) handle:logInfo('MARK') end"
BAD = "function envoy_on_request(handle"
LISTENER = "127.0.0.9_9080"
Patch = dict[str, Any]


@pytest_asyncio.fixture
async def mesh(bus_for, tmp_path):
    envoy_binary()
    async with mesh_on(bus_for, tmp_path) as running:
        await running.start()
        await running.start_gateway()
        await running.write(
            service("server", 9080),
            endpoints("server", {"server-0": "127.0.0.9", "server-1": "127.0.0.8"}, 9080),
            workload("server", "127.0.0.9", app="127.0.0.10", port=9080, http_proxy=15007),
        )
        yield running


def patch(apply_to: str, operation: str, value: Patch, **match: Any) -> Patch:
    return {
        "applyTo": apply_to,
        "match": match,
        "patch": {"operation": operation, "value": value},
    }


def envoy_filter(name: str, *patches: Patch, namespace: str = "default") -> Rows:
    spec = {"configPatches": list(patches)}
    return config("EnvoyFilter", "envoyfilters", name, spec, namespace)


def lua(code: str, name: str = "script") -> Patch:
    """A script that calls of the application go through."""
    value = {
        "name": name,
        "typedConfig": {"@type": LUA, "defaultSourceCode": {"inlineString": code}},
    }
    return patch("HTTP_FILTER", "INSERT_FIRST", value, context="SIDECAR_INBOUND")


def script(mark: str) -> str:
    return GOOD.replace("MARK", mark)


async def dump(envoy: Envoy) -> str:
    return await envoy.admin("/config_dump?include_eds")


async def has(envoy: Envoy, *marks: str, lacks: tuple[str, ...] = ()) -> bool:
    held = await dump(envoy)
    return all(mark in held for mark in marks) and not any(mark in held for mark in lacks)


async def problems(mesh, pod: str = "xds-gateway-0") -> list[ProxyProblem] | None:
    last = await mesh.buses["config"].last(
        STATUS, status_subject(CLUSTER, "xds-gateway", pod, "report")
    )
    return (
        msgspec.json.decode(last.data, type=GatewayReport).problems if last and last.data else None
    )


async def losses(mesh) -> dict[str, str]:
    last = await mesh.buses["config"].last(
        STATUS, status_subject(CLUSTER, "xds-gateway", "xds-gateway-0", "report")
    )
    report = msgspec.json.decode(last.data, type=GatewayReport)
    return {loss.object_key: loss.message for loss in report.losses}


class Events:
    """Keeps events."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def begin(self) -> None: ...

    def apply(self, messages) -> None:
        self.heard.extend(msgspec.json.decode(message.data) for message in messages)

    def end(self, sequence) -> None: ...


CLUSTER_NAME = f"outbound|9080||{host('server')}"


def bad_ring() -> Patch:
    value = {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 9000000}}
    return patch("CLUSTER", "MERGE", value, cluster={"name": CLUSTER_NAME})


def bad_route() -> Patch:
    """No regular expression, which protobuf cannot know."""
    value = {"route": {"regex_rewrite": {"pattern": {"regex": "("}, "substitution": "/"}}}
    return patch("HTTP_ROUTE", "MERGE", value, context="SIDECAR_OUTBOUND")


def timeout_of(seconds: int) -> Rows:
    route = {"route": [{"destination": {"host": "server"}}], "timeout": f"{seconds}s"}
    return config(
        "VirtualService", "virtualservices", "server", {"hosts": ["server"], "http": [route]}
    )


def pool_of(seconds: int) -> Rows:
    policy = {"connectionPool": {"tcp": {"connectTimeout": f"{seconds}s"}}}
    return config(
        "DestinationRule",
        "destinationrules",
        "server",
        {"host": "server", "trafficPolicy": policy},
    )


CASES = [
    pytest.param(lua(BAD), "lds", lambda: envoy_filter("o", lua(script("other"), "o")), "other"),
    pytest.param(bad_ring(), "cds", lambda: pool_of(37), '"37s"'),
    pytest.param(bad_route(), "rds", lambda: timeout_of(41), '"41s"'),
]


@pytest.mark.parametrize(("bad", "kind", "other", "shows"), CASES)
async def test_a_refused_patch_is_left_out_and_the_rest_of_the_resource_goes_on(
    mesh, bad: Patch, kind: str, other: Callable[[], Rows], shows: str
):
    events = Events()
    following = mesh.buses["config"].follower(EVENTS, ["events.>"], events)
    hearing = asyncio.create_task(following.run())
    async with mesh.envoy("server", "127.0.0.9") as envoy:
        await mesh.until(envoy.ready, "Envoy is ready")
        change = await mesh.write(envoy_filter("bad", bad))
        reply = await mesh.converged(change)
        assert [(r["proxy"], r["object"]) for r in reply.rejected] == [
            ("server-0.default", "EnvoyFilter default/bad")
        ]
        assert reply.rejected[0]["resource"].startswith(f"{kind} ")
        assert reply.rejected[0]["message"]

        # What concerns the same resource reaches the proxy all the same.
        reply = await mesh.converged(await mesh.write(other()))
        assert (reply.converged, reply.rejected) == (1, [])
        await mesh.until(lambda: has(envoy, shows), "the other change is there")

        async def told() -> bool:
            held = await problems(mesh)
            return bool(held) and all(p.left_out for p in held)

        await mesh.until(told, "the report says that it is left out")
        (problem,) = await problems(mesh)
        assert SHORT_NAMES[problem.type_url] == kind
        assert problem.object_keys == ["cfg.envoyfilters/default/bad"]
        assert "left out" in (await losses(mesh))["cfg.envoyfilters/default/bad"]
        proxy = (await mesh.proxies())["server-0.default"]
        assert proxy.types[kind]["status"] == "SYNCED"
        assert [p.object for p in proxy.problems] == ["EnvoyFilter default/bad"]
        nacked = [e for e in events.heard if e["type"].endswith(".nacked")]
        assert [e["type"] for e in nacked] == ["io.meshbus.envoyfilter.nacked"]

        # Mended, it is tried anew.
        change = await mesh.write(envoy_filter("bad", lua(script("mended"))))
        reply = await mesh.converged(change)
        assert (reply.converged, reply.rejected) == (1, [])
        await mesh.until(lambda: has(envoy, "mended", shows), "the mended patch is there")

        async def healed() -> bool:
            return await problems(mesh) == [] and not await losses(mesh)

        await mesh.until(healed, "nothing is left out any more")
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)


def blamed(held: list[ProxyProblem] | None) -> set[str]:
    """Names of the objects that are left out."""
    told = [problem for problem in held or [] if problem.left_out]
    return {key.rpartition("/")[2] for problem in told for key in problem.object_keys}


def chain(port: int) -> Patch:
    """A chain that Envoy takes once."""
    value = {
        "name": f"chain-{port}",
        "filter_chain_match": {"destination_port": 9},
        "filters": [
            {
                "name": "envoy.filters.network.echo",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"
                },
            }
        ],
    }
    match = {"context": "SIDECAR_INBOUND", "listener": {"name": LISTENER}}
    return patch("FILTER_CHAIN", "ADD", value, **match)


@pytest.mark.parametrize(
    ("filters", "at_fault", "kept"),
    [
        pytest.param(
            [
                envoy_filter("older", lua(script("older"), "o")),
                envoy_filter("bad", lua(BAD)),
                envoy_filter("newer", lua(script("newer"), "n")),
            ],
            {"bad"},
            ("older", "newer"),
            id="one of three",
        ),
        pytest.param(
            [
                envoy_filter("bad", lua(BAD)),
                envoy_filter("root", lua(script("root"), "r"), namespace="istio-system"),
                envoy_filter("worse", lua(BAD, "worse")),
            ],
            {"bad", "worse"},
            ("root",),
            id="two of three",
        ),
        pytest.param(
            [envoy_filter("first", chain(1)), envoy_filter("second", chain(2))],
            {"second"},
            ("chain-1",),
            id="together only: the newer one",
        ),
        pytest.param(
            [
                envoy_filter("own", chain(1)),
                envoy_filter("mesh", chain(2), namespace="istio-system"),
            ],
            {"own"},
            ("chain-2",),
            id="together only: not the one of the root namespace",
        ),
    ],
)
async def test_who_is_at_fault_is_found_and_the_others_stay(
    mesh, filters: list[Rows], at_fault: set[str], kept: tuple[str, ...]
):
    for rows in filters:
        await mesh.write(rows)
    async with mesh.envoy("server", "127.0.0.9") as envoy:

        async def found() -> bool:
            return blamed(await problems(mesh)) == at_fault

        await mesh.until(found, f"{at_fault} are left out")
        await mesh.until(lambda: has(envoy, *kept, LISTENER), "the others are there")
        reply = await mesh.converged(await mesh.write(timeout_of(43)))
        assert (reply.converged, reply.rejected) == (1, [])
        # Of those at fault one comes back mended, while another may stay.
        mended = min(at_fault)
        change = await mesh.write(envoy_filter(mended, lua(script("mended"), "m")))
        reply = await mesh.converged(change)
        assert (reply.converged, reply.rejected) == (1, [])
        await mesh.until(lambda: has(envoy, "mended", *kept), "the mended one is there")

        async def left() -> bool:
            return blamed(await problems(mesh)) == at_fault - {mended}

        await mesh.until(left, "no other is left out")


async def test_a_patch_in_force_is_left_out_where_it_spoils_and_stays_elsewhere(mesh):
    """One that all clusters take, until there is one that does not go with it."""
    value = {"cluster_type": {"name": "envoy.clusters.no.such"}}
    tag = {"alt_stat_name": "tagged"}
    await mesh.write(
        envoy_filter(
            "tags",
            patch("CLUSTER", "MERGE", tag),
            patch("CLUSTER", "MERGE", value, cluster={"service": host("later")}),
        )
    )
    async with mesh.envoy("server", "127.0.0.9") as envoy:
        await mesh.until(lambda: has(envoy, "tagged"), "the patch is in force")
        change = await mesh.write(service("later", 80))

        async def found() -> bool:
            return blamed(await problems(mesh)) == {"tags"}

        await mesh.until(found, "it is left out")
        reply = await mesh.converged(change)
        assert [r["object"] for r in reply.rejected] == ["EnvoyFilter default/tags"]
        later = f"outbound|80||{host('later')}"
        await mesh.until(lambda: has(envoy, later, "tagged"), "the new cluster is there")
        (message,) = [m for k, m in (await losses(mesh)).items() if k.endswith("/tags")]
        assert later in message
        assert CLUSTER_NAME not in message
        reply = await mesh.converged(await mesh.write(service("unrelated", 80)))
        assert (reply.converged, reply.rejected) == (1, [])


async def test_a_filter_goes_with_the_cluster_or_the_configuration_that_it_needs(mesh):
    """Half of an object is worse than none of it."""
    source = {"config_source": {"ads": {}, "resource_api_version": "V3"}, "type_urls": [LUA]}
    needs = patch(
        "HTTP_FILTER",
        "INSERT_FIRST",
        {"name": "late", "config_discovery": source},
        context="SIDECAR_INBOUND",
    )
    filled = {
        "name": "late",
        "typedConfig": {"@type": LUA, "defaultSourceCode": {"inlineString": BAD}},
    }
    async with application("127.0.0.10", 9080, "hello"), mesh.envoy("server", "127.0.0.9") as envoy:
        await mesh.until(envoy.ready, "Envoy is ready")
        await mesh.write(envoy_filter("late", needs, patch("EXTENSION_CONFIG", "ADD", filled)))

        async def found() -> bool:
            return blamed(await problems(mesh)) == {"late"}

        await mesh.until(found, "it is left out")
        held = await mesh.proxies()
        assert {p.resource for p in held["server-0.default"].problems} == {"ecds late"}
        await mesh.until(lambda: has(envoy, LISTENER, lacks=('"late"',)), "its filter has gone")
        assert await answer(9080) == (200, "hello")
        reply = await mesh.converged(await mesh.write(envoy_filter("other", lua(script("other")))))
        assert (reply.converged, reply.rejected) == (1, [])
        await mesh.until(lambda: has(envoy, "other"), "the listener goes on")


async def answer(port: int) -> tuple[int, str]:
    async with httpx.AsyncClient() as client:
        reply = await client.get(f"http://127.0.0.9:{port}/", timeout=5)
    return reply.status_code, reply.text


async def test_a_script_that_envoy_refuses_is_stood_in_for_at_a_proxy_that_starts(mesh):
    spec = {"selector": {"matchLabels": {"app": "server"}}, "lua": {"inlineCode": BAD}}
    row = next(iter(config("TrafficExtension", "trafficextensions", "script", spec).items()))
    made = msgspec.structs.replace(row[1], api_version="extensions.istio.io/v1alpha1")
    await mesh.write({row[0]: made})
    async with application("127.0.0.10", 9080, "hello"), mesh.envoy("server", "127.0.0.9") as envoy:
        await mesh.until(envoy.ready, "Envoy is ready")

        async def told() -> bool:
            held = await problems(mesh)
            return bool(held) and held[0].object_keys == ["cfg.trafficextensions/default/script"]

        await mesh.until(told, "the report says who refuses it")
        assert await answer(9080) == (200, "hello"), "not 500: the filter does nothing"
        mended = {**spec, "lua": {"inlineCode": script("mended")}}
        await mesh.write({row[0]: msgspec.structs.replace(made, spec=mended)})
        await mesh.until(lambda: has(envoy, "mended"), "the mended script is there")
        assert await answer(9080) == (200, "hello")


@pytest.mark.parametrize(
    ("bad", "counter"),
    [
        pytest.param(lua(BAD), "listener_manager.lds.update_rejected", id="lds"),
        pytest.param(bad_ring(), "cluster_manager.cds.update_rejected", id="cds"),
        pytest.param(
            bad_route(), "http.outbound_127.0.0.9_15007;.rds.http_proxy.update_rejected", id="rds"
        ),
    ],
)
async def test_a_restarted_gateway_finds_out_again_and_delivers_nothing(
    mesh, bad: Patch, counter: str
):
    async with mesh.envoy("server", "127.0.0.9") as envoy:
        await mesh.until(envoy.ready, "Envoy is ready")
        change = await mesh.write(
            envoy_filter("good", lua(script("good"), "g")), envoy_filter("bad", bad)
        )

        async def found() -> bool:
            return blamed(await problems(mesh)) == {"bad"}

        await mesh.until(found, "it is left out")
        await mesh.until(lambda: has(envoy, "good"), "the other is there")
        moved = ("listener_manager.listener_modified", "cluster_manager.cluster_modified")
        for restart in range(1, 3):
            before = [await envoy.stat(name) for name in (counter, *moved)]
            port = mesh.gateway.port
            await mesh.stop("xds-gateway")
            subject = status_subject(CLUSTER, "xds-gateway", "xds-gateway-0", "report")
            await mesh.buses["xds-gateway"].publish(STATUS, subject, b"")
            await mesh.start_gateway(listen=f"127.0.0.1:{port}")
            await mesh.until(found, "the restarted gateway leaves it out", 30)
            reply = await mesh.converged(change)
            assert [r["object"] for r in reply.rejected] == ["EnvoyFilter default/bad"]
            after = [await envoy.stat(name) for name in (counter, *moved)]
            assert after == [before[0] + 1, *before[1:]], "asked once, and nothing moved"
            reply = await mesh.converged(await mesh.write(timeout_of(46 + restart)))
            assert (reply.converged, reply.rejected) == (1, [])
            shows = f'"{46 + restart}s"'
            await mesh.until(lambda mark=shows: has(envoy, mark, "good"), "changes go on")


async def test_replicas_find_out_each_for_itself_and_agree(mesh):
    first = mesh.gateway
    process = msgspec.structs.replace(mesh.process, pod="xds-gateway-1")
    settings = XdsGatewaySettings(listen="127.0.0.1:0")
    context = make_context(XdsGatewayService, settings, process, await mesh.bus_for("xds-gateway"))
    second = XdsGatewayService(context)
    running = asyncio.create_task(second.run())
    await mesh.until(lambda: second.port is not None, "the second replica listens")
    await mesh.write(workload("client", "127.0.0.8", app="127.0.0.11", port=9080))
    filters = [
        envoy_filter("good", lua(script("good"), "g"), namespace="istio-system"),
        envoy_filter("bad", lua(BAD), namespace="istio-system"),
    ]
    async with mesh.envoy("server", "127.0.0.9") as one:
        mesh.gateway = second
        async with mesh.envoy("client", "127.0.0.8") as two:
            for envoy in (one, two):
                await mesh.until(envoy.ready, "Envoy is ready")
            await mesh.write(*filters)
            for pod in ("xds-gateway-0", "xds-gateway-1"):

                async def found(pod: str = pod) -> bool:
                    return blamed(await problems(mesh, pod)) == {"bad"}

                await mesh.until(found, f"{pod} leaves it out")
            for envoy in (one, two):
                await mesh.until(lambda e=envoy: has(e, "good"), "the other patch is there")
            change = await mesh.write(
                envoy_filter("bad", lua(script("mended"), "b"), namespace="istio-system")
            )
            for envoy in (one, two):
                await mesh.until(lambda e=envoy: has(e, "good", "mended"), "both are there")
            assert (await mesh.converged(change)).rejected == []
    mesh.gateway = first
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
