"""`meshbus precheck`, `install`, `upgrade` and `uninstall` on a real API server. Hooks and waiting
are left out: there is no kubelet to run pods."""

import json

import pytest
from cluster import Cluster
from test_kube_chart import helm_program
from typer.testing import CliRunner, Result

from meshbus.cli.main import app

__all__ = ["helm_program"]
pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_a_control_plane_comes_and_goes(
    helm_program: str, own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = own_cluster
    monkeypatch.setenv("HELM", helm_program)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--kubeconfig", str(cluster.kubeconfig)])

    def done(*arguments: str) -> None:
        result = run(*arguments)
        assert result.exit_code == 0, (result.output, result.stderr)

    checked = run("precheck", "-o", "json")
    assert checked.exit_code == 0, checked.output
    levels = {f["level"] for f in json.loads(checked.stdout)["findings"]}
    assert levels == {"info", "warning"}, "no StorageClass is there"
    done("install", "--profile", "demo", "--no-hooks", "--no-wait", "--set", "global.meshID=m")
    pods = "/apis/apps/v1/namespaces/istio-system/statefulsets"
    assert {item["metadata"]["name"] for item in cluster.get(pods)["items"]} == {
        "meshbus-all",
        "meshbus-nats",
    }
    cluster.wait(lambda: cluster.exists("/apis/networking.istio.io/v1/virtualservices"))
    assert run("install", "--no-hooks", "--no-wait").exit_code == 1, "it is there already"

    # What was set stays; another profile is taken.
    done("upgrade", "--profile", "default", "--no-hooks", "--no-wait")
    values = cluster.get("/api/v1/namespaces/istio-system/configmaps/meshbus-injection")
    assert "meshID: m" in values["data"]["values.yaml"]
    assert cluster.exists("/apis/apps/v1/namespaces/istio-system/deployments/xds-gateway")

    # Another mesh with the same name of revision is in the way.
    foreign = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "istio-sidecar-injector", "labels": {"istio.io/rev": "default"}},
        "webhooks": [],
    }
    cluster.apply(foreign)
    assert run("precheck").exit_code == 1
    assert run("precheck", "--revision", "blue").exit_code == 0
    cluster.delete(foreign)

    made = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "meshbus-proxy", "namespace": "default",
                     "labels": {"meshbus.io/proxy-files": "true"}},
    }  # fmt: skip
    cluster.apply(made)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "meshbus-bus-ca", "namespace": "istio-system",
                     "labels": {"app.kubernetes.io/part-of": "meshbus"}},
    }  # fmt: skip
    cluster.apply(secret)
    done("uninstall", "--purge", "--no-hooks")
    hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    for path in (
        "/api/v1/namespaces/default/configmaps/meshbus-proxy",
        "/api/v1/namespaces/istio-system/secrets/meshbus-bus-ca",
        "/apis/networking.istio.io/v1/virtualservices",
        "/apis/apps/v1/namespaces/istio-system/deployments/xds-gateway",
        f"{hooks}/meshbus-sidecar-injector-istio-system",
    ):
        cluster.wait(lambda path=path: not cluster.exists(path))


def test_without_a_cluster_manifests_are_printed(
    helm_program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELM", helm_program)
    result = CliRunner().invoke(app, ["install", "--dry-run", "--profile", "ha"])
    assert result.exit_code == 0
    assert "kind: StatefulSet" in result.stdout
    wrong = CliRunner().invoke(app, ["install", "--dry-run", "--profile", "huge"])
    assert wrong.exit_code == 1
    nowhere = CliRunner().invoke(app, ["install", "--dry-run", "--values", "/nowhere"])
    assert nowhere.exit_code == 2
