"""`/v1/authz/check` of the API."""

import asyncio
import contextlib
from typing import Any

from meshbus.bus.writer import ModelWriter
from meshbus.model.keys import Key
from meshbus.model.requests import OBSERVED, ObservedCall, ObservedReply, ObservedRequest
from meshbus.model.rows import WorkloadInstance, WorkloadPort
from meshbus.runtime.calls import answer

CLUSTER = "Kubernetes"


def policy(name: str, action: str, **rule: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"action": action, "rules": [rule]},
    }


async def ask(api, **question: Any):
    question = {"from": "default/web", "to": "default/server", **question}
    return await api.client.post("/v1/authz/check", json=question)


async def until_there(api, **question: Any):
    while (found := await ask(api, **question)).status_code == 404:
        pass
    return found


@contextlib.asynccontextmanager
async def discovered(api):
    """A workload is in the model."""
    writer = ModelWriter(api.bus("discovery"), cluster=CLUSTER, service="discovery", pod="d-0")
    task = asyncio.create_task(writer.run())
    await writer.wait_leading()
    row = WorkloadInstance(
        name="server-0",
        namespace="default",
        workload="server",
        service_account="server",
        labels={"app": "server"},
        addresses=["127.0.0.9"],
        ports=[WorkloadPort("http", 80, "HTTP")],
    )
    await writer.commit([(Key(CLUSTER, "reg", "workloads", "default", "server-0"), row)])
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_live_and_as_if(api):
    async with discovered(api):
        first = await until_there(api)
        assert first.json()["outcome"] == "allowed"
        get = {"to": [{"operation": {"methods": ["GET"]}}]}
        proposal = [policy("no", "DENY", **get)]
        assert (await ask(api, objects=proposal)).json()["rule"]["name"] == "no"
        assert (await ask(api, objects=proposal, method="POST")).json()["outcome"] == "allowed"
        assert (await ask(api)).json()["outcome"] == "allowed", "nothing was written"
        await api.apply(policy("no", "DENY", **get))
        found = (await ask(api)).json()
        assert (found["outcome"], found["rule"]["rule"]) == ("denied", 0)

        for wrong in (
            {"to": 7},
            {"path": "x"},
            {"port": -1},
            {"nonsense": 1},
            {"objects": [policy("no", "NOTHING")]},
            {"objects": [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}]},
        ):
            refused = await ask(api, **wrong)
            assert (refused.status_code, refused.json()["kind"]) == (400, "Status"), wrong
        assert (await ask(api, to="default/nobody")).status_code == 404


async def test_suggestions(api):
    asked = []

    async def observed(request: ObservedRequest) -> ObservedReply:
        asked.append(request)
        who = "cluster.local/ns/default/sa/web"
        calls = [
            ObservedCall("default", "server", 80, "http", who, "GET", "/a/{*}", 3, sample="/a/1"),
            ObservedCall("default", "server", 80, "http", "", "GET", "/b", 1, sample="/b"),
            ObservedCall("default", "gone", 80, "http", who, "GET", "/", 1),
        ]
        return ObservedReply(calls)

    assert (await api.client.get("/v1/authz/suggest")).status_code == 503, "no telemetry answers"
    await answer(api.bus("telemetry"), OBSERVED, ObservedRequest, observed)
    async with discovered(api):
        await until_there(api)
        found = (await api.client.get("/v1/authz/suggest", params={"since": "2h"})).json()
        (document,) = found["policies"]
        assert document["spec"]["rules"][0]["to"] == [
            {"operation": {"ports": ["80"], "methods": ["GET"], "paths": ["/a/{*}"]}}
        ]
        assert [(c["principal"], c["path"]) for c in found["wouldDeny"]] == [("", "/b")]
        assert found["leftOut"] == ["default/gone: it is gone"]
        assert 7190 < asked[0].since_s < 7210
        assert (await api.client.get("/v1/authz/suggest?since=x")).status_code == 400
