"""Refusals and observed calls, counted without a proxy."""

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2
from meshbus_telemetry.access import Access, DryRun, access_of
from meshbus_telemetry.denials import MAX_EVENTS, MAX_KINDS, Denials
from meshbus_telemetry.entries import DESTINATION, SOURCE, Reporter
from meshbus_telemetry.observed import MAX_PATHS, Observed, general_path
from meshbus_telemetry.parties import Directory, Party

SERVER = Party("server", "default")
CLIENT = Party("client", "default", "spiffe://cluster.local/ns/default/sa/client")
RULE = "ns[default]-policy[no]-rule[2]"


def access(**fields) -> Access:
    known = {
        "at": SERVER,
        "port": 80,
        "source": CLIENT,
        "protocol": "http",
        "method": "GET",
        "path": "/",
        "host": "server",
        "status": 200,
        "cause": "",
        "rule": "",
        "dry_run": (),
    }
    return Access(**{**known, **fields})


def entry(details: str, path: str = "/a?b#c") -> accesslog_pb2.HTTPAccessLogEntry:
    out = accesslog_pb2.HTTPAccessLogEntry()
    out.response.response_code_details = details
    out.response.response_code.value = 403
    out.request.request_method = 1
    out.request.path = path
    return out


@pytest.mark.parametrize(
    ("details", "cause", "rule"),
    [
        (f"rbac_access_denied_matched_policy[{RULE}]", "rbac", RULE),
        ("rbac_access_denied_matched_policy[none]", "rbac", ""),
        ("jwt_authn_access_denied{Jwt_is_missing}", "token", ""),
        ("ext_authz_denied", "provider", ""),
        ("via_upstream", "", ""),
        ("", "", ""),
    ],
)
def test_why_a_request_was_refused(details: str, cause: str, rule: str) -> None:
    found = access_of(entry(details), Reporter(DESTINATION, SERVER, None), Directory("c"), True)
    assert found is not None
    assert (found.cause, found.rule, found.method, found.path) == (cause, rule, "GET", "/a")
    caller = access_of(entry(details), Reporter(SOURCE, CLIENT, None), Directory("c"), True)
    assert (caller is not None) is bool(cause), "a caller reports what it was refused by others too"


def test_what_runs_dry_is_read() -> None:
    log = entry("via_upstream")
    held = log.common_properties.metadata.filter_metadata["envoy.filters.http.rbac"]
    held.update(
        {
            "istio_dry_run_deny_shadow_engine_result": "denied",
            "istio_dry_run_deny_shadow_effective_policy_id": RULE,
            "istio_dry_run_allow_shadow_engine_result": "allowed",
        }
    )
    found = access_of(log, Reporter(DESTINATION, SERVER, None), Directory("c"), True)
    assert found is not None
    assert found.dry_run == (DryRun("DENY", RULE),)


# --------------------------------------------------------------------------- denials


def test_refusals_of_a_window_are_told_once() -> None:
    denials = Denials()
    for path in ("/a", "/b", "/a", "/c", "/d"):
        denials.add(access(cause="rbac", rule=RULE, path=path, status=403), 5.0)
    denials.add(access(cause="rbac"), 6.0)
    denials.add(access(dry_run=(DryRun("ALLOW", ""),)), 6.0)
    first, *others = denials.take()
    assert (first.kind, first.namespace, first.name) == ("AuthorizationPolicy", "default", "no")
    assert (first.data["count"], first.data["ruleIndex"], len(first.data["samples"])) == (5, 2, 3)
    assert {(e.kind, e.name, e.data["dryRun"], e.data["action"]) for e in others} == {
        ("Workload", "server", False, "ALLOW"),
        ("Workload", "server", True, "ALLOW"),
    }
    assert denials.take() == []


def test_a_flood_is_bounded() -> None:
    denials = Denials()
    for number in range(MAX_KINDS + 10):
        denials.add(access(cause="rbac", port=number % 65536), 1.0)
    assert denials.left_out == 10
    assert len(denials.take()) == MAX_EVENTS
    assert denials.left_out == 10 + MAX_KINDS - MAX_EVENTS


# --------------------------------------------------------------------------- observed


@pytest.mark.parametrize(
    ("path", "general"),
    [
        ("/", "/"),
        ("/orders/123", "/orders/{*}"),
        ("/o/0b6ad7b4-2f4e-4bb4-a0e5-8b8e0d1c2a3f/items", "/o/{*}/items"),
        ("/deadbeefdeadbeef", "/{*}"),
        ("/v1/a.b", "/v1/a.b"),
        ("/a{b}/c", "/{*}/c"),
        ("*", "*"),
    ],
)
def test_identifiers_in_paths(path: str, general: str) -> None:
    assert general_path(path) == general


def test_refused_calls_are_not_observed_and_paths_are_bounded() -> None:
    observed = Observed(1000)
    observed.add(access(cause="rbac"), 1.0)
    assert len(observed) == 0
    for number in range(500):
        observed.add(access(path=f"/a/x{number}-y"), 1.0)
    paths = {c.path for c in observed.since(1.0, 60)}
    assert len(paths) <= MAX_PATHS
    assert "/a/*" in paths
    for number in range(500):
        observed.add(access(path=f"/z{number}-y/x"), 1.0)
    paths = {c.path for c in observed.since(1.0, 60)}
    assert len(paths) <= MAX_PATHS + 1
    assert "/*" in paths


def test_old_calls_make_room() -> None:
    observed = Observed(2)
    observed.add(access(port=1), 0.0)
    observed.add(access(port=2), 100_000.0)
    observed.add(access(port=3), 100_000.0)
    assert {c.port for c in observed.since(100_000.0, 60)} == {2, 3}
    observed.add(access(port=4), 100_000.0)
    assert observed.overflowed == 1
    assert observed.since(100_000.0, 60, "elsewhere") == []
