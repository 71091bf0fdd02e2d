"""Authorities from a ConfigMap, on real Envoys: of a gateway for its clients, and of sidecars for
servers. They are followed: another content holds for the next connection."""

from pathlib import Path
from typing import Any

import pytest
from standalone import until
from task_certificates import write_certificates
from task_mesh import Config, TaskMesh
from test_tasks_ingress import TO_HTTPBIN, gateway, secret, served, trust

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]

URL = "https://httpbin.example.com/"


@pytest.fixture
def strangers(tmp_path: Path) -> str:
    """Authorities that have signed nothing here."""
    write_certificates(tmp_path / "strangers")
    return (tmp_path / "strangers" / "root.pem").read_text()


def config_map(name: str, roots: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": {"ca.crt": roots, "other": "x"},
    }


def test_a_gateway_checks_its_clients(task_mesh: TaskMesh, config: Config, strangers: str) -> None:
    own = (task_mesh.certificates / "root.pem").read_text()
    known = trust(task_mesh, client=True)

    def status() -> int:
        return task_mesh.ingress(URL, trust=known).status

    config.apply([secret(task_mesh, "edge-credential", "httpbin")])
    config.apply(
        gateway("""
  - port: {number: 443, name: https, protocol: HTTPS}
    tls:
      mode: MUTUAL
      credentialName: edge-credential
      caCertCredentialName: configmap://default/clients
    hosts: [httpbin.example.com]
""")
        + served("httpbin.example.com", TO_HTTPBIN)
    )
    told = "there is no ConfigMap default/clients"
    until(lambda: told in task_mesh.reasons("gateways", "entry"), "its status says so")
    assert status() == 0
    config.apply([config_map("clients", own)])
    until(lambda: status() == 200, "clients are known")
    until(lambda: not task_mesh.reasons("gateways", "entry"), "nothing is wrong any more")
    assert task_mesh.ingress(URL, trust=trust(task_mesh)).status == 0, "no certificate, no answer"
    config.apply([config_map("clients", strangers)])
    until(lambda: status() == 0, "others are known")
    config.apply([config_map("clients", own + strangers)])
    until(lambda: status() == 200, "both are known")


RULE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside}
spec:
  hosts: [outside.example.com]
  ports:
  - {number: 80, name: http, protocol: HTTP, targetPort: 443}
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: outside}
spec:
  host: outside.example.com
  trafficPolicy:
    connectionPool: {http: {maxRequestsPerConnection: 1}}
    tls:
      mode: SIMPLE
      credentialName: configmap://default/servers
      sni: outside.example.com
      subjectAltNames: [outside.example.com]
"""


def test_sidecars_check_servers(task_mesh: TaskMesh, config: Config, strangers: str) -> None:
    own = (task_mesh.certificates / "root.pem").read_text()
    url = "http://outside.example.com/"
    config.apply(RULE)
    told = "ConfigMap default/servers does not exist"
    until(lambda: told in task_mesh.reasons("destinationrules", "outside"), "its status says so")
    config.apply([config_map("servers", own)])
    until(lambda: task_mesh.get(url).version == "outside", "the server is known")
    until(lambda: not task_mesh.reasons("destinationrules", "outside"), "nothing is wrong")
    config.apply([config_map("servers", strangers)])
    until(lambda: task_mesh.get(url).status == 503, "the server is not known any more")
    config.apply([config_map("servers", own)])
    until(lambda: task_mesh.get(url).version == "outside", "it is known again")
