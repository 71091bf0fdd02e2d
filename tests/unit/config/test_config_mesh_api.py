"""`/v1`: bulk apply, receipts, proxies, events; statuses that follow what proxies refuse."""

import asyncio
import contextlib
import json
from typing import Any

import msgspec
import pytest
from config_harness import client_of, make_context, until_ready
from meshbus_config.service import ConfigService
from test_config_objects import VIRTUAL_SERVICES, create, service, virtual_service

from meshbus.bus.interface import STATUS
from meshbus.model.requests import (
    CONVERGED,
    CREDENTIAL,
    PROXIES,
    PROXY_CONFIG,
    ConvergedReply,
    ConvergedRequest,
    CredentialReply,
    CredentialRequest,
    ProxiesReply,
    ProxiesRequest,
    ProxyConfigReply,
    ProxyConfigRequest,
    ProxyInfo,
    replica_subject,
)
from meshbus.model.status import ConfigLoss, GatewayReport, Progress, ProxyProblem, status_subject
from meshbus.runtime.calls import CallError, answer, call
from meshbus.runtime.sealed import recipient

CLUSTER = "Kubernetes"


class Gateway:
    """A gateway replica and discovery, as config sees them on the bus."""

    def __init__(self, api, pod="xds-gateway-0"):
        self.api = api
        self.pod = pod
        self.bus = api.bus("xds-gateway")
        self.asked: list[int] = []
        self.objects: list[str] = []
        self.reply: dict[str, Any] = {"total": 2, "converged": 2, "latency_s": 0.025}
        self.proxies: list[ProxyInfo] = []

    async def start(self):
        for subject, request_type, handler in (
            (CONVERGED, ConvergedRequest, self.converged),
            (PROXIES, ProxiesRequest, self.list_proxies),
            (PROXY_CONFIG, ProxyConfigRequest, self.config),
        ):
            await answer(self.bus, replica_subject(subject, self.pod), request_type, handler)
        await self.report()

    async def converged(self, request):
        self.asked.append(request.sequence)
        self.objects = request.objects
        return ConvergedReply(**{"pod": self.pod, "sequence": request.sequence, **self.reply})

    async def list_proxies(self, _):
        return ProxiesReply(self.pod, self.proxies)

    async def config(self, request):
        if request.proxy != "reviews-v1-0.default":
            raise CallError("not-found", "no such proxy here")
        return ProxyConfigReply(request.proxy, 1, {"listeners": [{"name": "x"}], "routes": []})

    async def report(self, *problems, sequence=0):
        report = GatewayReport(self.pod, sequence, 2, sequence, list(problems))
        subject = status_subject(CLUSTER, "xds-gateway", self.pod, "report")
        await self.bus.publish(STATUS, subject, msgspec.json.encode(report))

    async def discovery(self, read, wrote):
        subject = status_subject(CLUSTER, "discovery", "discovery-0", "progress")
        progress = Progress("discovery", read, wrote)
        bus = self.api.bus("discovery")
        await bus.publish(STATUS, subject, msgspec.json.encode(progress))


@pytest.fixture
async def gateway(api):
    gateway = Gateway(api)
    await gateway.start()

    async def seen():
        return (await api.client.get("/v1/proxies")).status_code == 200

    await until(seen)
    return gateway


async def until(condition, timeout_s=10.0):
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):
            await asyncio.sleep(0.01)
        return found


# --------------------------------------------------------------------------- apply, delete


async def test_apply_is_one_change_with_a_result_for_each_object(api):
    documents = [
        virtual_service(namespace="shop"),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
    ]
    first = await api.apply(*documents)
    assert first.status_code == 200, first.text
    result = first.json()
    assert [one["action"] for one in result["results"]] == ["created", "created"]
    assert [one["index"] for one in result["results"]] == [0, 1]
    again = (await api.apply(*documents)).json()
    assert [one["action"] for one in again["results"]] == ["unchanged", "unchanged"]
    assert again["change"] == result["change"]
    documents[0]["spec"]["http"][0]["timeout"] = "5s"
    third = (await api.apply(*documents)).json()
    assert [one["action"] for one in third["results"]] == ["configured", "unchanged"]
    assert third["change"] > result["change"]


async def test_what_is_no_longer_applied_goes(api):
    document = virtual_service(labels={"a": "b"})
    document["spec"]["gateways"] = ["mesh"]
    await api.apply(document)
    del document["spec"]["gateways"]
    document["metadata"]["labels"] = {}
    await api.apply(document)
    read = (await api.client.get(f"{VIRTUAL_SERVICES}/reviews")).json()
    assert "gateways" not in read["spec"]
    assert "labels" not in read["metadata"]


async def test_one_bad_object_refuses_an_atomic_apply(api):
    bad = virtual_service("bad")
    bad["spec"]["http"] = [{}]
    unknown = {"apiVersion": "none.io/v1", "kind": "None", "metadata": {"name": "x"}}
    refused = await api.apply(virtual_service("good"), bad, unknown)
    assert refused.status_code == 422
    body = refused.json()
    assert body["change"] is None
    assert [one["action"] for one in body["results"]] == ["none", "failed", "failed"]
    assert body["results"][1]["error"]["causes"][0]["field"].startswith("spec.http[0]")
    assert "none.io/v1" in body["results"][2]["error"]["message"]
    assert (await api.client.get(VIRTUAL_SERVICES)).json()["items"] == []


async def test_everything_that_is_wrong_is_told_at_once(api):
    route = virtual_service()
    route["spec"] |= {"htp": [], "hosts": 7}
    unknown = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualServce", "metadata": {}}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}
    documents = [route, unknown, {"kind": "Service", "metadata": {"name": "s"}}, deployment]
    answer = await api.client.post("/v1/apply", json=documents)
    errors = [result["error"] for result in answer.json()["results"]]
    assert {cause["field"] for cause in errors[0]["causes"]} == {"spec.htp", "spec.hosts"}
    assert errors[0]["message"].startswith('strict decoding error: unknown field "spec.htp"')
    assert "did you mean 'VirtualService'?" in errors[1]["message"]
    assert errors[2]["message"] == "apiVersion: is required"
    assert "described as a Workload" in errors[3]["message"]


async def test_without_atomic_the_rest_goes_on(api):
    bad = virtual_service("bad")
    bad["spec"]["http"] = [{}]
    answered = await api.apply(virtual_service("a"), bad, virtual_service("b"), atomic="false")
    assert answered.status_code == 200
    body = answered.json()
    assert [one["action"] for one in body["results"]] == ["created", "failed", "created"]
    assert body["change"] > 0


async def test_delete_in_bulk(api):
    await api.apply(virtual_service("a"), virtual_service("b"))
    refs = [
        {"apiVersion": "networking.istio.io/v1beta1", "kind": "VirtualService",
         "metadata": {"name": name}} for name in ("a", "none")
    ]  # fmt: skip
    refused = await api.client.post("/v1/delete", json=refs)
    assert refused.status_code == 422
    done = await api.client.post("/v1/delete", json=refs, params={"atomic": "false"})
    assert [one["action"] for one in done.json()["results"]] == ["deleted", "failed"]
    left = (await api.client.get(VIRTUAL_SERVICES)).json()["items"]
    assert [item["metadata"]["name"] for item in left] == ["b"]


async def test_a_backup_restores_what_was_there(api):
    await api.apply(
        virtual_service("a", labels={"x": "y"}),
        service("a"),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
         "stringData": {"k": "v"}},
    )  # fmt: skip
    backup = []
    for path in (
        VIRTUAL_SERVICES,
        "/api/v1/namespaces/default/services",
        "/api/v1/namespaces/default/secrets",
    ):
        listed = (await api.client.get(path)).json()
        for item in listed["items"]:
            item["kind"] = listed["kind"].removesuffix("List")
            item["apiVersion"] = listed["apiVersion"]
        backup += listed["items"]
    assert len(backup) == 3
    await api.client.post("/v1/delete", json=backup)
    restored = await api.apply(*backup)
    assert restored.status_code == 200, restored.text
    for item in backup:
        path = {"VirtualService": VIRTUAL_SERVICES}.get(
            item["kind"], f"/api/v1/namespaces/default/{item['kind'].lower()}s"
        )
        read = (await api.client.get(f"{path}/{item['metadata']['name']}")).json()
        for field in ("spec", "data", "type"):
            assert read.get(field) == item.get(field)
        for field in ("labels", "creationTimestamp"):
            assert read["metadata"].get(field) == item["metadata"].get(field)


# --------------------------------------------------------------------------- receipts


async def test_a_receipt_waits_for_discovery_and_then_for_the_proxies(api, gateway):
    change = int((await api.apply(service())).headers["meshbus-change"])
    pending = (await api.client.get(f"/v1/changes/{change}")).json()
    assert (pending["state"], pending["waiting"]) == ("pending", ["discovery"])
    query = {"wait": "10"}
    waiting = asyncio.create_task(api.client.get(f"/v1/changes/{change}", params=query))
    await gateway.discovery(change, change + 3)
    receipt = (await waiting).json()
    assert receipt["state"] == "converged"
    assert receipt["proxies"] == {"total": 2, "converged": 2}
    assert receipt["latency_ms"] == 25.0
    assert gateway.asked[-1] == change + 3
    never = (await api.client.get(f"/v1/changes/{change + 900}")).json()
    assert (never["state"], never["waiting"]) == (
        "pending",
        [f"a change of that number (latest: {change})"],
    )


async def test_what_discovery_does_not_read_needs_no_word_of_it(api, gateway):
    change = int((await api.apply(virtual_service())).headers["meshbus-change"])
    receipt = (await api.client.get(f"/v1/changes/{change}")).json()
    assert receipt["state"] == "converged"
    assert gateway.asked[-1] == change


async def test_a_receipt_tells_what_of_its_objects_has_no_effect(api, gateway):
    other = Gateway(api, "xds-gateway-1")
    await other.start()
    losses = [
        ConfigLoss(key, "spec.http[0]", "no subset v9", 2, "p.default", 1)
        for key in ("cfg.virtualservices/default/reviews",)
    ]
    for one in (gateway, other):
        one.reply = {"total": 2, "converged": 2, "losses": losses}
    change = int((await api.apply(virtual_service())).headers["meshbus-change"])
    receipt = (await api.client.get(f"/v1/changes/{change}", params={"wait": "10"})).json()
    assert receipt["state"] == "converged"
    assert receipt["without_effect"] == [
        {
            "object": "VirtualService default/reviews",
            "path": "spec.http[0]",
            "message": "no subset v9",
            "proxies": 4,
        }
    ]
    assert gateway.objects == ["cfg.virtualservices/default/reviews"]


async def test_a_refusal_ends_the_wait(api, gateway):
    change = int((await api.apply(virtual_service())).headers["meshbus-change"])
    refusal = {"proxy": "p.default", "resource": "80", "object": "VirtualService default/reviews",
               "message": "bad route"}  # fmt: skip
    gateway.reply = {"total": 2, "converged": 1, "waiting": ["p.default"], "rejected": [refusal]}
    receipt = (await api.client.get(f"/v1/changes/{change}", params={"wait": "10"})).json()
    assert (receipt["state"], receipt["rejected"]) == ("rejected", [refusal])
    assert receipt["latency_ms"] is None


async def test_a_gateway_that_died_is_not_waited_for(api, gateway):
    ghost = Gateway(api, "xds-gateway-1")
    await ghost.report()
    change = int((await api.apply(virtual_service())).headers["meshbus-change"])
    receipt = (await api.client.get(f"/v1/changes/{change}", params={"wait": "10"})).json()
    assert receipt["state"] == "converged"


async def test_without_any_gateway_a_change_stays_pending(api):
    change = int((await api.apply(virtual_service())).headers["meshbus-change"])
    receipt = (await api.client.get(f"/v1/changes/{change}", params={"wait": "0.1"})).json()
    assert (receipt["state"], receipt["waiting"]) == ("pending", ["xds-gateway"])


async def test_recent_changes_say_who_changed_what(api):
    await create(api)
    newest = (await api.client.get("/v1/changes")).json()["changes"][0]
    assert newest["user"] == "ann"
    assert newest["objects"] == [
        {"kind": "VirtualService", "namespace": "default", "name": "reviews", "action": "created"}
    ]


async def test_proxies_and_their_config(api, gateway):
    gateway.proxies = [
        ProxyInfo("b.default", "default", "b", "sidecar", "10.0.0.2", "1.40", "g", 0.0, 5, {}),
        ProxyInfo("a.default", "default", "a", "sidecar", "10.0.0.1", "1.40", "g", 0.0, 5, {}),
    ]
    listed = (await api.client.get("/v1/proxies")).json()["proxies"]
    assert [proxy["id"] for proxy in listed] == ["a.default", "b.default"]
    config = await api.client.get("/v1/proxies/reviews-v1-0.default/config?type=listeners")
    assert config.json() == {"listeners": [{"name": "x"}]}
    missing = await api.client.get("/v1/proxies/none.default/config")
    assert missing.status_code == 404
    assert (await api.client.get("/v1/proxies/x/config?type=y")).status_code == 400


async def test_what_no_service_answers_is_unavailable(api):
    for path in ("/v1/graph", "/v1/traces", "/v1/proxies", "/v1/proxies/x/config"):
        answered = await api.client.get(path)
        assert (answered.status_code, answered.json()["kind"]) == (503, "Status")


# --------------------------------------------------------------------------- statuses, events


async def test_a_refused_object_says_so_until_it_is_no_longer(api, gateway):
    change = int((await api.apply(virtual_service())).headers["meshbus-change"])
    problem = ProxyProblem(
        "p.default",
        "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        ["9080"],
        ["VirtualService default/reviews"],
        ["cfg.virtualservices/default/reviews"],
        "invalid path",
        change,
    )
    await gateway.report(problem, sequence=change)

    async def condition(status):
        read = (await api.client.get(f"{VIRTUAL_SERVICES}/reviews")).json()
        for one in read.get("status", {}).get("conditions", []):
            if one["type"] == "Reconciled" and one["status"] == status:
                return one
        return None

    refused = await until(lambda: condition("False"))
    assert refused["message"] == "p.default refuses 9080: invalid path"
    assert refused["observedGeneration"] == 1
    await gateway.report(sequence=change)
    await until(lambda: condition("True"))


async def test_many_are_written_in_few_changes_and_a_bad_one_harms_no_other(api):
    def config_map(name, text="x"):
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"a": text},
        }

    documents = [config_map(f"m{index}") for index in range(60)]
    documents[7] = {**config_map("Not-A-Name"), "metadata": {"name": "Not A Name"}}
    answer = (await api.apply(*documents, atomic="false")).json()
    actions = [result["action"] for result in answer["results"]]
    assert actions == ["created"] * 7 + ["failed"] + ["created"] * 52
    changes = (await api.client.get("/v1/changes")).json()["changes"]
    assert len(changes[0]["objects"]) == 59
    documents[8] = config_map("m8", "x" * 4_500_000)
    documents[9] = config_map("m9", "y")
    answer = (await api.apply(*documents, atomic="false")).json()
    actions = [result["action"] for result in answer["results"]]
    assert actions == ["unchanged"] * 7 + ["failed", "failed", "configured"] + ["unchanged"] * 50
    assert answer["results"][8]["error"]["code"] == 422


async def test_what_is_named_and_not_there_is_warned_of_and_on_the_status(api):
    dangling_route = virtual_service()
    dangling_route["spec"] = {
        "hosts": ["x"],
        "http": [{"route": [{"destination": {"host": "reviews"}}]}],
    }
    answer = (await api.apply(dangling_route)).json()
    (result,) = answer["results"]
    assert result["action"] == "created"
    expected = "spec.http[0].route[0].destination.host: there is no service"
    assert any(w.startswith(expected) and w.endswith("yet") for w in result["warnings"]), result

    async def resolved(status):
        read = (await api.client.get(f"{VIRTUAL_SERVICES}/reviews")).json()
        for one in read.get("status", {}).get("conditions", []):
            if one["type"] == "ResolvedRefs" and one["status"] == status:
                return one
        return None

    dangling = await until(lambda: resolved("False"))
    assert dangling["reason"] == "ReferenceNotFound"
    assert dangling["message"].startswith(expected)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "reviews"},
        "spec": {"ports": [{"port": 9080}]},
    }
    await api.apply(service)
    await until(lambda: resolved("True"))
    # In one request the order of documents says nothing about what needs what.
    other = {**virtual_service(), "metadata": {"name": "late"}}
    other["spec"] = {"hosts": ["x"], "http": [{"route": [{"destination": {"host": "late"}}]}]}
    late = {**service, "metadata": {"name": "late"}}
    results = (await api.apply(other, late)).json()["results"]
    assert all("warnings" not in result for result in results), results


async def test_the_status_of_a_pod_is_data(api):
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": []},
        "status": {"podIP": "10.0.0.1"},
    }
    await api.apply(pod)
    path = "/api/v1/namespaces/default/pods/p"
    assert (await api.client.get(path)).json()["status"]["podIP"] == "10.0.0.1"
    pod["status"] = {"podIP": "10.0.0.2"}
    await api.apply(pod)
    assert (await api.client.get(path)).json()["status"]["podIP"] == "10.0.0.2"
    assert (await api.apply(pod)).json()["results"][0]["action"] == "unchanged"


async def test_events_are_server_sent(api, gateway):
    found: list[dict[str, Any]] = []

    async def read():
        query = {"filter": "kind=VirtualService"}
        async with api.client.stream("GET", "/v1/events", params=query) as stream:
            async for line in stream.aiter_lines():
                if line == ": events":
                    started.set()
                if line.startswith("data: "):
                    found.append(json.loads(line[6:]))
                if len(found) == 4:
                    return

    started = asyncio.Event()
    task = asyncio.create_task(read())
    await asyncio.wait_for(started.wait(), 10)
    await create(api)
    await api.client.delete(f"{VIRTUAL_SERVICES}/reviews")
    await asyncio.wait_for(task, 10)
    verbs = [event["type"].rsplit(".", 1)[1] for event in found]
    assert sorted(verbs) == ["applied", "converged", "converged", "deleted"]
    assert verbs.index("applied") < verbs.index("deleted")
    assert found[0]["subject"] == "default/reviews"
    assert found[0]["data"]["user"] == "ann"
    past = await api.client.get("/v1/events", params={"since": "5m", "follow": "false"})
    assert '"io.meshbus.virtualservice.converged"' in past.text


async def test_credentials_go_sealed_to_who_asks(api):
    await api.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
         "data": {"tls.crt": "Y2VydA=="}}
    )  # fmt: skip
    mine = recipient()
    bus = api.bus("xds-gateway")
    request = CredentialRequest("default", "s", mine.public_key)
    reply = await call(bus, CREDENTIAL, request, CredentialReply)
    assert json.loads(mine.open(reply.sealed)) == {"tls.crt": "Y2VydA=="}
    await api.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
         "data": {"tls.crt": "bmV3"}}
    )  # fmt: skip
    changed = await call(bus, CREDENTIAL, request, CredentialReply)
    assert "" != changed.edition != reply.edition != "", "who asks can tell which one it is"
    with pytest.raises(CallError) as refused:
        await call(
            bus, CREDENTIAL, CredentialRequest("default", "x", mine.public_key), CredentialReply
        )
    assert refused.value.code == "not-found"


async def test_the_api_describes_itself(api):
    for path in ("/openapi.json", "/asyncapi.json", "/version", "/api", "/apis", "/openapi/v3"):
        assert (await api.client.get(path)).status_code == 200
    resources = (await api.client.get("/apis/networking.istio.io/v1")).json()["resources"]
    names = {resource["name"] for resource in resources}
    assert {"virtualservices", "virtualservices/status", "gateways"} <= names
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    aggregated = await api.client.get("/apis", headers={"accept": accept})
    assert aggregated.json()["kind"] == "APIGroupDiscoveryList"
    assert aggregated.headers["content-type"] == accept
    index = (await api.client.get("/openapi/v3")).json()["paths"]
    where = index["apis/networking.istio.io/v1"]["serverRelativeURL"]
    assert (await api.client.get(where)).json()["openapi"].startswith("3.")


async def test_a_second_replica_reads_and_leaves_writing_to_the_leader(api, tmp_path):
    context = make_context(api.bus("config"), tmp_path, "config-1")
    key = (api.context.state / "secrets.key").read_bytes()
    (context.state / "secrets.key").write_bytes(key)
    (context.state / "secrets.key").chmod(0o600)
    task = asyncio.create_task(ConfigService(context).run())
    await until_ready(context, task)
    try:
        made = await create(api)
        async with client_of(context) as client:
            query = {"resourceVersion": made["metadata"]["resourceVersion"]}
            read = (await client.get(f"{VIRTUAL_SERVICES}/reviews", params=query)).json()
            # Its status, which the leader writes, may have come meanwhile.
            read.pop("status", None)
            version = made["metadata"].pop("resourceVersion")
            assert int(read["metadata"].pop("resourceVersion")) >= int(version)
            assert read == made
            refused = await client.post(VIRTUAL_SERVICES, json=virtual_service("two"))
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            api.task.cancel()

            async def taken_over():
                written = await client.post(VIRTUAL_SERVICES, json=virtual_service("two"))
                return written.status_code == 201

            await until(taken_over, 30)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
