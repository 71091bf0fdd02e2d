"""Hosts files: what means the same to every workload, and nothing else."""

from typing import Any

import pytest

from meshbus.local.hosts import hosts_for
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, MeshConfigRow, Row, Service, ServicePort
from meshbus.model.world import world_of

C = "Kubernetes"
WEB = "web.default.svc.cluster.local"


def service(host: str, namespace: str = "default", **fields: Any) -> tuple[Key, Row]:
    origin = "kubernetes" if host.endswith(".svc.cluster.local") else "external"
    fields = {"addresses": ["240.240.0.1"], **fields}
    ports = [ServicePort("http", 80, "HTTP")]
    row = Service(host, namespace, host.partition(".")[0], origin, ports, **fields)
    return Key(C, "reg", "services", namespace, host), row


def names(*more: tuple[Key, Row], namespace: str = "default") -> set[str]:
    rows = dict([service(WEB), service("api.example.com"), *more])
    lines = hosts_for(world_of(rows), namespace, "istio-system").splitlines()
    return {name for line in lines if line.startswith("240.") for name in line.split()[1:]}


EVERYTHING = {WEB, "web.default.svc", "web.default", "web", "api.example.com"}


def test_names_by_the_namespace_of_who_asks() -> None:
    assert names() == EVERYTHING
    assert names(namespace="far") == EVERYTHING - {"web"}


def test_what_depends_on_who_asks_is_left_to_dns() -> None:
    assert names(service("api.example.com", "far")) == EVERYTHING - {"api.example.com"}
    assert names(service("db.example.com", export_to=["."])) == EVERYTHING
    assert names(service("web.default")) == EVERYTHING, "the entry of that name, once"


@pytest.mark.parametrize("owner", ["default", "istio-system"])
def test_under_a_sidecar_everything_is_asked(owner: str) -> None:
    row = ConfigObject("networking.istio.io/v1", "Sidecar", owner, "s", "", 1, 0.0)
    assert names((Key(C, "cfg", "sidecars", owner, "s"), row)) == set()


@pytest.mark.parametrize(
    "spec", [{"defaultServiceExportTo": ["."]}, {"serviceEntryVisibility": {}}]
)
def test_defaults_of_the_mesh_decide_who_sees(spec: dict[str, Any]) -> None:
    found = names((Key(C, "mesh", "config", "", "mesh"), MeshConfigRow(spec)))
    assert found == (EVERYTHING if not any(spec.values()) else set())
