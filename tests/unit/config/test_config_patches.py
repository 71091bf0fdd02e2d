"""JSON patch, merge patch and strategic merge patch."""

import pytest
from meshbus_config.patches import PatchError, PatchTestError, json_patch, merge_patch
from meshbus_config.strategic_merge import strategic_merge


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a"], {"a": "b"}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_as_the_rfc_shows_it(target, patch, expected):
    assert merge_patch(target, patch) == expected


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [
        ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": 1}], {"foo": "bar", "baz": 1}),
        ({"foo": [1, 3]}, [{"op": "add", "path": "/foo/1", "value": 2}], {"foo": [1, 2, 3]}),
        ({"foo": [1]}, [{"op": "add", "path": "/foo/-", "value": [2]}], {"foo": [1, [2]]}),
        ({"a": 1, "b": 2}, [{"op": "remove", "path": "/a"}], {"b": 2}),
        ({"a": [1, 2, 3]}, [{"op": "remove", "path": "/a/1"}], {"a": [1, 3]}),
        ({"a": 1}, [{"op": "replace", "path": "/a", "value": None}], {"a": None}),
        ({"a": {"b": 1}, "c": {}}, [{"op": "move", "from": "/a/b", "path": "/c/b"}],
         {"a": {}, "c": {"b": 1}}),
        ({"a": {"b": 1}}, [{"op": "copy", "from": "/a", "path": "/c"}],
         {"a": {"b": 1}, "c": {"b": 1}}),
        ({"a/b": 1, "m~n": 2}, [{"op": "remove", "path": "/a~1b"},
                                {"op": "replace", "path": "/m~0n", "value": 3}], {"m~n": 3}),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": 1}], {"a": 1}),
    ],
)  # fmt: skip
def test_json_patch_as_the_rfc_shows_it(target, patch, expected):
    assert json_patch(target, patch) == expected


@pytest.mark.parametrize(
    "patch",
    [
        [{"op": "remove", "path": "/none"}],
        [{"op": "replace", "path": "/none", "value": 1}],
        [{"op": "add", "path": "/list/9", "value": 1}],
        [{"op": "add", "path": "/list/01", "value": 1}],
        [{"op": "add", "path": "a", "value": 1}],
        [{"op": "add", "path": "/a"}],
        [{"op": "move", "from": "/map", "path": "/map/inside"}],
        [{"op": "spam", "path": "/a"}],
        {"op": "add"},
    ],
)
def test_a_json_patch_that_does_not_fit_changes_nothing(patch):
    target = {"list": [1], "map": {"b": 1}}
    with pytest.raises(PatchError):
        json_patch(target, patch)
    assert target == {"list": [1], "map": {"b": 1}}


def test_json_patch_test_tells_true_from_one():
    with pytest.raises(PatchTestError):
        json_patch({"a": True}, [{"op": "test", "path": "/a", "value": 1}])


SERVICE = {
    "spec": {
        "ports": [
            {"name": "http", "port": 80, "protocol": "TCP"},
            {"name": "grpc", "port": 90, "protocol": "TCP"},
        ],
        "selector": {"app": "a"},
    }
}


def test_strategic_merge_finds_ports_by_number():
    patch = {
        "spec": {
            "$setElementOrder/ports": [{"port": 90}, {"port": 80}],
            "ports": [{"port": 80, "targetPort": 8080}],
        }
    }
    ports = strategic_merge(SERVICE, patch, "Service")["spec"]["ports"]
    assert ports == [
        {"name": "grpc", "port": 90, "protocol": "TCP"},
        {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080},
    ]


def test_strategic_merge_deletes_and_replaces():
    gone = {"spec": {"ports": [{"$patch": "delete", "port": 80}], "selector": None}}
    assert strategic_merge(SERVICE, gone, "Service") == {
        "spec": {"ports": [{"name": "grpc", "port": 90, "protocol": "TCP"}]}
    }
    whole = {"spec": {"selector": {"$patch": "replace", "new": "b"}}}
    assert strategic_merge(SERVICE, whole, "Service")["spec"]["selector"] == {"new": "b"}
    lists = {"spec": {"ports": [{"$patch": "replace"}, {"port": 1}]}}
    assert strategic_merge(SERVICE, lists, "Service")["spec"]["ports"] == [{"port": 1}]


def test_strategic_merge_of_sets():
    held = {"metadata": {"finalizers": ["a", "b"]}}
    patch = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}
    merged = strategic_merge(held, patch, "Service")
    assert merged == {"metadata": {"finalizers": ["b", "c"]}}


def test_strategic_merge_needs_keys():
    with pytest.raises(PatchError, match="port"):
        strategic_merge(SERVICE, {"spec": {"ports": [{"name": "x"}]}}, "Service")
