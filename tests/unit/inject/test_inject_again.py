"""Whatever a pod says: it is injected, or refused with a reason; and again is the same."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshbus.inject import InjectionError, Injector, Owner
from meshbus.inject.annotations import KNOWN, OVERRIDES, PROXY_TYPE, STATUS, TEMPLATES

OWNER = Owner("apps/v1", "Deployment", "web", "shop")
VALUES = st.sampled_from(
    [
        "", "0", "-1", "true", "false", "x", "{}", "[]", '{"a":{}}', '{"a":1}', "*", "1,2", "1,,2",
        "10.0.0.0/8", "70000", "null", "a: b", "{{", "sidecar", "gateway", "sidecar,gateway", '"',
        "\x00", "é", "1e3", "100m", "concurrency: 0", "concurrency: -5", "discoveryAddress: x",
        "drainDuration: 0s", "proxyMetadata: {A: b}", "statusPort: 0", "interceptionMode: NONE",
        "interceptionMode: TPROXY", "image: {imageType: debug}", "terminationDrainDuration: 1h",
        "holdApplicationUntilProxyStarts: true", '{"containers":[{}]}', '{"initContainers":3}',
        '{"containers":[{"name":"istio-proxy"}]}', '{"containers":["istio-proxy","web"]}',
    ]
)  # fmt: skip
NOTES = st.dictionaries(st.sampled_from(sorted(KNOWN)), VALUES, max_size=4)
PROBES = st.sampled_from(
    [
        {},
        {"livenessProbe": {"httpGet": {"port": "http", "path": "/a?b=c"}}},
        {"readinessProbe": {"tcpSocket": {"port": 8080}, "timeoutSeconds": 3}},
        {"startupProbe": {"grpc": {"port": 9090, "service": "s"}}},
        {"livenessProbe": {"httpGet": {"port": "nowhere"}}},
        {"livenessProbe": {"exec": {"command": ["true"]}}},
        {"lifecycle": {"preStop": {"httpGet": {"port": 8080}}}},
    ]
)
VALUES_OF_CHART = st.sampled_from(
    [
        {},
        {"pilot": {"cni": {"enabled": True}}},
        {"pilot": {"env": {"ENABLE_NATIVE_SIDECARS": "false"}}},
        {"global": {"imagePullSecrets": ["s"], "network": "n", "logAsJson": True}},
        {"global": {"proxy": {"holdApplicationUntilProxyStarts": True, "statusPort": 0}}},
    ]
)


def written(notes: dict[str, str], probes: dict[str, Any], proxy: bool) -> dict[str, Any]:
    containers = [{"name": "web", "image": "w", "ports": [{"name": "http", "containerPort": 8080}],
                   **probes}]  # fmt: skip
    if proxy:
        containers.append({"name": "istio-proxy", "image": "auto", "env": [{"name": "A"}]})
    return {
        "metadata": {"labels": {"app": "web"}, "annotations": notes},
        "spec": {"containers": containers, "volumes": [{"name": "v", "emptyDir": {}}]},
    }


@settings(max_examples=150, deadline=None)
@given(NOTES, PROBES, st.booleans(), VALUES_OF_CHART)
@example({OVERRIDES: "{}"}, {}, False, {})
@example({OVERRIDES: '{"containers":[{"name":"istio-proxy"}]}'}, {}, False, {})
@example({STATUS: '{"containers":[{}]}', "sidecar.istio.io/userVolume": "-1"}, {}, False, {})
@example({STATUS: "x", OVERRIDES: '{"a":1}'}, {}, True, {})
def test_injected_or_refused_and_again_the_same(
    notes: dict[str, str], probes: dict[str, Any], proxy: bool, values: dict[str, Any]
) -> None:
    injector = Injector(values)
    pod = written(notes, probes, proxy)
    try:
        once = injector.inject(pod, OWNER).pod
    except InjectionError as refused:
        why = refused.path
    else:
        why = ""
    if why:
        return
    assert pod == written(notes, probes, proxy), "what was given is not changed"
    assert injector.inject(once, OWNER).pod == once


def test_a_gateway_drains_all_its_listeners_and_a_sidecar_those_of_callers() -> None:
    drained = {}
    for template in ("sidecar", "gateway"):
        pod = {
            "metadata": {"annotations": {TEMPLATES: template}},
            "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]},
        }
        spec = Injector({}).inject(pod, OWNER).pod["spec"]
        made = [*spec["containers"], *spec.get("initContainers", ())]
        (proxy,) = [c for c in made if c["name"] == "istio-proxy"]
        script = proxy["lifecycle"]["preStop"]["exec"]["command"][-1]
        drained[template] = script.partition("/drain_listeners?")[2].partition('"')[0]
    assert drained == {
        "sidecar": "inboundonly&graceful&skip_exit",
        "gateway": "graceful&skip_exit",
    }


def test_a_gateway_is_marked_as_long_as_it_is_one() -> None:
    """Discovery, and with it the xds-gateway, tells gateways from sidecars by the mark."""
    injector = Injector({})
    pod = {
        "metadata": {"annotations": {TEMPLATES: "gateway"}},
        "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]},
    }
    gateway = injector.inject(pod, OWNER).pod
    assert gateway["metadata"]["annotations"][PROXY_TYPE] == "router"
    gateway["metadata"]["annotations"].pop(TEMPLATES)
    assert PROXY_TYPE not in injector.inject(gateway, OWNER).pod["metadata"]["annotations"]
    claimed = {"metadata": {"annotations": {PROXY_TYPE: "router"}}, "spec": pod["spec"]}
    assert PROXY_TYPE not in injector.inject(claimed, OWNER).pod["metadata"]["annotations"]
