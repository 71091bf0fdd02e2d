"""From one authority to the next, on disk: any process may be the last one."""

import stat

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from meshbus_ca.authorities import Authorities
from meshbus_ca.authority import PLUGGED, SELF_SIGNED, fingerprint
from meshbus_ca.fleet_view import FleetView
from meshbus_ca.in_use import InUse
from meshbus_ca.issue import make_intermediate, make_root
from meshbus_ca.keystore import KeystoreError, write_private
from meshbus_ca.succeed import RefusedError, Successor

from meshbus.bus.interface import Message
from meshbus.model.requests import Issued
from meshbus.model.status import GatewayReport

NOW = 1_900_000_000.0
TD = "cluster.local"


class Ca:
    """A ca without a bus; `again` is the next process on the same directory."""

    def __init__(self, tmp_path, plugged=None):
        self.folder, self.plugged = tmp_path / "ca", plugged
        self.fleet = FleetView("c", lambda: 0.0)
        self.again()

    def again(self):
        self.in_use = in_use = InUse(NOW, 3600)
        in_use.complete([])
        self.successor = Successor(Authorities(self.folder, TD), self.plugged, in_use, self.fleet)
        self.successor.open(NOW)

    def gateway_at(self, converged: int):
        report = msgspec.json.encode(GatewayReport("gw-0", converged, 1, converged))
        self.fleet.apply([Message("s.c.xds-gateway.gw-0.report", report, 1)])

    @property
    def phase(self) -> str:
        return self.successor.status(NOW).phase


def plug(folder, pair):
    root, signer = pair
    folder.mkdir(exist_ok=True)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    key = signer.key.private_bytes(*form, serialization.NoEncryption())
    (folder / "ca-cert.pem").write_text(signer.pem)
    (folder / "cert-chain.pem").write_text(signer.pem)
    (folder / "ca-key.pem").write_bytes(key)
    (folder / "root-cert.pem").write_text(root.pem)


def made():
    root = make_root(TD, NOW)
    return root, make_intermediate(root, TD, NOW)


def test_every_step_survives_a_crash_and_the_old_key_is_gone_at_the_end(tmp_path):
    ca = Ca(tmp_path)
    old = ca.successor.signing
    ca.successor.start(NOW)
    with pytest.raises(RefusedError, match="under way"):
        ca.successor.start(NOW)
    phases = []
    for version in range(1, 5):
        ca.again()
        phases.append(ca.phase)
        roots = set(ca.successor.roots)
        assert ca.successor.signing.roots_pem[0] in roots, "what signs is trusted"
        ca.gateway_at(version - 1)
        assert not ca.successor.look(NOW, version), "not before the fleet has followed"
        ca.gateway_at(version)
        ca.successor.look(NOW, version)
    assert phases == ["announce", "sign", "drop", "steady"]
    assert old.root_id in ca.successor.retired
    assert ca.successor.signing.root_id != old.root_id
    assert not (ca.folder / "root.pem").exists()
    modes = {stat.S_IMODE(p.stat().st_mode) for p in ca.folder.rglob("*.pem")}
    assert modes == {0o600}


class Crash(BaseException):
    """The process is gone."""


def test_a_crash_at_any_write_leaves_a_ca_that_goes_on(tmp_path, monkeypatch):
    """At each write of a whole rotation in turn: the next process signs with what is trusted, and
    ends the rotation."""
    writes = {"left": -1, "made": 0}

    def dying(path, data):
        if writes["left"] == 0:
            raise Crash
        writes["left"] -= 1
        writes["made"] += 1
        write_private(path, data)

    monkeypatch.setattr("meshbus_ca.authorities.write_private", dying)
    monkeypatch.setattr("meshbus_ca.keystore.write_private", dying)

    def rotate(ca: Ca, *, first: bool) -> None:
        if first:
            ca.successor.start(NOW)
        for version in range(1, 6):
            ca.gateway_at(version)
            ca.successor.look(NOW, version)

    whole = Ca(tmp_path / "whole")
    before = writes["made"]
    rotate(whole, first=True)
    needed = writes["made"] - before
    assert needed >= 6, "a root, an intermediate, the cross certificate, and each step"
    for at in range(needed):
        ca = Ca(tmp_path / str(at))
        old = ca.successor.signing.root_id
        writes["left"] = at
        with pytest.raises(Crash):
            rotate(ca, first=True)
        writes["left"] = -1
        ca.again()
        assert ca.successor.signing.roots_pem[0] in set(ca.successor.roots)
        rotate(ca, first=ca.phase == "steady" and ca.successor.signing.root_id == old)
        assert ca.phase == "steady", f"write {at}"
        assert ca.successor.signing.root_id != old
        assert old in ca.successor.retired


def test_plugging_in_and_out_are_changes_of_roots(tmp_path):
    ca = Ca(tmp_path)
    assert ca.successor.signing.kind == SELF_SIGNED
    ca.plugged = tmp_path / "cacerts"
    plug(ca.plugged, pair := made())
    ca.again()
    for version in range(1, 6):
        ca.gateway_at(version)
        ca.successor.look(NOW, version)
    assert (ca.phase, ca.successor.signing.kind) == ("steady", PLUGGED)
    assert ca.successor.signing.root_id == fingerprint(pair[0].certificate)
    with pytest.raises(RefusedError, match="plugged in"):
        ca.successor.start(NOW)
    ca.plugged = None
    ca.again()
    ca.successor.look(NOW, 6)
    assert ca.phase == "announce"


def test_files_that_come_back_end_a_rotation_that_has_changed_nothing_yet(tmp_path):
    first, second, third = made(), made(), made()
    plug(folder := tmp_path / "cacerts", first)
    ca = Ca(tmp_path, folder)
    ca.gateway_at(0)
    plug(folder, second)
    ca.successor.look(NOW, 1)
    assert ca.phase == "announce"
    plug(folder, third)
    ca.successor.look(NOW, 0)
    assert "that waits" in ca.successor.problem
    plug(folder, first)
    ca.successor.look(NOW, 0)
    assert (ca.phase, ca.successor.problem) == ("steady", "")
    assert ca.successor.roots == [first[0].pem]
    assert fingerprint(second[0].certificate) in ca.successor.retired


def test_a_root_that_leaves_a_bundle_stays_while_certificates_below_it_are_in_use(tmp_path):
    """Istio's way to change roots by hand: both in `root-cert.pem`, then the signer, then one."""
    first, second = made(), made()
    folder, both = tmp_path / "cacerts", first[0].pem + second[0].pem
    plug(folder, first)
    (folder / "root-cert.pem").write_text(both)
    ca = Ca(tmp_path, folder)
    ca.gateway_at(1)
    plug(folder, second)
    (folder / "root-cert.pem").write_text(both)
    ca.successor.look(NOW, 1)
    assert (ca.phase, ca.successor.signing.root_id) == (
        "steady",
        fingerprint(second[0].certificate),
    )
    ca.in_use.note(leaf_below(fingerprint(first[0].certificate)))
    plug(folder, second)
    ca.successor.look(NOW, 1)
    ca.successor.look(NOW, 1)
    assert ca.phase == "sign"
    assert not ca.successor.look(NOW, 1), "one certificate is in use"
    assert set(ca.successor.roots) == {first[0].pem, second[0].pem}
    ca.successor.look(NOW + 3600, 1)
    assert ca.successor.roots == [second[0].pem]


def leaf_below(root: str) -> Issued:
    web = "spiffe://cluster.local/ns/default/sa/web"
    return Issued(
        web, "1", NOW, NOW, NOW + 3600, "xds-gateway", "gw-0", "bus", "signer", root, "key"
    )


def test_a_first_ca_that_cannot_be_used_is_said_and_none_is_made_up(tmp_path):
    (tmp_path / "cacerts").mkdir()
    with pytest.raises(KeystoreError, match=r"MESHBUS_CA_PLUGGED: .*ca-cert\.pem"):
        Ca(tmp_path, tmp_path / "cacerts")
    assert not (tmp_path / "ca" / "root.pem").exists()
