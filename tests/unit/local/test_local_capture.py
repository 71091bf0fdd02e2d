"""Capture rules and names in a namespace."""

import shutil
import subprocess

import pytest

from meshbus.api.standalone import Workload
from meshbus.local.capture import CapturePorts, capture_rules, hosts_file, service_names
from meshbus.local.desired import InstanceSpec
from meshbus.local.proxy_start import proxy_start


def test_the_proxy_is_never_captured_and_everybody_else_is() -> None:
    rules = capture_rules(4, "10.192.0.1").splitlines()
    last = rules.index("-A MESH_OUTPUT -p tcp -j MESH_REDIRECT")
    own = rules.index("-A MESH_OUTPUT -m owner --uid-owner 1337 -j RETURN")
    assert own < last
    assert "-A MESH_REDIRECT -p tcp -j REDIRECT --to-ports 15001" in rules
    assert "-A MESH_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006" in rules
    assert "127.0.0" not in capture_rules(6, "fd6d::1")


def test_the_ports_are_those_of_the_mesh() -> None:
    rules = capture_rules(6, "fd6d::1", ports=CapturePorts(16001, 16006))
    assert "-A MESH_REDIRECT -p tcp -j REDIRECT --to-ports 16001" in rules
    assert "-A MESH_IN_REDIRECT -p tcp -j REDIRECT --to-ports 16006" in rules
    spec = InstanceSpec("default", "a-0", "a", {}, Workload())
    start = proxy_start(spec, {"proxyListenPort": 16001}, [], "istio-system")
    assert start.capture == CapturePorts(16001, 15006)


@pytest.mark.real
@pytest.mark.root
@pytest.mark.parametrize(("family", "tool"), [(4, "iptables"), (6, "ip6tables")])
def test_the_kernel_takes_the_rules(family: int, tool: str) -> None:
    if shutil.which(f"{tool}-restore") is None:
        pytest.skip(f"{tool}-restore is not installed")
    result = subprocess.run(
        ["unshare", "--net", f"{tool}-restore", "--noflush"],
        input=capture_rules(family, "10.192.0.1" if family == 4 else "fd6d::1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_short_names_hold_in_the_own_namespace_only() -> None:
    host = "reviews.default.svc.cluster.local"
    assert "reviews" in service_names("reviews", "default", host, "default")
    assert "reviews" not in service_names("reviews", "default", host, "other")
    assert "reviews.default" in service_names("reviews", "default", host, "other")
    text = hosts_file([("240.240.0.1", ["reviews", host])])
    assert f"240.240.0.1 reviews {host}\n" in text
    assert text.startswith("127.0.0.1 localhost\n")
