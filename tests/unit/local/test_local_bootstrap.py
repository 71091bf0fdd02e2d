"""The bootstrap of an Envoy: what it says, and that a real Envoy takes it."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from meshbus.local import bootstrap
from meshbus.local.binaries import find_envoy
from meshbus.local.home import HomeError

IDENTITY = bootstrap.ProxyIdentity(
    type="sidecar",
    name="reviews-v1-0",
    namespace="default",
    workload="reviews-v1",
    service_account="bookinfo-reviews",
    addresses=["127.130.0.4"],
    labels={"app": "reviews"},
    cluster="Kubernetes",
    locality="eu/a",
)
NAME = "xds-gateway.istio-system.svc"


def test_a_proxy_says_who_it_is_and_holds_no_secret() -> None:
    document = bootstrap.envoy_bootstrap(IDENTITY, ("127.0.0.1", 15012), NAME, "/f")
    node = document["node"]
    expected = "sidecar~127.130.0.4~reviews-v1-0.default~default.svc.cluster.local"
    assert node["id"] == expected
    assert node["locality"] == {"region": "eu", "zone": "a", "sub_zone": ""}
    assert node["metadata"]["SERVICE_ACCOUNT"] == "bookinfo-reviews"
    assert b"/f/token-sds.json" in bootstrap.render(document)


def test_the_gateway_is_pinned_by_name() -> None:
    secret = bootstrap.roots_sds("/f", NAME)["resources"][0]
    names = secret["validation_context"]["match_typed_subject_alt_names"]
    assert names == [{"san_type": "DNS", "matcher": {"exact": NAME}}]


@pytest.mark.parametrize(
    ("addresses", "lookup"),
    [
        (["10.0.0.1"], "V4_ONLY"),
        (["fd00::1"], "V6_ONLY"),
        (["10.0.0.1", "fd00::1"], "V4_PREFERRED"),
        (["fd00::1", "10.0.0.1"], "AUTO"),
    ],
)
def test_a_gateway_that_has_a_name_is_looked_up_in_the_families_that_a_proxy_has(
    addresses: list[str], lookup: str
) -> None:
    identity = replace(IDENTITY, addresses=addresses)
    document = bootstrap.envoy_bootstrap(identity, ("mesh.example.com", 15012), NAME, "/f")
    (cluster, *_) = document["static_resources"]["clusters"]
    assert (cluster["type"], cluster["dns_lookup_family"]) == ("STRICT_DNS", lookup)


def validate(folder: Path) -> str:
    try:
        envoy = find_envoy()
    except HomeError as error:
        pytest.skip(str(error))
    result = subprocess.run(
        [*bootstrap.envoy_argv(envoy), "--mode", "validate"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return "" if result.returncode == 0 else result.stderr


@pytest.mark.real
def test_envoy_takes_the_bootstrap_of_a_proxy(tmp_path: Path) -> None:
    document = bootstrap.envoy_bootstrap(IDENTITY, ("127.0.0.1", 15012), NAME, str(tmp_path))
    files = {
        bootstrap.BOOTSTRAP_FILE: document,
        bootstrap.TOKEN_SDS_FILE: bootstrap.token_sds(str(tmp_path)),
        bootstrap.ROOTS_SDS_FILE: bootstrap.roots_sds(str(tmp_path), NAME),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(bootstrap.render(content))
    assert validate(tmp_path) == ""


@pytest.mark.real
def test_envoy_takes_the_bootstrap_of_forwards(tmp_path: Path) -> None:
    document = bootstrap.forward_bootstrap([20001, 20002], str(tmp_path), ("127.0.0.1", "::1"))
    (tmp_path / bootstrap.BOOTSTRAP_FILE).write_bytes(bootstrap.render(document))
    for port, places in (
        (20001, [("127.130.0.4", 8080), ("127.130.0.6", 8080)]),
        (20002, [("fd6d::4", 8080)]),
    ):
        content = bootstrap.render(bootstrap.forward_targets(port, places))
        (tmp_path / bootstrap.forward_file(port)).write_bytes(content)
    assert validate(tmp_path) == ""
