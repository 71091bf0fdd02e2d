"""`/v1/authz/check` of the API."""

import asyncio
from typing import Any

from meshbus.bus.writer import ModelWriter
from meshbus.model.keys import Key
from meshbus.model.rows import WorkloadInstance, WorkloadPort

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
    while (answer := await ask(api, **question)).status_code == 404:
        pass
    return answer


async def test_live_and_as_if(api):
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
        answer = await until_there(api)
        assert answer.json()["outcome"] == "allowed"
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
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
