"""A stock kubectl against the API, as a person uses it."""

import asyncio
import json
import os

import pytest
import yaml
from config_objects import reviews_service, reviews_virtual_service

pytestmark = [pytest.mark.real, pytest.mark.slow]


async def test_apply_get_describe_and_delete(kubectl):
    service, routes = reviews_service(), reviews_virtual_service()
    assert "service/reviews created" in await kubectl.apply(service, routes)
    assert "virtualservice.networking.istio.io/reviews unchanged" in await kubectl.apply(routes)
    routes["spec"]["http"][0]["timeout"] = "3s"
    assert "configured" in await kubectl.apply(routes)

    table = await kubectl.run("get", "vs,svc")
    assert "GATEWAYS" in table
    assert '["reviews"]' in table
    assert "9080/TCP" in table
    wide = await kubectl.run("get", "services", "-o", "wide", "-A")
    assert "app=reviews" in wide
    read = yaml.safe_load(await kubectl.run("get", "virtualservice", "reviews", "-o", "yaml"))
    assert read["spec"] == routes["spec"]
    assert read["metadata"]["generation"] == 2
    names = await kubectl.run("get", "vs", "-l", "team=books", "-o", "name")
    assert names.strip() == "virtualservice.networking.istio.io/reviews"
    path = await kubectl.run("get", "vs", "reviews", "-o", "jsonpath={.spec.http[0].timeout}")
    assert path == "3s"

    described = await kubectl.run("describe", "vs", "reviews")
    assert "Timeout:" in described
    described = await kubectl.run("describe", "svc", "reviews")
    assert "Selector:" in described
    assert "default" in await kubectl.run("describe", "ns", "default")

    assert "deleted" in await kubectl.run("delete", "vs", "reviews")
    missing = await kubectl.run("get", "vs", "reviews", code=1)
    assert 'virtualservices.networking.istio.io "reviews" not found' in missing


async def test_discovery_and_explain(kubectl):
    resources = await kubectl.run("api-resources")
    assert "virtualservices" in resources
    assert "vs " in resources
    assert "networking.istio.io/v1beta1" in await kubectl.run("api-versions")
    explained = await kubectl.run("explain", "virtualservice.spec.http.timeout")
    assert "timeout" in explained
    explained = await kubectl.run("explain", "service.spec.ports")
    assert "FIELDS" in explained
    assert "yes" in await kubectl.run("auth", "can-i", "create", "virtualservices")
    assert "ann" in await kubectl.run("auth", "whoami")
    assert "Server Version: v1.32" in await kubectl.run("version")


async def test_unknown_fields_and_broken_rules_are_named(kubectl):
    routes = reviews_virtual_service()
    routes["spec"]["htttp"] = []
    refused = await kubectl.apply(routes, code=1)
    assert "spec.htttp" in refused
    routes = reviews_virtual_service()
    routes["spec"]["http"] = [{}]
    good = reviews_service()
    refused = await kubectl.apply(routes, good, code=1)
    assert 'The VirtualService "reviews" is invalid' in refused
    assert "spec.http[0]" in refused
    assert "service/reviews created" in refused
    missing = await kubectl.run("apply", "-n", "none", "-f", "-", text=yaml.safe_dump(good), code=1)
    assert 'namespaces "none" not found' in missing


async def test_edit(kubectl, tmp_path):
    await kubectl.apply(reviews_virtual_service(), reviews_service())
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i -e 's/subset: v1/subset: v3/' -e 's/9080/9081/' \"$1\"\n")
    editor.chmod(0o755)
    env = {"KUBE_EDITOR": str(editor)}
    assert "edited" in await kubectl.run("edit", "vs", "reviews", env=env)
    read = json.loads(await kubectl.run("get", "vs", "reviews", "-o", "json"))
    assert read["spec"]["http"][0]["route"][0]["destination"]["subset"] == "v3"
    assert "edited" in await kubectl.run("edit", "svc", "reviews", env=env)
    port = await kubectl.run("get", "svc", "reviews", "-o", "jsonpath={.spec.ports[0].port}")
    assert port == "9081"


async def test_three_kinds_of_patch_and_small_verbs(kubectl):
    await kubectl.apply(reviews_virtual_service(), reviews_service())
    merge = json.dumps({"spec": {"hosts": ["reviews", "ratings"]}})
    assert "patched" in await kubectl.run("patch", "vs", "reviews", "--type=merge", "-p", merge)
    changes = json.dumps([{"op": "replace", "path": "/spec/hosts/0", "value": "details"}])
    await kubectl.run("patch", "vs", "reviews", "--type=json", "-p", changes)
    hosts = await kubectl.run("get", "vs", "reviews", "-o", "jsonpath={.spec.hosts}")
    assert json.loads(hosts) == ["details", "ratings"]
    strategic = json.dumps({"spec": {"ports": [{"name": "grpc", "port": 9090}]}})
    await kubectl.run("patch", "svc", "reviews", "-p", strategic)
    ports = await kubectl.run("get", "svc", "reviews", "-o", "jsonpath={.spec.ports[*].port}")
    assert ports.split() == ["9080", "9090"]
    refused = await kubectl.run("patch", "vs", "reviews", "-p", "{}", code=1)
    assert "strategic" in refused.lower() or "415" in refused or "format" in refused
    assert "labeled" in await kubectl.run("label", "vs", "reviews", "stage=one")
    assert "annotated" in await kubectl.run("annotate", "vs", "reviews", "note=x")
    status = json.dumps({"status": {"seen": True}})
    await kubectl.run(
        "patch", "vs", "reviews", "--subresource=status", "--type=merge", "-p", status
    )
    read = await kubectl.run("get", "vs", "reviews", "-o", "jsonpath={.status.seen}")
    assert read == "true"
    created = await kubectl.run("create", "namespace", "shop")
    assert "created" in created
    await kubectl.run("create", "configmap", "c", "-n", "shop", "--from-literal=a=b")
    await kubectl.run("create", "secret", "generic", "s", "-n", "shop", "--from-literal=a=b")
    assert "Opaque" in await kubectl.run("get", "secrets", "-n", "shop")
    await kubectl.run("delete", "namespace", "shop")
    assert "No resources found" in await kubectl.run("get", "secrets", "-n", "shop")


async def test_a_port_that_is_no_longer_applied_goes(kubectl):
    service = reviews_service()
    service["spec"]["ports"].append({"name": "grpc", "port": 9090, "protocol": "TCP"})
    await kubectl.apply(service)
    service["spec"]["ports"].pop(0)
    await kubectl.apply(service)
    ports = await kubectl.run("get", "svc", "reviews", "-o", "jsonpath={.spec.ports[*].port}")
    assert ports == "9090"


async def test_server_side_apply_and_its_conflict(kubectl):
    routes = reviews_virtual_service()
    ann = ("--server-side", "--field-manager=ann")
    bob = ("--server-side", "--field-manager=bob")
    assert "serverside-applied" in await kubectl.apply(routes, flags=ann)
    assert "serverside-applied" in await kubectl.apply(routes, flags=bob)
    routes["spec"]["http"][0]["timeout"] = "9s"
    refused = await kubectl.apply(routes, flags=bob, code=1)
    assert 'conflict with "ann"' in refused
    assert ".spec.http" in refused
    await kubectl.apply(routes, flags=(*bob, "--force-conflicts"))
    timeout = await kubectl.run("get", "vs", "reviews", "-o", "jsonpath={.spec.http[0].timeout}")
    assert timeout == "9s"
    managers = await kubectl.run(
        "get", "vs", "reviews", "--show-managed-fields",
        "-o", "jsonpath={.metadata.managedFields[*].manager}",
    )  # fmt: skip
    assert sorted(managers.split()) == ["ann", "bob"]


async def test_moving_from_client_side_to_server_side_apply(kubectl):
    routes = reviews_virtual_service()
    await kubectl.apply(routes)
    routes["metadata"]["labels"] = {}
    applied = await kubectl.apply(routes, flags=("--server-side",))
    assert "serverside-applied" in applied
    labels = await kubectl.run("get", "vs", "reviews", "-o", "jsonpath={.metadata.labels}")
    assert labels in ("", "{}")


async def test_diff(kubectl):
    routes = reviews_virtual_service()
    await kubectl.apply(routes)
    text = yaml.safe_dump(routes)
    assert await kubectl.run("diff", "-f", "-", text=text) == ""
    routes["spec"]["http"][0]["timeout"] = "7s"
    difference = await kubectl.run("diff", "-f", "-", text=yaml.safe_dump(routes), code=1)
    assert "+  - timeout: 7s" in difference or "timeout: 7s" in difference
    server_side = await kubectl.run(
        "diff", "--server-side", "--force-conflicts", "-f", "-", text=yaml.safe_dump(routes), code=1
    )
    assert "timeout: 7s" in server_side


async def test_watch_and_wait(kubectl):
    await kubectl.apply(reviews_virtual_service())
    watching = await kubectl.start("get", "vs", "-w", "--output-watch-events", "--show-labels")
    waiting = await kubectl.start("wait", "--for=delete", "vs/reviews", "--timeout=30s")
    try:
        assert watching.stdout is not None
        async with asyncio.timeout(30):
            assert b"EVENT" in await watching.stdout.readline()
            assert b"ADDED" in await watching.stdout.readline()
            await kubectl.run("label", "vs", "reviews", "x=y")
            # Its status is written meanwhile, which is a change as well.
            while b"x=y" not in (line := await watching.stdout.readline()):
                assert b"MODIFIED" in line
            assert b"MODIFIED" in line
            await kubectl.run("delete", "vs", "reviews")
            while b"DELETED" not in (line := await watching.stdout.readline()):
                assert b"MODIFIED" in line
            assert await waiting.wait() == 0
    finally:
        watching.kill()
        await watching.wait()
        if waiting.returncode is None:
            waiting.kill()
            await waiting.wait()
    table = await kubectl.start("get", "vs", "-w")
    try:
        assert table.stdout is not None
        await kubectl.apply(reviews_virtual_service())
        async with asyncio.timeout(30):
            lines = [await table.stdout.readline() for _ in range(2)]
        assert lines[0].split()[0] == b"NAME"
        assert lines[1].split()[0] == b"reviews"
    finally:
        table.kill()
        await table.wait()


async def test_a_backup_restores_a_mesh(kubectl, tmp_path):
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "cert", "namespace": "istio-system"},
        "stringData": {"tls.key": "none"},
    }
    await kubectl.apply(reviews_virtual_service(), reviews_service(), secret)
    kinds = "virtualservices,services,secrets"
    backup = tmp_path / "backup.yaml"
    backup.write_text(await kubectl.run("get", kinds, "-A", "-o", "yaml"))
    before = json.loads(await kubectl.run("get", kinds, "-A", "-o", "json"))
    await kubectl.run("delete", "vs,svc", "--all", "-n", "default")
    await kubectl.run("delete", "secret", "cert", "-n", "istio-system")
    restored = await kubectl.run("create", "-f", os.fspath(backup))
    assert restored.count("created") == 3
    after = json.loads(await kubectl.run("get", kinds, "-A", "-o", "json"))
    for old, new in zip(before["items"], after["items"], strict=True):
        assert old.get("spec") == new.get("spec")
        assert old.get("data") == new.get("data")
        assert old["metadata"]["name"] == new["metadata"]["name"]
