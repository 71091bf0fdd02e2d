"""Which step may be made when: pure."""

import dataclasses

import pytest
from meshbus_ca.in_use import InUse
from meshbus_ca.rotation import ANNOUNCE, DROP, SIGN, Facts, begin, step, waits_for, warnings

from meshbus.model.requests import Issued

NOW = 1_900_000_000.0
READY = Facts(now=NOW, bundle=7, gateways={"gw-0": 7, "gw-1": 9}, expected=True)


def but(**changes) -> Facts:
    return dataclasses.replace(READY, **changes)


def test_three_steps_when_everybody_follows():
    rotation = begin("old", "new", NOW)
    phases = [rotation.phase]
    while (rotation := step(rotation, READY)) is not None:
        phases.append(rotation.phase)
    assert phases == [ANNOUNCE, SIGN, DROP]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (but(bundle=0), "not written"),
        (but(gateways={"gw-0": 6, "gw-1": 9}), "gw-0"),
        (but(silent=("gw-2",)), "gw-2"),
        (but(gateways={}), "no gateway reports"),
        (but(stale_servers=("policy-0",)), "policy-0"),
        (but(peers_s=600.0), "other meshes"),
    ],
)
def test_the_new_root_signs_nothing_before_everybody_has_it(facts, said):
    rotation = begin("old", "new", NOW)
    assert step(rotation, facts) is rotation
    assert said in waits_for(rotation, facts)


def test_the_old_root_stays_while_something_uses_it():
    signing = step(begin("old", "new", NOW), READY)
    assert step(signing, but(old_leaves=1)) is signing
    dropping = step(signing, READY)
    assert dropping.phase == DROP
    behind = but(gateways={"gw-0": 6})
    assert step(dropping, behind) is dropping, "over when everybody is without it"
    assert step(dropping, READY) is None


def test_an_empty_mesh_waits_for_nobody():
    rotation = begin("old", "new", NOW)
    assert step(rotation, but(gateways={}, expected=False)).phase == SIGN


def test_warned_from_sixty_days_before_the_end():
    assert warnings("root", NOW + 61 * 86400, NOW) == []
    assert warnings("root", NOW + 59 * 86400, NOW) == ["the root ends in 59 days: rotate it"]
    assert warnings("root", NOW - 1, NOW) == ["the root has expired"]


def issued(**fields) -> Issued:
    values = {
        "identity": "spiffe://td/ns/default/sa/reviews",
        "serial": "1",
        "issued": NOW,
        "not_before": NOW,
        "not_after": NOW + 3600,
        "asker": "xds-gateway",
        "pod": "gw-0",
        "proof": "bus",
        "signer": "s",
        "root": "old",
        "key": "k",
        **fields,
    }
    return Issued(**values)


def test_a_certificate_is_in_use_until_its_holder_has_another_or_it_ends():
    table = InUse(NOW, 3600)
    table.complete([])
    table.note(issued())
    table.note(issued(subject="reviews-v2", serial="2"))
    table.note(issued(pod="gw-1", serial="3"))
    table.note(issued(asker="csr", pod="ipv4:1", serial="4", not_after=NOW + 60))
    assert table.below("old", NOW) == 4
    table.note(issued(root="new", serial="5"))
    table.note(issued(root="new", serial="6", pod="gw-1"))
    assert table.below("old", NOW) == 2
    table.note(issued(root="new", serial="7", asker="csr", pod="ipv4:1"))
    assert table.below("old", NOW) == 2, "who keeps its own key may keep the one before, too"
    assert table.below("old", NOW + 61) == 1
    assert table.below("old", NOW + 3600) == 0


def test_what_was_issued_before_counts_until_it_is_known():
    table = InUse(NOW, 3600)
    assert table.below("old", NOW) == 1
    assert table.services_before(NOW, NOW)
    assert table.below("old", NOW + 3600) == 0
    table.note(issued(root="new", serial="2"))
    table.complete([issued()])
    assert table.below("old", NOW) == 0, "the newer one counts"
    assert table.below("new", NOW) == 1
