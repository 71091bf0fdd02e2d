"""What the registry derives; and that incremental equals from scratch."""

from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshbus.api.kinds import plural_of
from meshbus.compile.engine import Engine
from meshbus.compile.offline import object_of_document
from meshbus.compile.registry import Registry, rows_of_objects
from meshbus.compile.registry.virtual_addresses import VIP_NETWORK, virtual_addresses
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, EndpointShard, Row, Service, WorkloadInstance
from meshbus.model.world import world_of

C = "c"


def objects(text: str) -> dict[Key, ConfigObject]:
    out = {}
    for document in yaml.safe_load_all(text):
        row = object_of_document(document)
        out[Key(C, "cfg", plural_of(row.kind), row.namespace, row.name)] = row
    return out


def derived(text: str) -> dict[str, Row]:
    return {
        "/".join(filter(None, (k.table, k.namespace, k.name, k.shard))): row
        for k, row in rows_of_objects(objects(text)).items()
    }


REVIEWS = """
apiVersion: v1
kind: Service
metadata: {name: reviews, annotations: {networking.istio.io/exportTo: "a, b"}}
spec:
  selector: {app: reviews}
  clusterIP: 10.1.2.3
  ports:
  - {name: http, port: 80, targetPort: web}
  - {name: grpc-x, port: 81, targetPort: 8081}
  - {name: db, port: 3306}
  - {name: x, port: 82, appProtocol: kubernetes.io/h2c}
  - {name: dns, port: 53, protocol: UDP}
"""
HOST = "reviews.default.svc.cluster.local"
POD = """
apiVersion: v1
kind: Pod
metadata:
  name: reviews-v1-abc-xyz
  labels: {app: reviews, version: v1, pod-template-hash: abc, security.istio.io/tlsMode: istio}
  ownerReferences: [{kind: ReplicaSet, name: reviews-v1-abc}]
spec:
  nodeName: n1
  serviceAccountName: reviews
  containers: [{name: app, ports: [{name: web, containerPort: 9080}]}]
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Node
metadata:
  name: n1
  labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}
"""


def test_a_pod_whose_proxy_is_a_gateway() -> None:
    """As injection marks it: the proxy is the application, and nobody calls it by mutual TLS."""
    pod = """
apiVersion: v1
kind: Pod
metadata:
  name: edge-1
  labels: {istio: ingressgateway}
  annotations: {sidecar.istio.io/status: "{}", meshbus.io/proxy-type: router}
spec: {containers: [{name: istio-proxy}]}
status: {podIP: 10.0.0.9}
"""
    edge = derived(pod)["reg.workloads/default/edge-1"]
    assert isinstance(edge, WorkloadInstance)
    assert (edge.gateway, edge.sidecar, edge.tls_mode) == (True, False, "disabled")
    # Who is not in the mesh is no gateway of it, whatever its annotations say.
    alone = pod.replace('sidecar.istio.io/status: "{}", ', "").replace("istio-proxy", "web")
    plain = derived(alone)["reg.workloads/default/edge-1"]
    assert isinstance(plain, WorkloadInstance)
    assert (plain.gateway, plain.sidecar) == (False, False)


def test_service_and_pod() -> None:
    rows = derived(REVIEWS + "---" + POD)
    service = rows[f"reg.services/default/{HOST}"]
    assert isinstance(service, Service)
    assert [(p.number, p.protocol) for p in service.ports] == [
        (80, "HTTP"),
        (81, "GRPC"),
        (3306, "TCP"),
        (82, "HTTP2"),
        (53, "UDP"),
    ]
    assert service.addresses == ["10.1.2.3"]
    assert service.export_to == ["a", "b"]
    shard = rows[f"reg.endpoints/default/{HOST}/selected"]
    assert isinstance(shard, EndpointShard)
    (endpoint,) = shard.endpoints
    assert endpoint.addresses == ["10.0.0.1", "fd00::1"]
    assert endpoint.ports == {"http": 9080, "grpc-x": 8081, "db": 3306, "x": 82, "dns": 53}
    assert (endpoint.workload, endpoint.locality, endpoint.tls_mode) == (
        "reviews-v1",
        "r/z",
        "istio",
    )
    instance = rows["reg.workloads/default/reviews-v1-abc-xyz"]
    assert isinstance(instance, WorkloadInstance)
    assert (instance.sidecar, instance.dual_stack, instance.service_account) == (
        True,
        True,
        "reviews",
    )


def test_traffic_of_a_pod_that_is_not_redirected() -> None:
    assert derived(POD)["reg.workloads/default/reviews-v1-abc-xyz"].capture == "redirect"
    said = POD.replace(
        "metadata:", "metadata:\n  annotations: {sidecar.istio.io/interceptionMode: NONE}", 1
    )
    assert derived(said)["reg.workloads/default/reviews-v1-abc-xyz"].capture == "none"


def test_slices_come_before_pods() -> None:
    slice_ = """
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-1, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
ports: [{name: http, port: 9080}]
endpoints:
- {addresses: [10.0.0.1]}
- {addresses: [10.0.0.2], conditions: {ready: false}}
- {addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}
"""
    rows = derived(REVIEWS + "---" + POD + slice_)
    shard = rows[f"reg.endpoints/default/{HOST}/reviews-1"]
    assert isinstance(shard, EndpointShard)
    assert [(e.addresses[0], e.ready, e.draining) for e in shard.endpoints] == [
        ("10.0.0.1", True, False),
        ("10.0.0.2", False, False),
        ("10.0.0.3", False, True),
    ]
    assert shard.endpoints[0].labels["version"] == "v1"
    assert f"reg.endpoints/default/{HOST}/selected" not in rows


def test_a_service_without_an_address_gets_one() -> None:
    text = """
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{port: 80}], ipFamilyPolicy: PreferDualStack, selector: {app: a}}
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {ports: [{port: 80}], clusterIP: None}
"""
    rows = derived(text)
    a, b = (rows[f"reg.services/default/{n}.default.svc.cluster.local"] for n in "ab")
    assert isinstance(a, Service)
    assert isinstance(b, Service)
    assert a.addresses[0].startswith("240.240.")
    assert ":" in a.addresses[1]
    assert (b.addresses, b.headless) == ([], True)


def test_service_entries() -> None:
    text = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vms}
spec:
  hosts: [vm.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: web, protocol: HTTP, targetPort: 8080}]
  workloadSelector: {labels: {app: vm}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm1, labels: {x: y}}
spec: {address: 10.9.9.9, labels: {app: vm}, serviceAccount: vm, ports: {web: 9999}, weight: 3}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext}
spec:
  hosts: [api.example.com, www.example.com]
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}]
  endpoints: [{address: a.example.com, locality: r/z}]
"""
    rows = derived(text)
    shard = rows["reg.endpoints/default/vm.example.com/entry"]
    assert isinstance(shard, EndpointShard)
    (endpoint,) = shard.endpoints
    assert endpoint.ports == {"web": 9999}
    assert (endpoint.tls_mode, endpoint.weight) == ("istio", 3)
    for host in ("api.example.com", "www.example.com"):
        service = rows[f"reg.services/default/{host}"]
        assert isinstance(service, Service)
        assert (service.external, service.resolution) == (True, "DNS")
        assert service.dns_endpoints[0].addresses == ["a.example.com"]
        assert service.dns_endpoints[0].ports == {"tls": 443}


def test_the_older_of_two_entries_counts() -> None:
    def entry(name: str, created: str, port: int) -> str:
        return f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, creationTimestamp: "{created}"}}
spec: {{hosts: [x.example.com], resolution: DNS, ports: [{{number: {port}, name: p}}]}}
"""

    text = entry("a", "2026-01-02T00:00:00Z", 1) + "---" + entry("b", "2026-01-01T00:00:00Z", 2)
    service = derived(text)["reg.services/default/x.example.com"]
    assert isinstance(service, Service)
    assert service.ports[0].number == 2


def _reported(name: str, ready: bool = True) -> WorkloadInstance:
    return WorkloadInstance(
        name=name,
        namespace="default",
        workload="reviews",
        service_account="r",
        labels={"app": "reviews"},
        addresses=["127.1.1.1"],
        ready=ready,
        origin="workload",
    )


def test_reports_make_endpoints_that_die_and_go() -> None:
    registry = Registry(C)
    registry.put(objects(REVIEWS).items())
    registry.changes()
    shard = Key(C, "reg", "endpoints", "default", HOST, "selected")
    registry.report([_reported("reviews-0")])
    changes = dict(registry.changes())
    row = changes[shard]
    assert isinstance(row, EndpointShard)
    assert [e.ready for e in row.endpoints] == [True]
    registry.report([_reported("reviews-0")])
    assert registry.changes() == []
    registry.report([_reported("reviews-0", ready=False)])
    row = dict(registry.changes())[shard]
    assert isinstance(row, EndpointShard)
    assert [e.ready for e in row.endpoints] == [False]
    registry.report([], [("default", "reviews", "reviews-0")])
    changes = dict(registry.changes())
    assert changes[Key(C, "reg", "workloads", "default", "reviews-0")] is None
    row = changes[shard]
    assert isinstance(row, EndpointShard)
    assert row.endpoints == []


def test_a_bad_object_keeps_what_it_gave_and_harms_no_other() -> None:
    registry = Registry(C)
    registry.put(objects(REVIEWS).items())
    before = registry.rows()
    bad = object_of_document(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "reviews"},
            "spec": {
                "ports": [{"name": "http", "port": 80, "protocol": "HTTP"}],
                "selector": {"a": "b"},
                "clusterIPs": 7,
            },
        }
    )
    other = {**objects(REVIEWS.replace("name: reviews", "name: other"))}
    registry.put([(Key(C, "cfg", "services", "default", "reviews"), bad), *other.items()])
    rows = registry.rows()
    assert registry.problems
    assert rows.items() >= before.items()
    assert Key(C, "reg", "services", "default", "other.default.svc.cluster.local") in rows


def test_work_follows_the_change() -> None:
    registry = Registry(C)
    names = [f"s{i}" for i in range(50)]
    registry.put(
        (
            Key(C, "cfg", "services", "default", name),
            object_of_document(
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "metadata": {"name": name},
                    "spec": {
                        "selector": {"app": name},
                        "ports": [{"port": 80}],
                        "clusterIP": "10.0.0.1",
                    },
                }
            ),
        )
        for name in names
    )
    registry.changes()
    before = registry._engine.counters.copy()
    registry.report([_instance_of("s7")])
    assert {key.table for key, _ in registry.changes()} == {"reg.endpoints", "reg.workloads"}
    done = registry._engine.counters.since(before)
    assert sum(done.recomputed.values()) == 1


def _instance_of(app: str) -> WorkloadInstance:
    return WorkloadInstance(
        name=f"{app}-0",
        namespace="default",
        workload=app,
        service_account="x",
        labels={"app": app},
        addresses=["127.1.1.1"],
        origin="workload",
    )


_POOL: list[dict[str, Any]] = [
    *yaml.safe_load_all(REVIEWS + "---" + POD),
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "other"},
        "spec": {"selector": {"version": "v1"}, "ports": [{"port": 1}]},
    },
    {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "default", "labels": {"a": "b"}},
    },
    {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": "se"},
        "spec": {
            "hosts": [HOST, "x.y"],
            "resolution": "STATIC",
            "ports": [{"number": 1, "name": "p"}],
            "workloadSelector": {"labels": {"app": "reviews"}},
        },
    },
    {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": "we"},
        "spec": {"address": "1.1.1.1", "labels": {"app": "reviews"}},
    },
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(_POOL) - 1), st.booleans()), max_size=25))
@example([(5, True), (0, True)])
@example([(0, True), (5, True), (0, False)])
def test_incremental_equals_from_scratch(steps: list[tuple[int, bool]]) -> None:
    registry = Registry(C, offline=True)
    held: dict[Key, ConfigObject] = {}
    rows: dict[Key, Row] = {}
    for index, present in steps:
        row = object_of_document(_POOL[index])
        key = Key(C, "cfg", plural_of(row.kind), row.namespace, row.name)
        if present:
            held[key] = row
        else:
            held.pop(key, None)
        registry.put([(key, held.get(key))])
        for changed, value in registry.changes():
            if value is None:
                del rows[changed]
            else:
                rows[changed] = value
    assert rows == rows_of_objects(held)


def entry(name: str, host: str, **spec: Any) -> str:
    body = {"hosts": [host], "resolution": "DNS", "ports": [{"number": 80, "name": "http"}], **spec}
    labels = body.pop("labels", {})
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": name, "labels": labels},
        "spec": body,
    }
    return yaml.safe_dump(document)


def allocated(text: str, host: str) -> list[str]:
    row = derived(text)[f"reg.services/default/{host}"]
    assert isinstance(row, Service)
    return row.auto_addresses


def test_hosts_without_address_are_given_one_of_each_family_and_keep_it() -> None:
    one, two = entry("one", "one.example.com"), entry("two", "two.example.com")
    before = allocated(one, "one.example.com")
    assert before[0].startswith("240.240.")
    assert before[1].startswith("2001:2:")
    both = f"{two}---\n{one}"
    assert allocated(both, "one.example.com") == before
    assert allocated(both, "two.example.com") != before
    row = derived(one)["reg.services/default/one.example.com"]
    assert isinstance(row, Service)
    assert row.addresses == []


def test_nobody_is_given_an_address_who_has_one_or_cannot_have_one() -> None:
    off = {"networking.istio.io/enable-autoallocate-ip": "false"}
    for host, spec in (
        ("a.example.com", {"addresses": ["192.0.2.1"]}),
        ("b.example.com", {"resolution": "NONE"}),
        ("*.example.com", {"resolution": "NONE"}),
        ("c.example.com", {"labels": off}),
    ):
        assert allocated(entry("x", host, **spec), host) == []


def test_traffic_distribution_stands_with_the_annotations() -> None:
    row = derived(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n"
        "spec: {clusterIP: 10.1.1.1, trafficDistribution: PreferClose, ports: [{port: 80}]}"
    )["reg.services/default/a.default.svc.cluster.local"]
    assert isinstance(row, Service)
    assert row.annotations == {"networking.istio.io/traffic-distribution": "PreferClose"}


def families(*mesh: str, **spec: Any) -> tuple[list[str], list[list[str]]]:
    """Virtual addresses of a service, by family, and addresses of its endpoint.

    Args:
        mesh: Families that there are; none: IPv4 and IPv6.
    """
    document = yaml.safe_load(REVIEWS)
    del document["spec"]["clusterIP"]
    document["spec"] |= spec
    registry = Registry(C, families=mesh or ("IPv4", "IPv6"))
    registry.put(sorted(objects(yaml.safe_dump(document) + "---" + POD).items()))
    rows = {"/".join(filter(None, (k.table, *k[3:]))): r for k, r in registry.rows().items()}
    service, shard = (
        rows[f"reg.services/default/{HOST}"],
        rows[f"reg.endpoints/default/{HOST}/selected"],
    )
    assert isinstance(service, Service)
    assert isinstance(shard, EndpointShard)
    kinds = ["IPv6" if ":" in address else "IPv4" for address in service.addresses]
    return kinds, [endpoint.addresses for endpoint in shard.endpoints]


def test_families_of_a_service() -> None:
    four, six = "10.0.0.1", "fd00::1"
    assert families() == (["IPv4"], [[four, six]])
    assert families(ipFamilies=["IPv4"]) == (["IPv4"], [[four]])
    assert families(ipFamilies=["IPv6"]) == (["IPv6"], [[six]])
    both = ["IPv4", "IPv6"]
    assert families(ipFamilies=["IPv6", "IPv4"]) == (both[::-1], [[six, four]])
    dual = {"ipFamilyPolicy": "PreferDualStack"}
    assert families(ipFamilies=["IPv6"], **dual) == (both[::-1], [[six, four]])
    assert families(**dual) == (both, [[four, six]])


def test_families_of_a_service_are_those_of_the_mesh() -> None:
    dual = {"ipFamilyPolicy": "PreferDualStack"}
    for policy in ({}, dual):
        assert families("IPv4", **policy)[0] == ["IPv4"]
        assert families("IPv6", **policy)[0] == ["IPv6"]
    assert families("IPv6", "IPv4")[0] == ["IPv6"]
    assert families("IPv6", "IPv4", **dual)[0] == ["IPv6", "IPv4"]
    assert families("IPv6", ipFamilies=["IPv4"])[0] == []


def test_hosts_get_addresses_of_the_families_of_the_mesh() -> None:
    def of(*mesh: str) -> list[bool]:
        registry = Registry(C, families=mesh)
        text = (
            "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: a}, spec: "
            "{hosts: [a.example.com], resolution: DNS, ports: [{number: 80, name: http}]}}"
        )
        registry.put(sorted(objects(text).items()))
        (row,) = (row for row in registry.rows().values() if isinstance(row, Service))
        return [":" in address for address in row.auto_addresses]

    assert of("IPv4", "IPv6") == [False, True]
    assert of("IPv6") == [True]
    assert of("IPv4") == [False]


def test_what_else_of_a_service_changes_allocates_nothing_anew() -> None:
    registry = Registry(C)
    plain = "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\nspec: {ports: [{port: PORT}]}\n"
    for number in range(50):
        text = plain.replace("NAME", f"s{number}").replace("PORT", "80")
        registry.put(objects(text).items())
    registry.put(objects(entry("e", "e.example.com", resolution="DNS")).items())
    registry.changes()
    ran = registry._engine.counters.recomputed
    before = ran["virtual_addresses"]
    registry.put(objects(plain.replace("NAME", "s7").replace("PORT", "81")).items())
    registry.put(objects(entry("e", "e.example.com", resolution="DNS", location="X")).items())
    assert len(registry.changes()) > 0
    assert ran["virtual_addresses"] == before
    registry.put(objects(plain.replace("NAME", "new").replace("PORT", "80")).items())
    registry.changes()
    assert ran["virtual_addresses"] == before + 1


def test_more_hosts_than_addresses_leave_some_without() -> None:
    size = VIP_NETWORK.num_addresses - 2
    key = Key(C, "cfg", "serviceentries", "default", "many")
    (row,) = objects(entry("many", "e.example.com", resolution="DNS")).values()
    row.spec["hosts"] = [f"h{number}.example.com" for number in range(size + 5)]
    engine = Engine(world_of({key: row}))
    assert len(engine.get(virtual_addresses)) == size
