"""Workload objects to instances, and what is told about them."""

from typing import Any

import pytest

from meshbus.local.addresses import InstanceAddresses
from meshbus.local.desired import (
    InstanceSpec,
    application_env,
    instances_of,
    report_of,
    same_process,
)
from meshbus.model.rows import ConfigObject

PROXY = InstanceAddresses(("127.130.0.4",), "127.130.0.5")
NETNS = InstanceAddresses(("10.200.0.4", "fd00::4"), "")


def workload(deletion: float | None = None, **spec: Any) -> ConfigObject:
    return ConfigObject(
        api_version="standalone.meshbus.io/v1alpha1",
        kind="Workload",
        namespace="default",
        name="reviews-v1",
        uid="u",
        generation=1,
        created=1.0,
        labels={"app": "reviews"},
        spec={"command": ["python3", "-m", "x"], **spec},
        deletion=deletion,
    )


def test_replicas_are_instances_with_numbers() -> None:
    found = instances_of(
        workload(replicas=2, ports=[{"name": "http", "port": 9080}]), capture="proxy"
    )
    assert [instance.id for instance in found] == ["default/reviews-v1-0", "default/reviews-v1-1"]
    assert instances_of(workload(replicas=0), capture="proxy") == []
    assert instances_of(workload(deletion=5.0), capture="proxy") == []


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"command": []}, "spec.command"),
        ({"ports": [{"port": 80, "targetPort": 8080}]}, r"spec.ports\[0\].targetPort"),
        ({"replicas": "many"}, "replicas"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_cannot_be_run_is_named(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        instances_of(workload(**spec), capture="proxy")


def test_proxy_capture_tells_both_addresses_and_sets_http_proxy() -> None:
    (instance,) = instances_of(workload(ports=[{"name": "http", "port": 9080}]), capture="proxy")
    report = report_of(instance, PROXY, capture="proxy", ready=True)
    assert (report.addresses, report.app_address) == (["127.130.0.4"], "127.130.0.5")
    assert (report.capture, report.http_proxy_address) == ("proxy", "127.130.0.4")
    env = application_env(instance, PROXY, capture="proxy")
    assert env["http_proxy"] == "http://127.130.0.4:15080"
    assert env["MESHBUS_BIND_ADDRESS"] == "127.130.0.5"
    assert env["POD_NAME"] == "reviews-v1-0"


def test_netns_capture_needs_to_know_nothing() -> None:
    (instance,) = instances_of(workload(), capture="proxy")
    report = report_of(instance, NETNS, capture="netns", ready=False)
    assert report.addresses == ["10.200.0.4", "fd00::4"]
    assert (report.capture, report.dual_stack, report.app_address) == ("redirect", True, "")
    env = application_env(instance, NETNS, capture="netns")
    assert env["MESHBUS_BIND_ADDRESS"] == "::"
    assert "http_proxy" not in env


def test_outside_the_mesh_there_is_no_envoy() -> None:
    (instance,) = instances_of(workload(sidecar=False), capture="proxy")
    report = report_of(instance, PROXY, capture="proxy", ready=True)
    assert not report.sidecar
    assert report.http_proxy_port == 0
    env = application_env(instance, PROXY, capture="proxy")
    assert env["MESHBUS_BIND_ADDRESS"] == "127.130.0.4"
    assert "http_proxy" not in env


def test_somebody_elses_process_keeps_its_address() -> None:
    (instance,) = instances_of(
        workload(command=[], address="192.0.2.7", sidecar=False), capture="proxy"
    )
    report = report_of(instance, PROXY, capture="proxy", ready=True)
    assert report.addresses == ["192.0.2.7"]


def test_somebody_elses_process_cannot_be_captured() -> None:
    row = workload(command=[], address="192.0.2.7")
    assert instances_of(row, capture="proxy")[0].has_envoy
    with pytest.raises(ValueError, match=r"spec\.sidecar"):
        instances_of(row, capture="netns")


def test_a_gateway_is_an_envoy_alone() -> None:
    (instance,) = instances_of(workload(command=[], gateway=True), capture="proxy")
    report = report_of(instance, PROXY, capture="proxy", ready=True)
    assert report.gateway
    assert not report.sidecar
    assert not instance.runs_application


def test_own_environment_wins() -> None:
    (instance,) = instances_of(workload(env={"http_proxy": "", "A": "b"}), capture="proxy")
    env = application_env(instance, PROXY, capture="proxy")
    assert (env["http_proxy"], env["A"]) == ("", "b")


def test_scaling_and_weights_leave_running_processes_alone() -> None:
    def only(**spec: object) -> InstanceSpec:
        row = ConfigObject(
            "standalone.meshbus.io/v1alpha1",
            "Workload",
            "default",
            "w",
            "u",
            1,
            0.0,
            spec={"command": ["x"], **spec},
        )
        return instances_of(row, capture="proxy")[0]

    one = only(replicas=1)
    assert same_process(one, only(replicas=3))
    assert same_process(one, only(weight=5, locality="r/z", network="n"))
    assert not same_process(one, only(command=["y"]))
    assert not same_process(one, only(env={"A": "b"}))
    assert not same_process(one, only(serviceAccount="other"))
