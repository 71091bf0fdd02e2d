"""Descriptors and authorization requests as attributes."""

from envoy.service.auth.v3 import attribute_context_pb2
from meshbus_policy.authorization import attributes_of
from meshbus_policy.descriptors import question_of

from meshbus.mixer.values import Timestamp, parse_ip
from meshbus.model.keys import Key
from meshbus.model.rows import WorkloadInstance
from meshbus.model.world import world_of

CLIENT = WorkloadInstance("a-0", "ns", "a", "a", labels={"app": "a"}, addresses=["10.0.0.1"])
SERVER = WorkloadInstance("b-0", "ns", "b", "b", labels={"app": "b"}, addresses=["10.0.0.2"])
WORLD = world_of({Key("c", "reg", "workloads", "ns", r.name): r for r in (CLIENT, SERVER)})


def test_a_descriptor_is_the_attributes_of_its_request():
    entries = {
        "quotaspec": "istio-system/request-count",
        "destination.namespace": "ns",
        "destination.labels[app]": "b",
        "destination.ip": "10.0.0.2:9080",
        "destination.port": "9080",
        "request.headers[:path]": "/p?a=1&a=2&b=%20",
        "request.headers[cookie]": "user=jason",
        "request.headers[content-type]": "application/grpc+proto",
        "connection.mtls": "true",
        "peer.uri": "spiffe://cluster.local/ns/ns/sa/a",
        "peer.subject": "CN=a",
        "peer.address": "10.0.0.1:4711",
    }
    question = question_of(entries.items(), WORLD, 5)
    assert question.spec == ("istio-system", "request-count")
    assert question.namespace == "ns"
    found = question.attributes
    expected = {
        "destination.labels": {"app": "b"},
        "destination.ip": parse_ip("10.0.0.2"),
        "destination.port": 9080,
        "destination.name": "b-0",
        "destination.uid": "kubernetes://b-0.ns",
        "request.path": "/p?a=1&a=2&b=%20",
        "request.url_path": "/p",
        "request.query_params": {"a": "1", "b": " "},
        "context.protocol": "grpc",
        "connection.mtls": True,
        "source.labels": {"app": "a"},
        "source.workload.name": "a",
        "source.principal": "cluster.local/ns/ns/sa/a",
        "request.time": Timestamp(5),
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["request.headers"]["cookie"] == "user=jason"


def test_what_is_not_ours_is_no_question():
    assert question_of([("generic_key", "x")], WORLD, 0) is None


def test_an_authorization_request_is_the_same_attributes():
    asked = attribute_context_pb2.AttributeContext()
    asked.source.principal = "spiffe://cluster.local/ns/ns/sa/a"
    asked.source.address.socket_address.address = "10.0.0.1"
    asked.destination.address.socket_address.address = "10.0.0.2"
    asked.destination.address.socket_address.port_value = 9080
    asked.request.http.path = "/x?q=1"
    asked.request.http.method = "GET"
    asked.request.http.host = "b"
    asked.request.http.headers["user-agent"] = "curl"
    asked.context_extensions["destination.service.name"] = "b"
    asked.context_extensions["source.labels"] = "forged"
    found = attributes_of(asked, "spiffe://cluster.local/ns/ns/sa/b", WORLD, 0)
    expected = {
        "source.labels": {"app": "a"},
        "destination.labels": {"app": "b"},
        "destination.namespace": "ns",
        "destination.service.name": "b",
        "request.method": "GET",
        "request.url_path": "/x",
        "request.host": "b",
        "request.useragent": "curl",
        "connection.mtls": True,
    }
    assert {name: found.get(name) for name in expected} == expected
