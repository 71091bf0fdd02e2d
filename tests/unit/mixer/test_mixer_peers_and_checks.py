"""Peers found among workloads; deniers and lists as Istio 1.4's samples use them."""

import pytest
import yaml

from meshbus.mixer.checks import OK, judge, load_checks
from meshbus.mixer.program import Bag
from meshbus.mixer.values import parse_ip
from meshbus.mixer.workloads import Peer, find_peer, host_of, source_attributes
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, WorkloadInstance
from meshbus.model.world import world_of

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"


def instance(name, workload, account, address, **labels):
    return WorkloadInstance(
        name, "default", workload, account, labels={"app": "reviews", **labels}, addresses=[address]
    )


def world(*rows):
    return world_of({Key("c", "reg", "workloads", r.namespace, r.name): r for r in rows})


MESH = world(
    instance("reviews-v1-0", "reviews-v1", "reviews", "10.0.0.1", version="v1"),
    instance("reviews-v2-0", "reviews-v2", "reviews", "10.0.0.2", version="v2"),
    instance("reviews-v2-1", "reviews-v2", "reviews", "10.0.0.3", version="v2"),
    instance("details-0", "details", "details", "10.0.0.4"),
)


@pytest.mark.parametrize(
    ("peer", "found"),
    [
        (Peer(REVIEWS, "CN=reviews-v2", "10.0.0.3"), "reviews-v2-1"),
        (Peer(REVIEWS, "CN=reviews-v2,O=x", "127.0.0.1"), "reviews-v2-0"),
        (Peer(REVIEWS, "", "10.0.0.1"), "reviews-v1-0"),
        (Peer(REVIEWS, "", "127.0.0.1"), None),
        (Peer(REVIEWS, "CN=reviews-v1", "10.0.0.4"), "reviews-v1-0"),
        (Peer("spiffe://cluster.local/ns/default/sa/details", "", ""), "details-0"),
        (Peer("", "", "10.0.0.4"), "details-0"),
        (Peer("", "CN=reviews-v1", "10.9.9.9"), None),
        (Peer("spiffe://cluster.local/other", "", "10.0.0.4"), None),
    ],
)
def test_who_is_at_the_other_end(peer, found):
    row = find_peer(MESH, peer)
    assert (row and row.name) == found


def test_an_address_does_not_overrule_a_certificate():
    attributes = source_attributes(MESH, Peer(REVIEWS, "CN=reviews-v1", "10.0.0.4"))
    assert attributes["source.labels"] == {"app": "reviews", "version": "v1"}
    assert attributes["source.principal"] == "cluster.local/ns/default/sa/reviews"
    assert attributes["source.ip"] == parse_ip("10.0.0.4")


def test_hosts_of_addresses():
    texts = ["10.0.0.1:80", "[::1]:80", "::1", "10.0.0.1", ""]
    assert [host_of(text) for text in texts] == ["10.0.0.1", "::1", "::1", "10.0.0.1", ""]


DENY = """
kind: handler
metadata: {name: deny}
spec: {compiledAdapter: denier, params: {status: {code: 7, message: Not allowed}}}
---
kind: instance
metadata: {name: request}
spec: {compiledTemplate: checknothing}
---
kind: rule
metadata: {name: denyv3}
spec:
  match: destination.labels["app"] == "ratings" && source.labels["version"] == "v3"
  actions: [{handler: deny, instances: [request]}]
"""
LIST = """
kind: listchecker
metadata: {name: list}
spec: {overrides: ["v1", "v2"], blacklist: false}
---
kind: listentry
metadata: {name: version}
spec: {value: 'source.labels["version"]'}
---
kind: rule
metadata: {name: versions}
spec: {actions: [{handler: list.listchecker, instances: [version.listentry]}]}
"""
PLURALS = {
    "handler": "handlers",
    "instance": "instances",
    "rule": "rules",
    "listchecker": "listcheckers",
    "listentry": "listentries",
}


def config(text, namespace="default"):
    rows = {}
    for document in yaml.safe_load_all(text):
        kind, name = document["kind"], document["metadata"]["name"]
        row = ConfigObject("v", kind, namespace, name, "", 1, 0.0, spec=document["spec"])
        rows.setdefault(PLURALS[kind], []).append(row)
    return load_checks(rows, "istio-system")


def bag(version=None, app="ratings"):
    labels = {"version": version} if version else {}
    return Bag({"destination.labels": {"app": app}, "source.labels": labels})


def test_a_denier_refuses_what_its_rule_matches():
    checks = config(DENY)
    assert checks.problems == ()
    assert judge(checks, "default", bag("v3")) == (7, "deny.handler.default:Not allowed")
    assert judge(checks, "default", bag("v2")).code == OK
    assert judge(checks, "default", bag()).code == OK
    assert judge(checks, "other", bag("v3")).code == OK


def test_lists():
    checks = config(LIST)
    assert judge(checks, "default", bag("v1")).code == OK
    assert judge(checks, "default", bag("v3")).message.endswith("v3 is not whitelisted")
    # Without label the text is empty; without labels there is nothing to look for.
    assert judge(checks, "default", bag()).message.endswith(" is not whitelisted")
    assert judge(checks, "default", Bag({"destination.labels": {}})).code == 13
    blacklist = config(LIST.replace("blacklist: false", "blacklist: true"))
    assert judge(blacklist, "default", bag("v1")).message.endswith("v1 is blacklisted")
    assert judge(blacklist, "default", bag("v3")).code == OK


@pytest.mark.parametrize(
    ("form", "entries", "value", "passes"),
    [
        ("IP_ADDRESSES", '["10.57.0.0/16"]', "10.57.1.2", True),
        ("IP_ADDRESSES", '["10.57.0.0/16"]', "10.58.1.2", False),
        ("IP_ADDRESSES", '["2001:db8::1"]', "2001:db8::2", False),
        ("IP_ADDRESSES", '["10.57.0.0/16"]', "nonsense", False),
        ("CASE_INSENSITIVE_STRINGS", '["V1"]', "v1", True),
        ("REGEX", '["^v[12]$"]', "v2", True),
        ("REGEX", '["^v[12]$"]', "v22", False),
    ],
)
def test_forms_of_lists(form, entries, value, passes):
    checks = config(LIST.replace('["v1", "v2"]', f"{entries}, entryType: {form}"))
    assert (judge(checks, "default", bag(value)).code == OK) is passes


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("overrides:", "providerUrl: http://x, overrides:", "spec.providerUrl"),
        ("blacklist: false", "entryType: WRONG", "spec.entryType"),
        ('["v1", "v2"]', '["("], entryType: REGEX', "spec.overrides[0]"),
        ("source.labels[", "nobody[", "spec.value"),
    ],
)
def test_what_is_wrong_is_named(old, new, path):
    assert [p.path for p in config(LIST.replace(old, new)).problems] == [path]
