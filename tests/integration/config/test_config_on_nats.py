"""The config service on a real nats-server: what survives, what is refused meanwhile."""

import asyncio
import contextlib
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from config_harness import CLUSTER, TOKEN, client_of, make_context, running
from config_objects import reviews_service, reviews_virtual_service

from meshbus.bus.interface import MODEL

pytestmark = pytest.mark.real

VIRTUAL_SERVICES = "/apis/networking.istio.io/v1/namespaces/default/virtualservices"
SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "cert"},
    "stringData": {"tls.key": "a very private key"},
}


async def read(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    return (await client.get(path)).json()


async def test_a_restart_loses_nothing(nats_server, bus_for, tmp_path):
    context = make_context(await bus_for("config"), tmp_path)
    async with running(context), client_of(context) as client:
        documents = [reviews_virtual_service(), reviews_service(), SECRET]
        applied = await client.post("/v1/apply", json=documents)
        assert applied.status_code == 200, applied.text
        async with asyncio.timeout(30):
            # The route names a subset that nobody has: its status is written a moment later.
            while "status" not in (before := await read(client, f"{VIRTUAL_SERVICES}/reviews")):
                await asyncio.sleep(0.02)
    nats_server.kill()
    nats_server.start()
    context = make_context(await bus_for("config"), tmp_path)
    async with running(context), client_of(context) as client:
        assert (await client.get(f"{VIRTUAL_SERVICES}/reviews")).json() == before
        secret = (await client.get("/api/v1/namespaces/default/secrets/cert")).json()
        assert secret["data"] == {"tls.key": "YSB2ZXJ5IHByaXZhdGUga2V5"}
        query = {"watch": "1", "resourceVersion": "1", "timeoutSeconds": "1"}
        watched = await client.get(VIRTUAL_SERVICES, params=query)
        assert watched.json()["object"]["code"] == 410
        again = await client.post("/v1/apply", json=documents)
        actions = {result["action"] for result in again.json()["results"]}
        assert actions == {"unchanged"}


async def test_what_is_on_the_bus_is_sealed(nats_server, bus_for, tmp_path):
    context = make_context(await bus_for("config"), tmp_path)
    async with running(context), client_of(context) as client:
        assert (await client.post("/v1/apply", json=[SECRET])).status_code == 200
        bus = await bus_for("config")
        message = await bus.last(MODEL, f"m.{CLUSTER}.cfg.secrets.default.cert")
        assert message is not None
        assert b"private key" not in message.data
        assert b"YSB2ZXJ5" not in message.data


async def test_an_outage_of_the_bus(nats_server, bus_for, tmp_path):
    context = make_context(await bus_for("config"), tmp_path)
    async with running(context), client_of(context) as client:
        await client.post("/v1/apply", json=[reviews_virtual_service()])
        nats_server.kill()
        read = await client.get(f"{VIRTUAL_SERVICES}/reviews")
        assert read.status_code == 200
        refused = await client.post("/v1/apply", json=[reviews_service()])
        assert (refused.status_code, refused.json()["reason"]) == (503, "ServiceUnavailable")
        nats_server.start()
        async with asyncio.timeout(30):
            while True:
                written = await client.post("/v1/apply", json=[reviews_service()])
                if written.status_code == 200:
                    break
                assert written.status_code == 503, written.text
        assert written.json()["results"][0]["action"] in ("created", "unchanged")
        listed = (await client.get("/api/v1/namespaces/default/services")).json()["items"]
        assert [item["metadata"]["name"] for item in listed] == ["reviews"]


async def test_a_thousand_objects_are_one_change(nats_server, bus_for, tmp_path):
    context = make_context(await bus_for("config"), tmp_path)
    async with running(context), client_of(context) as client:
        documents = [
            {**reviews_virtual_service(), "metadata": {"name": f"r{number}"}}
            for number in range(1000)
        ]
        applied = await client.post("/v1/apply", json=documents)
        assert applied.status_code == 200, applied.text
        versions = {
            item["metadata"]["resourceVersion"]
            for item in (await client.get(VIRTUAL_SERVICES)).json()["items"]
        }
        assert len(versions) == 1000
        assert max(map(int, versions)) == applied.json()["change"]
        assert max(map(int, versions)) - min(map(int, versions)) == 999
        documents.append({**reviews_virtual_service(), "metadata": {"name": "one-more"}})
        for document in documents:
            document["spec"] = {**document["spec"], "hosts": ["other"]}
        refused = await client.post("/v1/apply", json=documents)
        assert refused.status_code == 413
        assert "atomic=false" in refused.json()["message"]


@pytest.mark.slow
async def test_the_process_can_be_killed_at_any_time(nats_server, bus_for, tmp_path):
    del bus_for  # it made the streams
    state = tmp_path / "state"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN},ann,\n")
    tokens.chmod(0o600)
    env = {
        **os.environ,
        "MESHBUS_BUS_URL": nats_server.url,
        "MESHBUS_BUS_SEEDS": str(nats_server.seeds),
        "MESHBUS_STATE": str(state),
        "MESHBUS_ADMIN": "127.0.0.1:0",
        "MESHBUS_CONFIG_API": "127.0.0.1:0",
        "MESHBUS_CONFIG_TOKENS": str(tokens),
    }
    written: list[str] = []
    for round_ in range(3):
        process = await start(env)
        try:
            async with contextlib.aclosing(await connect(state / "config")) as client:
                for number in range(20):
                    name = f"r{round_}-{number}"
                    document = {**reviews_virtual_service(), "metadata": {"name": name}}
                    assert await create(client, document)
                    written.append(name)
                kill = asyncio.get_running_loop().call_later(0.02, process.kill)
                for number in range(20, 60):
                    name = f"r{round_}-{number}"
                    document = {**reviews_virtual_service(), "metadata": {"name": name}}
                    if not await create(client, document):
                        break
                    written.append(name)
                kill.cancel()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            (state / "config" / "api.json").unlink(missing_ok=True)
    process = await start(env)
    try:
        async with contextlib.aclosing(await connect(state / "config")) as client:
            listed = (await client.get(VIRTUAL_SERVICES)).json()["items"]
            names = {item["metadata"]["name"] for item in listed}
            assert set(written) <= names
            # At most the one that was under way at each kill is there without an answer.
            assert len(names - set(written)) <= 3
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def start(env):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from meshbus.cli.serve import config; config()", env=env
    )


async def connect(state: Path) -> httpx.AsyncClient:
    """A client of the process that writes `api.json`, once it serves."""
    async with asyncio.timeout(30):
        while True:
            try:
                where = msgspec.json.decode((state / "api.json").read_bytes())
                client = httpx.AsyncClient(
                    base_url=where["url"],
                    verify=ssl.create_default_context(cafile=where["ca"]),
                    headers={"Authorization": f"Bearer {TOKEN}"},
                )
                path = "/api/v1/namespaces/istio-system"
                if (await client.get(path)).status_code == 200:
                    return client
                await client.aclose()
            except (OSError, httpx.HTTPError):
                pass
            await asyncio.sleep(0.05)


async def create(client: httpx.AsyncClient, document) -> bool:
    """False: the process is gone. A process that has just started may not lead yet."""
    async with asyncio.timeout(30):
        while True:
            try:
                answer = await client.post(VIRTUAL_SERVICES, json=document)
            except httpx.HTTPError:
                return False
            if answer.status_code != 503:
                assert answer.status_code == 201, answer.text
                return True
            await asyncio.sleep(0.05)
