"""The ledger and the rotation as a user sees them: the command on a mesh of its own."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]
WORKLOAD = """
apiVersion: standalone.meshbus.io/v1alpha1
kind: Workload
metadata: {name: web-v1, namespace: default, labels: {app: web}}
spec:
  serviceAccount: web
  command: [sleep, "600"]
  sidecar: true
"""
WEB = "spiffe://cluster.local/ns/default/sa/web"


def meshbus(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "meshbus.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certs")
    (folder / "web.yaml").write_text(WORKLOAD)
    path = str(folder / "home")
    up = meshbus("up", "-f", str(folder / "web.yaml"), "--home", path, "--detach")
    try:
        assert up.returncode == 0, up.stderr
        yield path
    finally:
        meshbus("down", "--home", path)


def test_list_and_show_what_was_issued(home):
    listed = meshbus("certs", "list", "--identity", WEB, "-o", "json", "--home", home)
    (record,) = json.loads(listed.stdout)["certificates"]
    assert record["proof"].endswith(" of web-v1-0")
    shown = meshbus("certs", "show", record["serial"].upper(), "-o", "json", "--home", home)
    assert json.loads(shown.stdout) == record
    assert WEB in meshbus("certs", "list", "--home", home).stdout
    assert "PRIVATE" not in listed.stdout + shown.stdout
    none = meshbus("certs", "show", "ffff", "--home", home)
    assert (none.returncode, none.stdout) == (1, "")
    assert "ffff" in none.stderr
    wrong = meshbus("certs", "list", "--at", "yesterday", "--home", home)
    assert wrong.returncode == 1
    assert "at: a duration" in wrong.stderr


def test_revoke_and_allow(home):
    serial = json.loads(
        meshbus("certs", "list", "--identity", WEB, "-o", "json", "--home", home).stdout
    )["certificates"][0]["serial"]
    done = meshbus("certs", "revoke", serial, "--reason", "a test", "--home", home)
    assert (done.returncode, done.stdout) == (0, "1 certificates revoked\n"), done.stderr
    again = meshbus("certs", "revoke", serial, "--home", home)
    assert again.returncode == 1
    assert "revoked already" in again.stderr
    blocked = meshbus("certs", "revoke", "--identity", WEB, "-o", "json", "--home", home)
    assert json.loads(blocked.stdout)["blocked"] == [WEB]
    listed = meshbus("certs", "revoked", "--home", home).stdout
    assert serial in listed
    assert f"blocked: {WEB}" in listed
    shown = meshbus("certs", "list", "--identity", WEB, "--home", home).stdout
    assert " revoked " in shown
    assert meshbus("certs", "allow", WEB, "--home", home).returncode == 0
    assert "blocked" not in meshbus("certs", "revoked", "--home", home).stdout
    assert meshbus("certs", "revoke", "--home", home).returncode == 2
    assert meshbus("certs", "revoke", serial, "--identity", WEB, "--home", home).returncode == 2
    events = meshbus("events", "--no-follow", "--filter", "verb=revoked", "--home", home)
    assert serial in events.stdout


def test_a_rotation_is_started_once_and_says_what_it_waits_for(home):
    steady = meshbus("certs", "rotation", "-o", "json", "--home", home)
    assert json.loads(steady.stdout)["phase"] == "steady"
    started = meshbus("certs", "rotation", "start", "-o", "json", "--home", home)
    assert json.loads(started.stdout)["phase"] == "announce"
    again = meshbus("certs", "rotation", "start", "--home", home)
    assert again.returncode == 1
    assert "under way" in again.stderr
    assert "waits for" in meshbus("certs", "rotation", "--home", home).stdout
