"""Receipts in words."""

from meshbus.cli.wait import describe


def test_proxies_that_refuse_are_counted_once():
    rejected = [
        {"proxy": "a.default", "resource": f"cds {name}", "object": "Service x", "message": "no"}
        for name in ("one", "two")
    ]
    receipt = {
        "change": 7,
        "state": "rejected",
        "proxies": {"total": 3, "converged": 2},
        "rejected": rejected,
        "waiting": [],
    }
    first, *lines = describe(receipt, 1)
    assert first == "change 7 was refused by 1 of 3 proxies:"
    assert len(lines) == 2


def test_what_has_no_effect_is_told_with_what_is_live():
    lost = {"object": "VirtualService default/a", "path": "spec.http[0]", "message": "no subset v9"}
    receipt = {
        "change": 7,
        "state": "converged",
        "proxies": {"total": 3, "converged": 3},
        "latency_ms": 12.4,
        "without_effect": [{**lost, "proxies": 2}],
    }
    assert describe(receipt, 1) == [
        "change 7 live on 3 of 3 proxies in 12 ms",
        "  without effect at 2 of them: VirtualService default/a: spec.http[0]: no subset v9",
    ]


def test_a_change_that_nobody_has_made_is_not_said_to_be_on_its_way():
    receipt = {
        "change": 99,
        "state": "pending",
        "proxies": {"total": 0, "converged": 0},
        "rejected": [],
        "waiting": ["a change of that number (latest: 7)"],
    }
    assert describe(receipt, 2) == [
        "change 99 is not live after 2 s; still waiting for a change of that number (latest: 7)"
    ]
