"""Who proxies run as where the platform gives each namespace a range of users."""

from typing import Any

import pytest

from meshbus.inject import Injector, Owner
from meshbus.inject.documents import Beside, identities_of, inject_document
from meshbus.inject.openshift import GROUPS, UID_RANGE, Identity, identity_of


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({}, None),
        ({UID_RANGE: "1000620000/10000"}, (1000629999, 1000629999, 1000620000)),
        ({UID_RANGE: "1000-1999"}, (1999, 1999, 1000)),
        ({UID_RANGE: "1000/10", GROUPS: "5000/100,9000/1"}, (1009, 5099, 1000)),
        ({UID_RANGE: "1000/10", GROUPS: ""}, (1009, 1009, 1000)),
        ({UID_RANGE: "1000/0"}, None),
        ({UID_RANGE: "0/10"}, None),
        ({UID_RANGE: "ten/10"}, None),
        ({UID_RANGE: "1000"}, None),
        ({UID_RANGE: "4294967290/10000"}, None),
    ],
)
def test_range(notes: dict[str, str], expected: tuple[int, int, int] | None) -> None:
    assert identity_of(notes) == (None if expected is None else Identity(*expected))


def test_pods_of_a_namespace_among_the_manifests() -> None:
    namespace = {"kind": "Namespace", "metadata": {"name": "n", "annotations": {UID_RANGE: "7/3"}}}
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "n"},
        "spec": {"containers": [{"name": "web", "image": "w"}]},
    }
    identities = identities_of([namespace, pod, None, {"kind": "Namespace"}])
    assert identities == {"n": Identity(9, 9, 7)}

    def users(document: dict[str, Any]) -> tuple[int, int]:
        made = inject_document(Injector({}), document, Beside(identities)).document["spec"]
        inits = {one["name"]: one for one in made["initContainers"]}
        arguments = inits["istio-init"]["args"]
        captured = int(arguments[arguments.index("-u") + 1])
        return inits["istio-proxy"]["securityContext"]["runAsUser"], captured

    assert users(pod) == (9, 9)
    elsewhere = {**pod, "metadata": {"name": "web", "namespace": "other"}}
    assert users(elsewhere) == (1337, 1337)
    # A transparent proxy is root, and capture tells its traffic by the group.
    transparent = {"annotations": {"sidecar.istio.io/interceptionMode": "TPROXY"}}
    assert users({**pod, "metadata": {**pod["metadata"], **transparent}}) == (0, 1337)


def test_a_user_that_the_platform_gave_is_nobodys_wish() -> None:
    owner = Owner("apps/v1", "Deployment", "web", "n")

    def user(wished: int) -> int:
        proxy = {"name": "istio-proxy", "image": "auto", "securityContext": {"runAsUser": wished}}
        pod = {"metadata": {}, "spec": {"containers": [{"name": "web", "image": "w"}, proxy]}}
        spec = Injector({}).inject(pod, owner, identity=Identity(9, 9, 7)).pod["spec"]
        found = next(c for c in spec["initContainers"] if c["name"] == "istio-proxy")
        return int(found["securityContext"]["runAsUser"])

    assert user(7) == 9
    assert user(8) == 8
