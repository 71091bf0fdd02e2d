"""The egress report: what counts as leaving the mesh, and its limits."""

from typing import Any

import pytest
from meshbus_telemetry.egress import KEEP_S, EgressReport
from meshbus_telemetry.entries import DESTINATION, SOURCE, Connection, Ends, Request
from meshbus_telemetry.parties import NOBODY, NOWHERE, Party, Target

CALLER = Party("app", "ns", "spiffe://a")
OUTSIDE = Target("api.example.com", "api", "shop", True)
INSIDE = Target("b.ns.svc.cluster.local", "b", "ns")


def ends(**fields: Any) -> Ends:
    base = Ends(SOURCE, CALLER, NOBODY, NOWHERE, "unknown", "-")
    return base._replace(**fields)


def request(found: Ends, code: int = 200) -> Request:
    return Request(found, "http", code, "", 1.0, 10, 20)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            ends(target=OUTSIDE, cluster="outbound|443||api.example.com"),
            ("api.example.com", "443", "registered", "ServiceEntry shop/api"),
        ),
        (
            ends(
                target=OUTSIDE._replace(host="*.example.com"),
                cluster="outbound|80||*.example.com",
                authority="a.example.com:80",
            ),
            ("a.example.com", "80", "registered", "ServiceEntry shop/api"),
        ),
        (
            ends(cluster="PassthroughCluster", authority="x.org", address="192.0.2.1:8080"),
            ("x.org", "8080", "unregistered", ""),
        ),
        (
            ends(cluster="PassthroughCluster", address="[2001:db8::1]:443"),
            ("2001:db8::1", "443", "unregistered", ""),
        ),
        (
            ends(cluster="BlackHoleCluster", local="192.0.2.1:25"),
            ("192.0.2.1", "25", "refused", ""),
        ),
        (
            ends(route="block_all", authority="x.org:81", local="192.0.2.1:81"),
            ("x.org", "81", "refused", ""),
        ),
        (
            ends(route="block_all", authority="x.org", local="127.0.0.1:15080"),
            ("x.org", "80", "refused", ""),
        ),
        (ends(target=INSIDE, cluster="outbound|80||b.ns.svc.cluster.local"), None),
        (ends(reporter=DESTINATION, target=OUTSIDE, cluster="inbound|80||"), None),
        (ends(source=NOBODY, target=OUTSIDE, cluster="outbound|80||api.example.com"), None),
        (ends(cluster="", authority="b:80"), None),
    ],
)
def test_what_leaves(found: Ends, expected: tuple[str, ...] | None) -> None:
    report = EgressReport(10, 0.0)
    report.request(request(found), 5.0)
    entries = report.describe(6.0)["egress"]
    shown = [(e["host"], e["port"], e["way"], e["by"]) for e in entries]
    assert shown == ([] if expected is None else [expected])


def test_sums_filters_and_limits() -> None:
    report = EgressReport(2, 1.0)
    way = ends(target=OUTSIDE, cluster="outbound|443||api.example.com")
    report.request(request(way), 10.0)
    report.request(request(way, 503), 20.0)
    closed = Connection(
        ends(cluster="BlackHoleCluster", local="192.0.2.1:25"), "1", "close", 3, 4, 1
    )
    report.connection(closed, 15.0)
    report.connection(closed._replace(phase="open"), 15.0)
    first, second = report.describe(21.0)["egress"]
    assert (first["requests"], first["errors"], first["sent"], first["received"]) == (2, 1, 20, 40)
    assert (first["first"], first["last"]) == (10.0, 20.0)
    assert (second["requests"], second["protocol"]) == (1, "tcp")
    assert len(report.describe(21.0, way="refused")["egress"]) == 1
    assert report.describe(21.0, namespace="other")["egress"] == []
    other = ends(cluster="PassthroughCluster", address="192.0.2.9:1")
    report.request(request(other), 22.0)
    assert report.overflowed == 1
    report.request(request(other), 20.0 + KEEP_S + 1)
    assert [e["host"] for e in report.describe(20.0 + KEEP_S + 2)["egress"]] == ["192.0.2.9"]
