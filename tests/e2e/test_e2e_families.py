"""Meshes of each family of addresses, with applications that reach them by `http_proxy`."""

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from standalone import all_ready, gateway_port, meshbus, remaining, status_of, until

from meshbus.local.api import MeshApi
from meshbus.local.end import end_mesh
from meshbus.local.home import Home, HomeError

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]

APP = Path(__file__).parents[1] / "tasks" / "echo_app.py"
CASES = [["IPv6"], ["IPv4", "IPv6"], ["IPv6", "IPv4"]]


def workload(name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "standalone.meshbus.io/v1alpha1",
        "kind": "Workload",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"serviceAccount": name, **spec},
    }


def object_of(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    version = "v1" if kind == "Service" else "networking.istio.io/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def manifests() -> list[dict[str, Any]]:
    gateway = workload("istio-ingressgateway", "istio-system", gateway=True)
    gateway["spec"]["ports"] = [{"name": "http", "port": 8080}]
    command = [sys.executable, str(APP), "http:8080"]
    port = {"number": 8080, "name": "http", "protocol": "HTTP"}
    to = {"destination": {"host": "hello", "port": {"number": 8000}}}
    return [
        gateway,
        workload("hello", command=command, ports=[{"name": "http", "port": 8080}], replicas=2),
        workload("client", command=[sys.executable, str(APP)]),
        object_of(
            "Service",
            "hello",
            selector={"app": "hello"},
            ipFamilyPolicy="PreferDualStack",
            ports=[{"name": "http", "port": 8000, "targetPort": 8080}],
        ),
        object_of(
            "Gateway",
            "edge",
            selector={"app": "istio-ingressgateway"},
            servers=[{"port": port, "hosts": ["*"]}],
        ),
        object_of(
            "VirtualService", "hello", hosts=["*"], gateways=["edge"], http=[{"route": [to]}]
        ),
    ]


def addresses_of_loopback() -> set[str]:
    shown = subprocess.run(
        ["ip", "-6", "-o", "addr", "show", "dev", "lo"], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[3].partition("/")[0] for line in shown.splitlines()}


@pytest.fixture(params=CASES, ids=lambda families: "-".join(families))
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Home, list[str]]]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("addresses are added to the loopback interface by root, with `ip`")
    made = Home(tmp_path / "h")
    made.create()
    made.settings_file.write_text(
        yaml.safe_dump({"ipFamilies": request.param, "services": {"processes": "one"}})
    )
    file = tmp_path / "mesh.yaml"
    file.write_text(yaml.safe_dump_all(manifests()))
    before = addresses_of_loopback()
    try:
        result = meshbus("up", "--home", str(made.path), "-d", "-f", str(file))
        assert result.returncode == 0, result.stderr
        yield made, request.param
    finally:
        end_mesh(made)
    assert not remaining(made)
    assert addresses_of_loopback() == before


def get(url: str, proxy: str = "") -> tuple[int, str]:
    handler = urllib.request.ProxyHandler({"http": proxy} if proxy else {})
    try:
        with urllib.request.build_opener(handler).open(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except OSError:
        return 0, ""


def test_a_mesh_of_families_by_http_proxy(home: tuple[Home, list[str]]) -> None:
    mesh, families = home
    for name, instance in status_of(mesh).instances.items():
        own = ["IPv6" if ":" in address else "IPv4" for address in instance.addresses]
        assert own == families, name
        assert (":" in instance.app_address) == (families[0] == "IPv6")
    hosts = {"IPv4": "127.0.0.1", "IPv6": "[::1]"}
    with MeshApi(mesh) as api:
        assert api.url.startswith(f"https://{hosts[families[0]]}:")
        objects = api.get("/v1/proxies")["proxies"]
    assert len(objects) == len(status_of(mesh).instances)
    first = status_of(mesh).instances["default/client-0"].addresses[0]
    proxy = f"http://[{first}]:15080" if ":" in first else f"http://{first}:15080"
    until(lambda: get("http://hello:8000/", proxy)[0] == 200, "the service is called")
    seen = {get("http://hello:8000/", proxy)[1] for _ in range(12)}
    assert all('"instance": "hello-' in body for body in seen), seen
    if len(families) == 1:
        other = object_of("Service", "other", ipFamilies=["IPv4"], ports=[{"port": 80}])
        with MeshApi(mesh) as api, pytest.raises(HomeError, match="this mesh has IPv6 alone"):
            api.apply([other])
    # The gateway is reached on localhost of each family, and of no other.
    port = gateway_port(mesh)
    for family, host in hosts.items():
        status, _ = get(f"http://{host}:{port}/")
        assert status == (200 if family in families else 0), family
    # Its Envoy listens on each address of an instance.
    for address in status_of(mesh).instances["istio-system/istio-ingressgateway-0"].addresses:
        where = f"[{address}]" if ":" in address else address
        assert get(f"http://{where}:8080/")[0] == 200


def test_other_families_need_a_mesh_that_has_ended(home: tuple[Home, list[str]]) -> None:
    mesh, families = home
    other = ["IPv4"] if families != ["IPv4"] else ["IPv6"]
    mesh.settings_file.write_text(yaml.safe_dump({"ipFamilies": other}))
    refused = meshbus("up", "--home", str(mesh.path), "-d")
    assert refused.returncode == 1
    assert f"runs with ipFamilies: [{', '.join(families)}]" in refused.stderr
    assert meshbus("down", "--home", str(mesh.path)).returncode == 0
    again = meshbus("up", "--home", str(mesh.path), "-d")
    assert again.returncode == 0, again.stderr
    until(lambda: all_ready(mesh), "it runs")
    for name, instance in status_of(mesh).instances.items():
        assert all("." in address for address in instance.addresses), name
