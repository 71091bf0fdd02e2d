"""`meshbus kube-inject` changes the pods, and nothing else."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from meshbus.api.yaml_text import read_yaml
from meshbus.cli.main import app

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop, annotations: {a.io/b: "1e3"}}
spec:
  unknownField: {kept: [1, 2.5, "0x1f", "yes", "0o7", "12:30", 2020-01-01, null]}
  template:
    metadata:
      labels: {app: web, version: "1.0"}
    spec:
      containers:
      - {name: web, image: web, ports: [{containerPort: 80}], env: [{name: A, value: "on"}]}
      volumes: [{name: data, emptyDir: {}}]
"""


def run(tmp_path: Path, text: str, *args: str) -> Result:
    file = tmp_path / "in.yaml"
    file.write_text(text)
    return CliRunner().invoke(app, ["kube-inject", "-f", str(file), *args])


def test_everything_else_stays(tmp_path: Path) -> None:
    config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x} # a comment\ndata: {a: 'b'}"
    custom = "apiVersion: acme.io/v1\nkind: Deployment\nspec: {template: {}}"
    result = run(tmp_path, f"{config}\n---\n{DEPLOYMENT}---\n{custom}\n")
    assert result.exit_code == 0, result.output
    first, second, third, _ = result.stdout.split("\n---\n")
    assert first == config
    assert third == custom
    before, after = read_yaml(DEPLOYMENT), read_yaml(second)
    injected = after["spec"].pop("template")
    written = before["spec"].pop("template")
    assert after == before
    assert injected["metadata"]["labels"].items() >= written["metadata"]["labels"].items()
    assert injected["spec"]["containers"] == written["spec"]["containers"]
    assert injected["spec"]["volumes"][0] == written["spec"]["volumes"][0]


def test_lists_stay_lists(tmp_path: Path) -> None:
    items = "".join(f"- {line}" if i == 0 else f"  {line}"
                    for i, line in enumerate(DEPLOYMENT.splitlines(keepends=True)))  # fmt: skip
    service = "- {apiVersion: v1, kind: Service, metadata: {name: s}}\n"
    result = run(tmp_path, f"apiVersion: v1\nkind: List\nitems:\n{items}{service}")
    assert result.exit_code == 0, result.output
    document = next(iter(yaml.safe_load_all(result.stdout)))
    kinds = [item["kind"] for item in document["items"]]
    assert (document["kind"], kinds) == ("List", ["Deployment", "Service"])
    inits = document["items"][0]["spec"]["template"]["spec"]["initContainers"]
    assert [item["name"] for item in inits] == ["istio-init", "istio-proxy"]


def test_injecting_again_changes_nothing(tmp_path: Path) -> None:
    once = run(tmp_path, DEPLOYMENT).stdout
    twice = run(tmp_path, once).stdout
    assert list(yaml.safe_load_all(once)) == list(yaml.safe_load_all(twice))


def test_other_settings_replace_what_was_injected(tmp_path: Path) -> None:
    once = run(tmp_path, DEPLOYMENT).stdout
    flags = ("--set", "pilot.env.ENABLE_NATIVE_SIDECARS=false", "--set", "revision=blue")
    again = run(tmp_path, once, *flags).stdout
    fresh = run(tmp_path, DEPLOYMENT, *flags).stdout
    assert list(yaml.safe_load_all(again)) == list(yaml.safe_load_all(fresh))
    pod = next(iter(yaml.safe_load_all(fresh)))["spec"]["template"]
    assert [c["name"] for c in pod["spec"]["containers"]] == ["web", "istio-proxy"]
    assert pod["metadata"]["annotations"]["istio.io/rev"] == "blue"
    assert "xds-gateway-blue.istio-system.svc" in str(pod["spec"])


def test_why_a_pod_is_left_is_said(tmp_path: Path) -> None:
    result = run(tmp_path, DEPLOYMENT, "--set", "global.proxy.autoInject=disabled")
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout.removesuffix("---\n")) == yaml.safe_load(DEPLOYMENT)
    assert 'Deployment "shop/web"' in result.stderr


@pytest.mark.parametrize(
    ("text", "args", "code", "said"),
    [
        ("", (), 0, ""),
        (DEPLOYMENT, ("--set", "x"), 2, "no value"),
        (DEPLOYMENT, ("--set", "global.proxy.autoInject=x"), 2, "global.proxy.autoInject"),
        (DEPLOYMENT, ("--mesh-config", "/nowhere"), 2, "/nowhere"),
        ("a: [", (), 1, "not YAML"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: p}", (), 1, "spec"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: 3}", (), 1,
         "spec.containers"),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: p}\nspec: {}", (), 1,
         "spec.template.spec"),
        (DEPLOYMENT.replace("labels: {app: web", "annotations: {proxy.istio.io/config: '{x: 1}'}\n"
                            "      labels: {app: web"), (), 1, "proxy.istio.io/config"),
        (DEPLOYMENT.replace("labels: {app: web", "annotations: "
                            "{sidecar.istio.io/bootstrapOverride: mine}\n"
                            "      labels: {app: web"), (), 1, "bootstrapOverride"),
    ],
)  # fmt: skip
def test_exit_codes(tmp_path: Path, text: str, args: tuple[str, ...], code: int, said: str) -> None:
    result = run(tmp_path, text, *args)
    assert result.exit_code == code, result.output
    assert said in result.stderr


def test_objects_among_the_files_count(tmp_path: Path) -> None:
    def of(namespace: str, name: str, **spec: object) -> str:
        held = {
            "apiVersion": "networking.istio.io/v1beta1",
            "kind": "ProxyConfig",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }
        return yaml.safe_dump(held)

    picked = {"matchLabels": {"app": "web"}}
    files = [
        of("istio-system", "mesh", concurrency=7, environmentVariables={"A": "mesh"}),
        of("shop", "own", environmentVariables={"B": "shop"}),
        of("shop", "web", selector=picked, environmentVariables={"C": "web"}),
        of("shop", "others", selector={"matchLabels": {"app": "x"}}, concurrency=1),
        of("elsewhere", "own", concurrency=2),
        DEPLOYMENT,
    ]
    result = run(tmp_path, "---\n".join(files))
    assert result.exit_code == 0, result.output
    *objects, made = [d for d in yaml.safe_load_all(result.stdout) if d]
    assert [o["kind"] for o in objects] == ["ProxyConfig"] * 5
    (proxy,) = [
        c for c in made["spec"]["template"]["spec"]["initContainers"] if c["name"] == "istio-proxy"
    ]
    said = {item["name"]: item.get("value") for item in proxy["env"]}
    assert (said["A"], said["B"], said["C"]) == ("mesh", "shop", "web")
    assert "7" in proxy["args"] or any(a.rpartition("=")[2] == "7" for a in proxy["args"])
