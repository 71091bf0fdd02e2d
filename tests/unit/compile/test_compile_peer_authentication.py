"""PeerAuthentication: which mode is in force, by the tables of Istio's reference.

Mesh, namespace and workload in turn; UNSET is as the level above; at each level the oldest counts.
Source: https://istio.io/latest/docs/reference/config/security/peer_authentication/
"""

from typing import Any

import pytest
from meshes import Rows, config, mesh_config, rows

from meshbus.compile.engine import Engine
from meshbus.compile.peer_authentication import mutual_tls
from meshbus.compile.proxy import compile_proxy
from meshbus.compile.proxy_keys import ProxyKeys
from meshbus.model.world import world_of

LABELS = (("app", "a"), ("version", "v1"))
S, P, D, U = "STRICT", "PERMISSIVE", "DISABLE", "UNSET"


def policy(
    mode: str | None,
    *,
    namespace: str = "foo",
    selector: dict[str, str] | None = None,
    ports: dict[int, str] | None = None,
    created: float = 1.0,
    name: str = "",
) -> Rows:
    spec: dict[str, Any] = {}
    if mode is not None:
        spec["mtls"] = {"mode": mode}
    if selector is not None:
        spec["selector"] = {"matchLabels": selector}
    if ports is not None:
        spec["portLevelMtls"] = {str(port): {"mode": own} for port, own in ports.items()}
    name = name or f"{namespace}-{mode}-{selector}-{created}".lower()
    return config("PeerAuthentication", name, spec, namespace, created)


def root(mode: str | None, **fields: Any) -> Rows:
    return policy(mode, namespace="istio-system", **fields)


def own(mode: str | None, **fields: Any) -> Rows:
    return policy(mode, selector={"app": "a"}, **fields)


@pytest.mark.parametrize(
    ("policies", "mode"),
    [
        ((), P),
        ((root(S),), S),
        ((root(D),), D),
        ((root(U),), P),
        ((root(None),), P),
        ((policy(S),), S),
        ((root(S), policy(P)), P),
        ((root(S), policy(D)), D),
        ((root(S), policy(U)), S),
        ((root(S), policy(None)), S),
        ((root(D), policy(U), own(U)), D),
        ((root(S), own(D)), D),
        ((policy(S), own(P)), P),
        ((policy(S), own(U)), S),
        ((root(S), policy(D), own(None)), D),
        # Whom it does not concern.
        ((policy(S, namespace="bar"),), P),
        ((policy(S, selector={"app": "b"}),), P),
        ((policy(S, selector={"app": "a", "version": "v2"}),), P),
        ((policy(S, selector={"app": "a", "version": "v1"}),), S),
        # In the root namespace a selector is about nobody.
        ((root(S, selector={"app": "a"}),), P),
        # The oldest of one level; of equal age the first by name.
        ((policy(S, created=1), policy(D, created=2)), S),
        ((policy(S, created=3), policy(D, created=2)), D),
        ((root(S, created=3), root(D, created=2)), D),
        ((own(S, created=5), own(D, created=4)), D),
        ((policy(S, name="b"), policy(D, name="a")), D),
    ],
)
def test_modes(policies: tuple[Rows, ...], mode: str) -> None:
    found = Engine(world_of(rows(*policies))).get(mutual_tls, "foo", LABELS)
    assert found.at(80) == mode
    assert found.at(8080) == mode


@pytest.mark.parametrize(
    ("policies", "at_80", "others"),
    [
        ((own(S, ports={80: D}),), D, S),
        ((own(None, ports={80: S}),), S, P),
        ((own(S, ports={80: U}),), S, S),
        ((policy(S), own(U, ports={80: P})), P, S),
        ((policy(S), own(None, ports={80: U})), S, S),
        ((root(D), own(None, ports={80: S})), S, D),
        # Only the workload's own policy has ports, and only the one that counts.
        ((own(S, ports={80: D}, created=1), own(S, ports={80: P}, created=2)), D, S),
        ((policy(S), policy(P, selector={"app": "b"}, ports={80: D})), S, S),
    ],
)
def test_ports(policies: tuple[Rows, ...], at_80: str, others: str) -> None:
    found = Engine(world_of(rows(*policies))).get(mutual_tls, "foo", LABELS)
    assert (found.at(80), found.at(81)) == (at_80, others)


def test_the_root_namespace_is_that_of_the_mesh_config() -> None:
    mesh = rows(mesh_config(rootNamespace="root"), policy(S, namespace="root"), root(D))
    assert Engine(world_of(mesh)).get(mutual_tls, "foo", LABELS).mode == S


@pytest.mark.parametrize("namespace", ["istio-system", "foo"])
def test_a_selector_in_the_root_namespace_has_no_effect_and_that_is_told(namespace: str) -> None:
    """Source: Istio, ComposePeerAuthentication: workload-level policies of the root namespace are
    passed over, also for workloads that run there."""
    selecting = root(D, selector={"app": "a"}, ports={80: D}, name="selecting")
    mesh = rows(root(S), selecting, root(D, selector={"app": "b"}, name="of-others"))
    found = Engine(world_of(mesh)).get(mutual_tls, namespace, LABELS)
    assert (found.mode, found.ports) == (S, ())
    assert found.passed_over == tuple(rows(selecting))

    sidecar = ProxyKeys(
        type="sidecar",
        name="a-0",
        namespace=namespace,
        labels=LABELS,
        service_account="a",
        ips=("10.0.0.1",),
    )
    snapshot = Engine(world_of(mesh)).get(compile_proxy, sidecar)
    (told,) = [f for f in snapshot.findings if f.object in rows(selecting)]
    assert told.path == "spec.selector"
    assert "no effect in the root namespace" in told.message
