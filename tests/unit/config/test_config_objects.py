"""The verbs of the API on objects, as a client sees them."""

import asyncio
import base64
import json
import os

import pytest
from config_harness import client_of, make_context, running

from meshbus.bus.interface import MODEL
from meshbus.bus.memory import MemoryBus

VIRTUAL_SERVICES = "/apis/networking.istio.io/v1/namespaces/default/virtualservices"
SERVICES = "/api/v1/namespaces/default/services"
SECRETS = "/api/v1/namespaces/default/secrets"
MERGE = {"content-type": "application/merge-patch+json"}
APPLY = {"content-type": "application/apply-patch+yaml"}


def virtual_service(name="reviews", subset="v1", **metadata):
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, **metadata},
        "spec": {
            "hosts": [name],
            "http": [{"route": [{"destination": {"host": name, "subset": subset}}]}],
        },
    }


def service(name="reviews", *ports, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "ports": list(ports) or [{"name": "http", "port": 9080}],
            "selector": {"app": name},
            **spec,
        },
    }


async def create(api, document=None, path=VIRTUAL_SERVICES):
    answer = await api.client.post(path, json=document or virtual_service())
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_without_a_token_nothing_is_answered(api):
    for path in ("/version", "/api", VIRTUAL_SERVICES, "/v1/changes", "/nothing"):
        answer = await api.client.get(path, headers={"Authorization": "Bearer wrong-wrong-wrong"})
        assert (answer.status_code, answer.json()["reason"]) == (401, "Unauthorized")


async def test_an_object_is_created_read_and_deleted(api):
    made = await create(api)
    assert made["metadata"]["generation"] == 1
    assert made["metadata"]["namespace"] == "default"
    read = (await api.client.get(f"{VIRTUAL_SERVICES}/reviews")).json()
    assert read == made
    gone = await api.client.delete(f"{VIRTUAL_SERVICES}/reviews")
    assert gone.json()["status"] == "Success"
    assert gone.json()["details"]["uid"] == made["metadata"]["uid"]
    assert (await api.client.get(f"{VIRTUAL_SERVICES}/reviews")).status_code == 404


async def test_a_field_that_is_null_is_not_kept(api):
    document = virtual_service()
    document["spec"] |= {"gateways": None}
    document["spec"]["http"][0]["timeout"] = None
    assert (await create(api, document))["spec"] == virtual_service()["spec"]


async def test_every_served_version_shows_the_same_object(api):
    made = await create(api)
    path = VIRTUAL_SERVICES.replace("/v1/", "/v1alpha3/")
    old = (await api.client.get(f"{path}/reviews")).json()
    assert old.pop("apiVersion") == "networking.istio.io/v1alpha3"
    assert made.pop("apiVersion") == "networking.istio.io/v1"
    assert old == made


async def test_generate_name(api):
    document = virtual_service()
    document["metadata"] = {"generateName": "r-"}
    made = await create(api, document)
    assert made["metadata"]["name"].startswith("r-")
    assert len(made["metadata"]["name"]) == 7


async def test_a_second_create_conflicts(api):
    await create(api)
    again = await api.client.post(VIRTUAL_SERVICES, json=virtual_service())
    assert (again.status_code, again.json()["reason"]) == (409, "AlreadyExists")


async def test_only_a_new_spec_is_a_new_generation(api):
    made = await create(api)
    labelled = await api.client.patch(
        f"{VIRTUAL_SERVICES}/reviews", json={"metadata": {"labels": {"a": "b"}}}, headers=MERGE
    )
    assert labelled.json()["metadata"]["generation"] == 1
    assert labelled.json()["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]
    changed = await api.client.patch(
        f"{VIRTUAL_SERVICES}/reviews", json={"spec": {"hosts": ["other"]}}, headers=MERGE
    )
    assert changed.json()["metadata"]["generation"] == 2


async def test_a_write_that_changes_nothing_writes_nothing(api):
    made = await create(api)
    same = await api.client.put(f"{VIRTUAL_SERVICES}/reviews", json=made)
    assert same.status_code == 200
    assert same.json() == made
    assert "meshbus-change" not in same.headers


async def test_an_object_names_its_last_change_whatever_its_status(api):
    made = await api.client.post(VIRTUAL_SERVICES, json=virtual_service())
    change = made.headers["meshbus-change"]
    held = await api.client.get(f"{VIRTUAL_SERVICES}/reviews")
    assert held.headers["meshbus-change"] == change
    status = {**held.json(), "status": {"conditions": [{"type": "Seen", "status": "True"}]}}
    put = await api.client.put(f"{VIRTUAL_SERVICES}/reviews/status", json=status)
    assert put.status_code == 200, put.text
    held = await api.client.get(f"{VIRTUAL_SERVICES}/reviews")
    assert int(held.json()["metadata"]["resourceVersion"]) > int(change)
    assert held.headers["meshbus-change"] == change


async def test_an_old_resource_version_conflicts(api):
    made = await create(api)
    made["spec"]["hosts"] = ["two"]
    assert (await api.client.put(f"{VIRTUAL_SERVICES}/reviews", json=made)).status_code == 200
    made["spec"]["hosts"] = ["three"]
    stale = await api.client.put(f"{VIRTUAL_SERVICES}/reviews", json=made)
    assert (stale.status_code, stale.json()["reason"]) == (409, "Conflict")
    body = {"preconditions": {"uid": "another"}}
    other = await api.client.request("DELETE", f"{VIRTUAL_SERVICES}/reviews", json=body)
    assert other.status_code == 409


async def test_of_two_writers_at_once_one_loses(api):
    made = await create(api)
    async with asyncio.timeout(30):
        # The status that follows is a new version of the object too.
        while not made.get("status"):
            made = (await api.client.get(f"{VIRTUAL_SERVICES}/reviews")).json()
            await asyncio.sleep(0.01)
    bodies = [{**made, "spec": {**made["spec"], "hosts": [f"h{i}"]}} for i in range(5)]
    answers = await asyncio.gather(
        *(api.client.put(f"{VIRTUAL_SERVICES}/reviews", json=body) for body in bodies)
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]


async def test_an_invalid_object_is_refused_with_every_cause(api):
    document = virtual_service()
    document["spec"]["http"] = [{"route": [{"destination": {}}]}, {"timeout": "soon"}]
    answer = await api.client.post(VIRTUAL_SERVICES, json=document)
    status = answer.json()
    assert (answer.status_code, status["reason"]) == (422, "Invalid")
    fields = [cause["field"] for cause in status["details"]["causes"]]
    assert "spec.http[0].route[0].destination.host" in fields
    assert "spec.http[1].timeout" in fields
    assert status["details"]["kind"] == "VirtualService"
    assert (await api.client.get(VIRTUAL_SERVICES)).json()["items"] == []


@pytest.mark.parametrize(
    ("validation", "code"), [("Strict", 400), ("Warn", 201), ("Ignore", 201), ("", 201)]
)
async def test_unknown_fields_are_judged_as_asked(api, validation, code):
    document = virtual_service()
    document["spec"]["bogus"] = 1
    query = {"fieldValidation": validation} if validation else {}
    answer = await api.client.post(VIRTUAL_SERVICES, json=document, params=query)
    assert answer.status_code == code
    if code == 400:
        assert "spec.bogus" in answer.json()["message"]
        return
    assert "bogus" not in answer.json()["spec"]
    warned = "spec.bogus" in answer.headers.get("warning", "")
    assert warned is (validation != "Ignore")


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/apis/networking.istio.io/v1/nothings", None, 404),
        ("GET", "/apis/none.io/v1/virtualservices", None, 404),
        ("GET", "/nothing", None, 404),
        ("GET", f"{VIRTUAL_SERVICES}/none", None, 404),
        ("POST", "/apis/networking.istio.io/v1/namespaces/none/virtualservices",
         virtual_service(), 404),
        ("POST", "/apis/networking.istio.io/v1/virtualservices", virtual_service(), 400),
        ("POST", SERVICES, virtual_service(), 400),
        ("POST", VIRTUAL_SERVICES, virtual_service(namespace="other"), 400),
        ("POST", VIRTUAL_SERVICES, [1], 400),
        ("POST", VIRTUAL_SERVICES, virtual_service(labels={"a": 1}), 400),
        ("PUT", VIRTUAL_SERVICES, virtual_service(), 405),
        ("PUT", f"{VIRTUAL_SERVICES}/reviews", virtual_service(), 404),
        ("DELETE", "/api/v1/namespaces/default", None, 403),
        ("PATCH", f"{VIRTUAL_SERVICES}/reviews", {}, 415),
        ("GET", f"{VIRTUAL_SERVICES}?labelSelector=%3D", None, 400),
        ("GET", f"{VIRTUAL_SERVICES}?limit=x", None, 400),
        ("POST", f"{VIRTUAL_SERVICES}?dryRun=some", virtual_service(), 400),
        ("GET", "/v1/changes/x", None, 400),
        ("PUT", "/v1/apply", None, 405),
    ],
)  # fmt: skip
async def test_refusals_are_statuses(api, method, path, body, code):
    answer = await api.client.request(method, path, json=body)
    assert answer.status_code in (code, 422 if "labels" in json.dumps(body) else code)
    status = answer.json()
    assert (status["kind"], status["status"]) == ("Status", "Failure")
    assert status["code"] == answer.status_code
    assert status["message"]


async def test_a_body_of_more_than_ten_megabytes_is_refused(api):
    document = virtual_service(annotations={"a": "x" * (11 * 1024 * 1024)})
    answer = await api.client.post(VIRTUAL_SERVICES, json=document)
    assert (answer.status_code, answer.json()["reason"]) == (413, "RequestEntityTooLarge")


async def test_an_object_larger_than_a_message_is_refused(api):
    # Random, so that it does not shrink when it is compressed.
    notes = [base64.b64encode(os.urandom(600_000)).decode() for _ in range(9)]
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "big"},
                "spec": {"notes": notes}}  # fmt: skip
    answer = await api.client.post("/api/v1/namespaces/default/pods", json=document)
    assert (answer.status_code, answer.json()["reason"]) == (413, "RequestEntityTooLarge")


async def test_a_dry_run_shows_the_result_and_writes_nothing(api):
    dry = {"dryRun": "All"}
    made = await api.client.post(VIRTUAL_SERVICES, json=virtual_service(), params=dry)
    assert made.status_code == 201
    assert (await api.client.get(VIRTUAL_SERVICES)).json()["items"] == []
    await create(api)
    patched = await api.client.patch(
        f"{VIRTUAL_SERVICES}/reviews", json={"spec": {"hosts": ["x"]}}, headers=MERGE, params=dry
    )
    assert patched.json()["spec"]["hosts"] == ["x"]
    await api.client.delete(f"{VIRTUAL_SERVICES}/reviews", params=dry)
    read = await api.client.get(f"{VIRTUAL_SERVICES}/reviews")
    assert read.json()["spec"]["hosts"] == ["reviews"]


async def test_lists_are_paged_and_selected(api):
    for index in range(5):
        await create(api, virtual_service(f"r{index}", labels={"odd": str(index % 2)}))
    first = (await api.client.get(VIRTUAL_SERVICES, params={"limit": 2})).json()
    assert [item["metadata"]["name"] for item in first["items"]] == ["r0", "r1"]
    assert first["metadata"]["remainingItemCount"] == 3
    query = {"limit": 10, "continue": first["metadata"]["continue"]}
    rest = (await api.client.get(VIRTUAL_SERVICES, params=query)).json()
    assert [item["metadata"]["name"] for item in rest["items"]] == ["r2", "r3", "r4"]
    assert "continue" not in rest["metadata"]
    odd = (await api.client.get(VIRTUAL_SERVICES, params={"labelSelector": "odd=1"})).json()
    assert [item["metadata"]["name"] for item in odd["items"]] == ["r1", "r3"]
    everywhere = "/apis/networking.istio.io/v1/virtualservices"
    one = (await api.client.get(everywhere, params={"fieldSelector": "metadata.name=r4"})).json()
    assert len(one["items"]) == 1


async def test_deleting_a_collection_takes_what_is_selected(api):
    for index in range(4):
        await create(api, virtual_service(f"r{index}", labels={"odd": str(index % 2)}))
    await api.client.delete(VIRTUAL_SERVICES, params={"labelSelector": "odd=1"})
    left = (await api.client.get(VIRTUAL_SERVICES)).json()["items"]
    assert [item["metadata"]["name"] for item in left] == ["r0", "r2"]


async def test_a_namespace_takes_its_objects_along(api):
    await api.client.post("/api/v1/namespaces", json={"metadata": {"name": "shop"}})
    path = VIRTUAL_SERVICES.replace("default", "shop")
    await create(api, path=path)
    listed = (await api.client.get("/api/v1/namespaces/shop")).json()
    assert listed["metadata"]["labels"] == {"kubernetes.io/metadata.name": "shop"}
    assert listed["status"] == {"phase": "Active"}
    assert (await api.client.delete("/api/v1/namespaces/shop")).status_code == 200
    assert (await api.client.get(f"{path}/reviews")).status_code == 404
    assert (await api.client.post(path, json=virtual_service())).status_code == 404


async def test_finalizers_hold_an_object(api):
    await create(api, virtual_service(finalizers=["a.b/c"]))
    held = await api.client.delete(f"{VIRTUAL_SERVICES}/reviews")
    assert "deletionTimestamp" in held.json()["metadata"]
    await api.client.patch(
        f"{VIRTUAL_SERVICES}/reviews", json={"metadata": {"finalizers": None}}, headers=MERGE
    )
    assert (await api.client.get(f"{VIRTUAL_SERVICES}/reviews")).status_code == 404


async def test_a_watch_continues_a_list(api):
    listed = (await api.client.get(VIRTUAL_SERVICES)).json()
    query = {"watch": "1", "resourceVersion": listed["metadata"]["resourceVersion"]}
    events = []
    async with api.client.stream("GET", VIRTUAL_SERVICES, params=query) as stream:
        await create(api)
        await api.client.delete(f"{VIRTUAL_SERVICES}/reviews")
        async for line in stream.aiter_lines():
            events.append(json.loads(line))
            if len(events) == 2:
                break
    assert [event["type"] for event in events] == ["ADDED", "DELETED"]
    assert events[0]["object"]["kind"] == "VirtualService"
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions))


async def test_the_status_is_a_resource_of_its_own(api):
    made = await create(api, {**virtual_service(), "status": {"ignored": True}})
    assert "status" not in made
    path = f"{VIRTUAL_SERVICES}/reviews"
    patched = await api.client.patch(
        f"{path}/status", json={"status": {"a": 1}, "spec": {"hosts": ["x"]}}, headers=MERGE
    )
    assert patched.json()["status"] == {"a": 1}
    read = (await api.client.get(path)).json()
    assert read["spec"]["hosts"] == ["reviews"]
    assert int(read["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    assert read["metadata"]["generation"] == 1
    await api.client.delete(path)
    assert "status" not in await create(api)


async def test_json_patch_and_strategic_merge(api):
    await create(api, service(), SERVICES)
    path = f"{SERVICES}/reviews"
    tests = [
        {"op": "test", "path": "/spec/ports/0/port", "value": 9080},
        {"op": "add", "path": "/metadata/labels", "value": {"a": "b"}},
    ]
    json_patch = {"content-type": "application/json-patch+json"}
    patched = await api.client.patch(path, json=tests, headers=json_patch)
    assert patched.json()["metadata"]["labels"] == {"a": "b"}
    tests[0]["value"] = 1
    failed = await api.client.patch(path, json=tests, headers=json_patch)
    assert failed.status_code == 422
    strategic = {"content-type": "application/strategic-merge-patch+json"}
    more = {"spec": {"ports": [{"name": "grpc", "port": 9090}]}}
    merged = await api.client.patch(path, json=more, headers=strategic)
    assert [port["port"] for port in merged.json()["spec"]["ports"]] == [9080, 9090]
    await create(api)
    refused = await api.client.patch(f"{VIRTUAL_SERVICES}/reviews", json={}, headers=strategic)
    assert refused.status_code == 415


async def test_server_side_apply(api):
    path = f"{VIRTUAL_SERVICES}/reviews"
    ann, bob = {"fieldManager": "ann"}, {"fieldManager": "bob"}
    made = await api.client.patch(path, json=virtual_service(), headers=APPLY, params=ann)
    assert made.status_code == 201
    assert made.json()["metadata"]["managedFields"][0]["manager"] == "ann"
    other = virtual_service(subset="v2")
    refused = await api.client.patch(path, json=other, headers=APPLY, params=bob)
    assert refused.status_code == 409
    cause = refused.json()["details"]["causes"][0]
    assert cause == {
        "reason": "FieldManagerConflict",
        "message": 'conflict with "ann"',
        "field": ".spec.http",
    }
    forced = await api.client.patch(
        path, json=other, headers=APPLY, params={**bob, "force": "true"}
    )
    assert forced.json()["spec"]["http"][0]["route"][0]["destination"]["subset"] == "v2"
    missing = await api.client.patch(path, json=other, headers=APPLY)
    assert missing.status_code == 400


async def test_secrets_are_sealed_where_they_are_kept(api):
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "s",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "c2VjcmV0"},
        },
        "type": "Opaque",
        "data": {"a": "c2VjcmV0"},
        "stringData": {"b": "very secret"},
    }
    made = await create(api, secret, SECRETS)
    assert made["data"] == {"a": "c2VjcmV0", "b": "dmVyeSBzZWNyZXQ="}
    assert "stringData" not in made
    again = await api.client.put(f"{SECRETS}/s", json=made)
    assert again.json()["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    held = b"".join(m.data for m in api.server.streams["MODEL"].last.values())
    assert b"c2VjcmV0" not in held
    assert b"dmVyeSBzZWNyZXQ=" not in held


async def test_a_mesh_config_is_kept_with_the_names_and_values_of_json(api):
    path = "/apis/mesh.istio.io/v1alpha1/meshconfigs"
    spec = {"access_log_encoding": 1, "proxyListenPort": "15002"}
    made = await create(api, {"metadata": {"name": "mesh"}, "spec": spec}, path)
    assert made["spec"] == {"accessLogEncoding": "JSON", "proxyListenPort": 15002}


async def test_one_mesh_config_and_its_row(api):
    path = "/apis/mesh.istio.io/v1alpha1/meshconfigs"
    config = {"metadata": {"name": "mesh"}, "spec": {"enableTracing": True}}
    await create(api, config, path)
    rows = api.server.streams["MODEL"].last
    assert rows["m.Kubernetes.mesh.config.-.mesh"].data
    second = await api.client.post(path, json={**config, "metadata": {"name": "other"}})
    assert second.status_code == 409
    await api.client.delete(f"{path}/mesh")
    assert not rows["m.Kubernetes.mesh.config.-.mesh"].data


async def test_without_the_bus_reads_go_on_and_writes_are_refused(api):
    await create(api)
    api.server.stop()
    read = await api.client.get(f"{VIRTUAL_SERVICES}/reviews")
    assert read.status_code == 200
    refused = await api.client.post(VIRTUAL_SERVICES, json=virtual_service("two"))
    assert (refused.status_code, refused.json()["reason"]) == (503, "ServiceUnavailable")


class LagsBehind(MemoryBus):
    """Of a replica to which changes come late: once it has asked which row is the newest."""

    late = False

    def follower(self, stream, filters, applier, *, name=""):
        if stream == MODEL:
            self.waiting, self.applier, applier = [], applier, self
        return super().follower(stream, filters, applier, name=name)

    def begin(self):
        self.applier.begin()

    def apply(self, messages):
        if self.late:
            self.waiting += messages
        else:
            self.applier.apply(messages)

    def end(self, sequence):
        self.applier.end(sequence)

    async def last(self, stream, subject):
        found = await super().last(stream, subject)
        if self.waiting:
            asyncio.get_running_loop().call_soon(self.applier.apply, self.waiting)
            self.waiting = []
        return found


async def test_a_replica_that_is_behind_answers_with_what_was_written_last(api, tmp_path):
    await create(api)
    bus = LagsBehind(api.server, "config")
    other = make_context(bus, tmp_path, "config-1")
    async with running(other), client_of(other) as client:
        bus.late = True
        for path, subset in ((f"{VIRTUAL_SERVICES}/reviews", "v2"), (VIRTUAL_SERVICES, "v3")):
            changed = virtual_service(subset=subset)
            wrote = await api.client.put(f"{VIRTUAL_SERVICES}/reviews", json=changed)
            stale = await client.get(f"{VIRTUAL_SERVICES}/reviews?resourceVersion=0")
            assert stale.json()["spec"] != changed["spec"], "it is behind, and that will do"
            read = await client.get(path)
            found = read.json()
            assert (found["items"][0] if "items" in found else found)["spec"] == changed["spec"]
            if "items" not in found:
                assert read.headers["Meshbus-Change"] == wrote.headers["Meshbus-Change"]
        await api.client.delete(f"{VIRTUAL_SERVICES}/reviews")
        assert (await client.get(f"{VIRTUAL_SERVICES}/reviews")).status_code == 404


async def test_what_this_release_does_not_carry_out_is_refused(api):
    path = "/apis/config.istio.io/v1alpha2/namespaces/default/redisquotas"
    document = {
        "apiVersion": "config.istio.io/v1alpha2",
        "kind": "redisquota",
        "metadata": {"name": "quota"},
        "spec": {
            "redisServerUrl": "redis:6379",
            "quotas": [{"name": "q", "maxAmount": 1, "validDuration": "1s"}],
        },
    }
    refused = await api.client.post(path, json=document)
    assert refused.status_code == 422, refused.text
    causes = {c["field"]: c["reason"] for c in refused.json()["details"]["causes"]}
    assert causes == {"kind": "FieldValueForbidden"}


async def test_an_immutable_secret_keeps_its_content(api):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
              "data": {"a": "YQ=="}, "immutable": True}  # fmt: skip
    await create(api, secret, SECRETS)
    changed = await api.client.patch(f"{SECRETS}/s", json={"data": {"a": "Yg=="}}, headers=MERGE)
    assert changed.status_code == 422
    assert changed.json()["details"]["causes"][0]["field"] == "data"
    labelled = {"metadata": {"labels": {"x": "y"}}}
    answer = await api.client.patch(f"{SECRETS}/s", json=labelled, headers=MERGE)
    assert answer.status_code == 200


async def test_a_secret_sealed_with_a_lost_key_says_so(api, tmp_path):
    secret = {"metadata": {"name": "s"}, "stringData": {"a": "b"}}
    await create(api, secret, SECRETS)
    other = make_context(api.bus("config"), tmp_path, "config-1")
    async with running(other), client_of(other) as client:
        answer = await client.get(f"{SECRETS}/s")
        assert answer.status_code == 500
        assert "restore secrets.key" in answer.json()["message"]
        assert (await client.get("/api/v1/namespaces/default")).status_code == 200
