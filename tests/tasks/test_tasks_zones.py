"""Zone-aware load balancing: calls stay in the zone of the caller as far as its hosts suffice."""

from collections import Counter
from typing import Any

from standalone import until
from task_mesh import Config, TaskMesh, service, workload

HOME, NEXT, FAR = "eu/zone1", "eu/zone2", "us/zone1"
RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: hosts, namespace: default}}
spec:
  host: hosts
  trafficPolicy:
    loadBalancer: {{simple: ROUND_ROBIN, zoneAwareLbSetting: {{{setting}}}}}
"""


def part(app: str, name: str, locality: str, replicas: int, *, sidecar: bool) -> dict[str, Any]:
    """Those replicas of an application that are in one locality."""
    return workload(
        f"{app}-{name}",
        "http:8080",
        ports=[{"name": "http", "port": 8080}],
        labels={"app": app},
        env={"VERSION": name},
        serviceAccount=app,
        locality=locality,
        replicas=replicas,
        sidecar=sidecar,
    )


def callers(home: int, away: int) -> list[dict[str, Any]]:
    """Callers in two zones of a region."""
    return [
        part("calls", "home", HOME, home, sidecar=True),
        part("calls", "away", NEXT, away, sidecar=True),
        service("calls", ("http", 8000, 8080)),
    ]


def hosts(home: int, away: int, far: int) -> list[dict[str, Any]]:
    """What is called, in these zones and in another region."""
    return [
        part("hosts", "home", HOME, home, sidecar=False),
        part("hosts", "away", NEXT, away, sidecar=False),
        part("hosts", "far", FAR, far, sidecar=False),
        service("hosts", ("http", 8000, 8080)),
    ]


def known(mesh: TaskMesh, cluster: str) -> dict[str, int]:
    """How many hosts of each locality the caller's Envoy has in a cluster."""
    try:
        lines = mesh.envoy("default/calls-home-0", "/clusters").splitlines()
    except (OSError, KeyError, AssertionError):
        return {}
    own = [line.split("::") for line in lines if line.startswith(f"{cluster}::")]
    places: dict[str, dict[str, str]] = {}
    for _, host, *said in own:
        if said[0] in ("region", "zone"):
            places.setdefault(host, {})[said[0]] = said[1]
    return dict(Counter(f"{p['region']}/{p['zone']}" for p in places.values()))


def wait_for_hosts(mesh: TaskMesh, wanted: dict[str, int]) -> None:
    """Until the caller's Envoy knows these hosts."""
    cluster = "outbound|8000||hosts.default.svc.cluster.local"
    until(lambda: known(mesh, cluster) == wanted, f"{wanted}", 60)


def calls(mesh: TaskMesh, count: int = 40) -> Counter[str]:
    """Where requests of the caller in the first zone arrive."""
    return mesh.many(count, "http://hosts:8000", client="default/calls-home-0")


def test_calls_stay_in_the_zone_as_far_as_its_hosts_suffice(
    started_mesh: TaskMesh, config: Config
) -> None:
    mesh = started_mesh
    config.apply([*callers(1, 1), *hosts(2, 2, 1)])
    wait_for_hosts(mesh, {HOME: 2, NEXT: 2, FAR: 1})
    until(lambda: set(calls(mesh)) == {"home", "away", "far"}, "no rule speaks of zones", 60)
    assert known(mesh, "local_cluster") == {}, "and nobody knows of others"

    config.apply(RULE.format(setting="enabled: true, minClusterSize: 1"))
    until(lambda: known(mesh, "local_cluster") == {HOME: 1, NEXT: 1}, "both callers", 60)
    assert set(calls(mesh)) == {"home"}, "half of the callers, half of the hosts"

    config.apply(hosts(1, 3, 1))
    wait_for_hosts(mesh, {HOME: 1, NEXT: 3, FAR: 1})
    until(lambda: set(calls(mesh)) == {"home", "away"}, "every host answers", 60)
    got = calls(mesh, 200)
    assert got["far"] == 0, "another region is for the worst"
    # A quarter of the hosts for half of the callers: half of their calls go to the other zone.
    assert 60 <= got["home"] <= 140, got
    assert 60 <= got["away"] <= 140, got

    config.apply(RULE.format(setting="enabled: true"))
    assert calls(mesh)["away"] > 20, "four hosts in the region are too few"
    config.apply(RULE.format(setting="enabled: false, minClusterSize: 1"))
    assert set(calls(mesh)) == {"home", "away", "far"}
