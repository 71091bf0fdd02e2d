"""The commands against a running mesh, as a person types them; and a stock kubectl beside them."""

import base64
import datetime
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from standalone import gateway_port, mesh, meshbus, until

from meshbus.local.home import Home
from meshbus.local.traffic import fetch

pytestmark = [pytest.mark.real, pytest.mark.slow]
Command = Callable[..., "subprocess.CompletedProcess[str]"]

ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews, subset: VERSION}}]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with mesh(tmp_path_factory.mktemp("cli")) as running:
        yield running


@pytest.fixture
def run(home: Home) -> Command:
    def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return meshbus(*arguments, "--home", str(home.path))

    return command


def _route(folder: Path, version: str) -> str:
    path = folder / f"{version}.yaml"
    path.write_text(ROUTE.replace("VERSION", version))
    return str(path)


def test_apply_waits_and_the_route_holds(home: Home, run: Command, tmp_path: Path) -> None:
    done = run("apply", "-f", _route(tmp_path, "v2"), "--wait")
    assert done.returncode == 0, done.stderr
    assert "live on 7 of 7 proxies" in done.stdout
    assert {fetch("127.0.0.1", gateway_port(home)).version for _ in range(10)} == {"v2"}
    done = run("apply", "-f", _route(tmp_path, "v3"), "-o", "json")
    answer = json.loads(done.stdout)
    assert answer["results"][0]["action"] == "configured"
    done = run("wait", "--change", str(answer["change"]), "-o", "json")
    receipt = json.loads(done.stdout)
    assert receipt["state"] == "converged"
    assert receipt["proxies"] == {"total": 7, "converged": 7}
    assert run("wait", "virtualservice/reviews").returncode == 0
    assert {fetch("127.0.0.1", gateway_port(home)).version for _ in range(10)} == {"v3"}


def test_live_and_without_effect_is_said_at_once(run: Command, tmp_path: Path) -> None:
    manifest = tmp_path / "nowhere.yaml"
    manifest.write_text(NOWHERE)
    done = run("apply", "-f", str(manifest), "--wait")
    assert done.returncode == 0, done.stderr
    live, told = done.stdout.splitlines()[-2:]
    assert "live on 7 of 7 proxies" in live
    where = "EnvoyFilter default/nowhere: spec.configPatches[0].match: matches nothing"
    assert f"without effect at 6 of them: {where}" in told
    # The gateway is in another namespace: the patch is not for it.
    assert run("delete", "-f", str(manifest)).returncode == 0


def test_a_mesh_is_analysed_with_files_on_top(run: Command, tmp_path: Path) -> None:
    def errors(*arguments: str) -> list[tuple[str, str, str, int]]:
        done = run("analyze", "-o", "json", *arguments)
        said = [m for m in json.loads(done.stdout)["messages"] if m["level"] == "Error"]
        assert done.returncode == (1 if said else 0), done.stderr
        return [(m["code"], m["object"], m["file"], m["line"]) for m in said]

    text = ROUTE.replace("name: reviews", "name: lost").replace("host: reviews", "host: gone")
    text = text.replace("[reviews]", "[lost.example]").replace(", subset: VERSION", "")
    assert errors() == []
    lost = tmp_path / "lost.yaml"
    lost.write_text(text)
    at = text[: text.index("host: gone")].count("\n") + 1
    told = ("IST0101", "VirtualService default/lost")
    assert errors(str(lost)) == [(*told, str(lost), at)]
    assert run("apply", "-f", str(lost)).returncode == 0
    assert errors("--use-kube=true") == [(*told, "", 0)]
    lost.write_text(text.replace("host: gone", "host: reviews"))
    assert errors(str(lost)) == []
    # The files alone do not have the service.
    assert errors(str(lost), "--use-kube=false") == [(*told, str(lost), at)]
    assert run("delete", "-f", str(lost)).returncode == 0


def test_what_is_refused_is_named_and_the_rest_goes_on(run: Command, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\n"
        "---\napiVersion: v1\nkind: Banana\nmetadata: {name: two}\n"
        "---\na: [b\n"
        "---\n" + ROUTE.replace("route:", "rout:").replace("name: reviews", "name: three") + "---\n"
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: five}\n"
    )
    done = run("apply", "-f", str(bad))
    assert done.returncode == 1
    assert "configmap/one created" in done.stdout
    assert "configmap/five created" in done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert all(str(bad) in line for line in errors)
    assert any("Banana" in line for line in errors)
    at = bad.read_text()[: bad.read_text().index("rout:")].count("\n") + 1
    assert any(f"{bad}:{at}: " in line and "spec.http[0].rout" in line for line in errors)
    assert any("document 2: not YAML" in line for line in errors), errors
    done = run("apply", "--atomic", "-f", str(bad))
    assert done.returncode == 1
    done = run("delete", "configmap", "one", "five")
    assert done.returncode == 0
    assert run("get", "configmap", "one").returncode == 1
    assert run("get", "banana").returncode == 2
    assert run("apply", "-f", str(tmp_path / "absent.yaml")).returncode == 2
    large = tmp_path / "large.yaml"
    large.write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: large}\ndata: {a: "
        + "x" * 11_000_000
        + "}"
    )
    done = run("apply", "-f", str(large))
    assert done.returncode == 1
    assert str(large) in done.stderr
    assert run("get", "configmap", "large").returncode == 1


def test_a_backup_restores(run: Command, tmp_path: Path) -> None:
    assert run("apply", "-f", _route(tmp_path, "v1"), "--wait").returncode == 0
    backup = tmp_path / "backup.yaml"
    backup.write_text(run("get", "-A", "-o", "yaml").stdout)
    before = json.loads(run("get", "vs", "reviews", "-o", "json").stdout)["spec"]
    assert run("delete", "vs", "reviews").returncode == 0
    assert run("delete", "service", "ratings").returncode == 0
    done = run("apply", "-f", str(backup), "--wait")
    assert done.returncode == 0, done.stderr
    assert json.loads(run("get", "vs", "reviews", "-o", "json").stdout)["spec"] == before
    again = run("apply", "-f", str(backup))
    assert "configured" not in again.stdout, again.stdout


def test_proxies_and_events(run: Command) -> None:
    proxies = json.loads(run("proxy-status", "-o", "json").stdout)["proxies"]
    assert len(proxies) == 7
    assert all(p["types"]["cds"]["status"] == "SYNCED" for p in proxies)
    dump = run("proxy-config", "all", "productpage-v1-0.default", "-o", "json").stdout
    document = json.loads(dump)
    assert "outbound|9080||reviews.default.svc.cluster.local" in {
        c["name"] for c in document["clusters"]
    }
    assert "PRIVATE KEY" not in dump
    assert run("proxy-config", "clusters", "nobody.default").returncode == 1
    events = run("events", "--no-follow", "--since", "10m", "-o", "json").stdout
    kinds = {json.loads(line)["type"] for line in events.splitlines()}
    assert {"io.meshbus.virtualservice.applied", "io.meshbus.virtualservice.converged"} <= kinds


def _certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shop.example.com")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return signed.public_bytes(serialization.Encoding.PEM), private


def _tls(name: str, certificate: bytes, key: bytes) -> str:
    data = {"tls.crt": certificate, "tls.key": key}
    fields = {field: base64.b64encode(value).decode() for field, value in data.items()}
    metadata = {"name": name, "namespace": "istio-system"}
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": fields})


GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: secure, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8443, name: https, protocol: HTTPS}
    hosts: ["*"]
    tls: {mode: SIMPLE, credentialName: CREDENTIAL}
"""


def test_what_envoy_refuses_is_traced_to_its_object(run: Command, tmp_path: Path) -> None:
    certificate, key = _certificate()
    _, other = _certificate()
    manifest = tmp_path / "secure.yaml"

    def apply(credential: str) -> "subprocess.CompletedProcess[str]":
        manifest.write_text(
            "---\n".join(
                [
                    _tls("good", certificate, key) + "\n",
                    _tls("mismatched", certificate, other) + "\n",
                    GATEWAY.replace("CREDENTIAL", credential),
                ]
            )
        )
        return run("apply", "-f", str(manifest), "--wait")

    def reconciled() -> dict[str, str]:
        found = run("get", "gateway", "secure", "-n", "istio-system", "-o", "json")
        conditions = json.loads(found.stdout).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == "Reconciled"), {})

    refused = apply("mismatched")
    assert refused.returncode == 1
    assert "istio-ingressgateway-0.istio-system" in refused.stderr
    assert "KEY_VALUES_MISMATCH" in refused.stderr
    assert key.decode().splitlines()[1] not in refused.stderr + refused.stdout
    until(lambda: reconciled().get("status") == "False", "the Gateway's status says so")
    assert "KEY_VALUES_MISMATCH" in reconciled()["message"]
    events = run("events", "--no-follow", "--since", "5m", "--filter", "verb=nacked")
    assert "istio-system/secure" in events.stdout
    assert apply("good").returncode == 0
    until(lambda: reconciled().get("status") == "True", "the status is good again")
    assert run("delete", "-f", str(manifest)).returncode == 0


NOWHERE = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: nowhere}
spec:
  configPatches:
  - applyTo: CLUSTER
    match: {cluster: {name: no-such-cluster}}
    patch: {operation: MERGE, value: {connect_timeout: 1s}}
"""
REWRITE = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: rewrite}
spec:
  configPatches:
  - applyTo: HTTP_ROUTE
    match: {context: SIDECAR_OUTBOUND}
    patch:
      operation: MERGE
      value: {route: {regex_rewrite: {pattern: {regex: "PATTERN"}, substitution: "/"}}}
"""


def test_a_patch_that_envoy_refuses_is_left_out_alone(
    home: Home, run: Command, tmp_path: Path
) -> None:
    manifest = tmp_path / "rewrite.yaml"

    def conditions() -> dict[str, dict[str, str]]:
        found = run("get", "envoyfilter", "rewrite", "-o", "json")
        held = json.loads(found.stdout).get("status", {}).get("conditions", [])
        return {condition["type"]: condition for condition in held}

    def reason(kind: str) -> str:
        return conditions().get(kind, {}).get("reason", "")

    assert run("apply", "-f", _route(tmp_path, "v2"), "--wait").returncode == 0
    manifest.write_text(REWRITE.replace("PATTERN", "("))
    refused = run("apply", "-f", str(manifest), "--wait")
    assert refused.returncode == 1
    assert "missing ): (" in refused.stderr
    assert "EnvoyFilter default/rewrite" in refused.stderr
    assert ".default" in refused.stderr, "it names a proxy"
    assert run("wait", "envoyfilter/rewrite").returncode == 1

    # The routes that it spoils go on.
    done = run("apply", "-f", _route(tmp_path, "v3"), "--wait")
    assert done.returncode == 0, done.stderr
    assert {fetch("127.0.0.1", gateway_port(home)).version for _ in range(10)} == {"v3"}
    until(lambda: reason("Reconciled") == "Quarantined", "the status says so")
    until(lambda: conditions().get("Effective", {}).get("status") == "False", "and where")
    assert "missing ): (" in conditions()["Reconciled"]["message"]
    assert "left out" in conditions()["Effective"]["message"]
    shown = run("proxy-status")
    assert "EnvoyFilter default/rewrite" in shown.stderr
    assert "left out" in shown.stderr
    events = run("events", "--no-follow", "--since", "5m", "--filter", "verb=nacked")
    assert "default/rewrite" in events.stdout
    assert "VirtualService" not in events.stdout, "nobody else is at fault"

    manifest.write_text(REWRITE.replace("PATTERN", "^/no-such-path$"))
    done = run("apply", "-f", str(manifest), "--wait")
    assert done.returncode == 0, done.stderr
    until(lambda: reason("Reconciled") == "Accepted", "the status is good again")
    assert run("delete", "-f", str(manifest)).returncode == 0


def test_without_a_mesh_it_says_so(tmp_path: Path) -> None:
    done = meshbus("get", "vs", "--home", str(tmp_path))
    assert done.returncode == 1
    assert "meshbus up" in done.stderr


def test_a_stock_kubectl_works_with_the_kubeconfig(home: Home, tmp_path: Path) -> None:
    binary = shutil.which("kubectl")
    if binary is None:
        pytest.skip("kubectl is not installed")
    env = {**os.environ, "KUBECONFIG": str(home.path / "kubeconfig"), "HOME": str(tmp_path)}

    def kubectl(*arguments: str) -> str:
        done = subprocess.run(
            [binary, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    kubectl("apply", "-f", _route(tmp_path, "v2"))
    assert "subset: v2" in kubectl("get", "vs", "reviews", "-o", "yaml")
    patch = '[{"op": "replace", "path": "/spec/http/0/route/0/destination/subset", "value": "v3"}]'
    kubectl("patch", "vs", "reviews", "--type", "json", "-p", patch)
    assert meshbus("wait", "vs/reviews", "--home", str(home.path)).returncode == 0
    assert {fetch("127.0.0.1", gateway_port(home)).version for _ in range(10)} == {"v3"}
    env["KUBE_EDITOR"] = "sed -i s/v3/v1/"
    kubectl("edit", "vs", "reviews")
    assert "subset: v1" in kubectl("get", "vs", "reviews", "-o", "yaml")
    kubectl("delete", "vs", "reviews")
