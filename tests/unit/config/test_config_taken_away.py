"""Taking away what other objects name: a warning, or refused where somebody asked for that."""

import httpx
import pytest

API = "networking.istio.io/v1"
RULES = "/apis/networking.istio.io/v1/namespaces/default/destinationrules"


def thing(kind: str, name: str, spec, *, api: str = API, **metadata):
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}


SERVICE = thing("Service", "reviews", {"ports": [{"name": "http", "port": 80}]}, api="v1")


def rule(*subsets: str, **metadata):
    listed = [{"name": name, "labels": {"version": name}} for name in subsets]
    spec = {"host": "reviews", "subsets": listed}
    return thing("DestinationRule", "reviews", spec, **metadata)


def route(subset: str, name: str = "reviews"):
    target = {"destination": {"host": "reviews", "subset": subset}}
    return thing("VirtualService", name, {"hosts": [name], "http": [{"route": [target]}]})


async def delete(api, *documents, **query: str) -> httpx.Response:
    return await api.client.post("/v1/delete", json=list(documents), params=query)


@pytest.fixture
async def routed(api):
    answer = await api.apply(SERVICE, rule("v1", "v2"), route("v1"))
    assert answer.status_code == 200, answer.text
    assert not any("warnings" in one for one in answer.json()["results"])
    return api


PATH = "spec.http[0].route[0].destination.subset"
LOST = f"VirtualService default/reviews names it: {PATH}: no DestinationRule"


async def test_whoever_deletes_is_warned(routed) -> None:
    answer = await routed.client.delete(f"{RULES}/reviews")
    assert answer.status_code == 200
    assert LOST in answer.headers["warning"]


async def test_a_subset_that_goes_is_a_warning_and_one_that_comes_is_none(routed) -> None:
    (result,) = (await routed.apply(rule("v2", "v3"))).json()["results"]
    assert [w.startswith(LOST) for w in result["warnings"]] == [True]
    (result,) = (await routed.apply(rule("v1", "v2", "v3"))).json()["results"]
    assert "warnings" not in result


async def test_what_moves_in_the_same_change_is_no_loss(routed) -> None:
    answer = await routed.apply(rule("v3"), route("v3"))
    assert not any("warnings" in one for one in answer.json()["results"])
    answer = await delete(routed, rule(), route("v3"))
    assert not any("warnings" in one for one in answer.json()["results"])


async def test_a_service_is_named_by_its_rules_and_routes(routed) -> None:
    (result,) = (await delete(routed, SERVICE)).json()["results"]
    assert len(result["warnings"]) == 2
    assert any("DestinationRule default/reviews" in text for text in result["warnings"])


async def test_refused_by_flag(routed) -> None:
    answer = await delete(routed, rule(), keepReferenced="true", atomic="false")
    (result,) = answer.json()["results"]
    assert result["error"]["code"] == 409
    assert result["error"]["causes"][0]["field"] == PATH
    assert (await routed.client.get(f"{RULES}/reviews")).status_code == 200
    assert (await delete(routed, rule(), keepReferenced="true")).status_code == 409
    assert (await delete(routed, route("v1"), rule(), keepReferenced="true")).status_code == 200


@pytest.mark.parametrize("on", ["object", "namespace"])
async def test_refused_by_annotation(routed, on: str) -> None:
    keep = {"meshbus.io/keep-while-referenced": "true"}
    if on == "object":
        await routed.apply(rule("v1", "v2", annotations=keep))
    else:
        space = {"name": "default", "annotations": keep}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": space}
        assert (await routed.apply(namespace)).status_code == 200
    refused = await routed.client.delete(f"{RULES}/reviews")
    assert refused.status_code == 409
    assert "still named by VirtualService default/reviews" in refused.json()["message"]
    same = {"annotations": keep} if on == "object" else {}
    assert (await routed.apply(rule("v2", **same))).status_code == 409, "a subset that is named"
    await routed.client.delete(
        "/apis/networking.istio.io/v1/namespaces/default/virtualservices/reviews"
    )
    assert (await routed.client.delete(f"{RULES}/reviews")).status_code == 200
