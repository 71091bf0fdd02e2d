"""Server-side apply: who manages which field."""

from meshbus_config import apply_merge
from meshbus_config.apply_merge import Writer
from meshbus_config.field_sets import Shapes, leaves, managed_fields_of, owners_of

ISTIO = Shapes("VirtualService", core=False)
SERVICE = Shapes("Service", core=True)


def by(manager, time="2026-01-01T00:00:00Z"):
    return Writer(manager, "networking.istio.io/v1", time)


def spec(**fields):
    return {"metadata": {"name": "x"}, "spec": fields}


def test_an_applier_owns_what_it_applies_and_drops_what_it_leaves_out():
    live, owners = apply_merge.apply(
        spec(hosts=["a"], gateways=["mesh"]), {"metadata": {}}, [], by("ann"), ISTIO
    )
    assert live["spec"] == {"hosts": ["a"], "gateways": ["mesh"]}
    live, owners = apply_merge.apply(spec(hosts=["a"]), live, owners, by("ann"), ISTIO)
    assert live["spec"] == {"hosts": ["a"]}


def test_what_others_manage_stays():
    live, owners = apply_merge.apply(
        spec(hosts=["a"], gateways=["g"]), {"metadata": {}}, [], by("ann"), ISTIO
    )
    live, owners = apply_merge.apply(spec(gateways=["g"]), live, owners, by("bob"), ISTIO)
    live, owners = apply_merge.apply(spec(hosts=["a"]), live, owners, by("ann"), ISTIO)
    assert live["spec"] == {"hosts": ["a"], "gateways": ["g"]}
    live, owners = apply_merge.apply(spec(), live, owners, by("bob"), ISTIO)
    assert live["spec"] == {"hosts": ["a"]}


def test_another_value_conflicts_and_the_same_value_is_shared():
    live, owners = apply_merge.apply(spec(hosts=["a"]), {"metadata": {}}, [], by("ann"), ISTIO)
    assert not apply_merge.conflicts(spec(hosts=["a"]), live, owners, by("bob"), ISTIO)
    found = apply_merge.conflicts(spec(hosts=["b"]), live, owners, by("bob"), ISTIO)
    assert [(c.owner.manager, c.path) for c in found] == [("ann", ".spec.hosts")]
    assert not apply_merge.conflicts(spec(hosts=["b"]), live, owners, by("ann"), ISTIO)


def test_force_takes_the_field_over():
    live, owners = apply_merge.apply(spec(hosts=["a"]), {"metadata": {}}, [], by("ann"), ISTIO)
    live, owners = apply_merge.apply(spec(hosts=["b"]), live, owners, by("bob"), ISTIO)
    assert live["spec"]["hosts"] == ["b"]
    live, owners = apply_merge.apply(spec(), live, owners, by("ann"), ISTIO)
    assert live["spec"]["hosts"] == ["b"]


def test_an_update_owns_what_it_changes():
    live, owners = apply_merge.apply(
        spec(hosts=["a"], gateways=["g"]), {"metadata": {}}, [], by("ann"), ISTIO
    )
    after = spec(hosts=["b"], gateways=["g"])
    owners = apply_merge.update(after, live, owners, by("kubectl-edit"), ISTIO)
    found = apply_merge.conflicts(spec(hosts=["a"]), after, owners, by("ann"), ISTIO)
    assert [(c.owner.manager, c.path) for c in found] == [("kubectl-edit", ".spec.hosts")]


def test_keyed_lists_are_managed_by_item():
    ports = [{"port": 80, "name": "http"}]
    live, owners = apply_merge.apply(
        spec(ports=ports, selector={"a": "b"}), {"metadata": {}}, [], by("ann"), SERVICE
    )
    more = spec(ports=[{"port": 90, "protocol": "TCP", "name": "grpc"}])
    assert not apply_merge.conflicts(more, live, owners, by("bob"), SERVICE)
    live, owners = apply_merge.apply(more, live, owners, by("bob"), SERVICE)
    assert [p["port"] for p in live["spec"]["ports"]] == [80, 90]
    live, owners = apply_merge.apply(spec(selector={"a": "b"}), live, owners, by("ann"), SERVICE)
    assert live["spec"]["ports"] == [{"port": 90, "protocol": "TCP", "name": "grpc"}]


def test_a_selector_is_managed_as_a_whole():
    live, owners = apply_merge.apply(
        spec(selector={"a": "b"}), {"metadata": {}}, [], by("ann"), SERVICE
    )
    found = apply_merge.conflicts(spec(selector={"c": "d"}), live, owners, by("bob"), SERVICE)
    assert [c.path for c in found] == [".spec.selector"]


def test_labels_are_managed_one_by_one():
    live, owners = apply_merge.apply(
        {"metadata": {"labels": {"a": "1", "b": "2"}}}, {"metadata": {}}, [], by("ann"), ISTIO
    )
    live, owners = apply_merge.apply(
        {"metadata": {"labels": {"c": "3"}}}, live, owners, by("bob"), ISTIO
    )
    live, owners = apply_merge.apply(
        {"metadata": {"labels": {"a": "1"}}}, live, owners, by("ann"), ISTIO
    )
    assert live["metadata"]["labels"] == {"a": "1", "c": "3"}
    live, owners = apply_merge.apply({"metadata": {}}, live, owners, by("ann"), ISTIO)
    live, owners = apply_merge.apply({"metadata": {}}, live, owners, by("bob"), ISTIO)
    assert "labels" not in live.get("metadata", {})


def test_managed_fields_survive_their_wire_form():
    document = spec(ports=[{"port": 80}], selector={"a": "b"}, weird={"a.b/c": {}, "e": []})
    document["metadata"]["finalizers"] = ["x"]
    _, owners = apply_merge.apply(document, {"metadata": {}}, [], by("ann"), SERVICE)
    wire = managed_fields_of(owners)
    fields = wire[0]["fieldsV1"]
    assert fields["f:spec"]["f:ports"] == {
        'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:port": {}}
    }
    assert fields["f:metadata"]["f:finalizers"] == {'v:"x"': {}}
    assert owners_of(wire)[0].fields == frozenset(leaves(document, SERVICE))


def test_an_apply_that_changes_nothing_keeps_the_time():
    live, owners = apply_merge.apply(spec(hosts=["a"]), {"metadata": {}}, [], by("ann"), ISTIO)
    again, later = apply_merge.apply(
        spec(hosts=["a"]), live, owners, by("ann", "2027-01-01T00:00:00Z"), ISTIO
    )
    assert again == live
    assert managed_fields_of(later) == managed_fields_of(owners)
