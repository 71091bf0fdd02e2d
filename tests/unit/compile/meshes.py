"""Small meshes for tests of compile: rows by hand."""

from typing import Any

from meshbus.api.kinds import plural_of
from meshbus.compile.engine import Engine
from meshbus.compile.families import families_of
from meshbus.compile.proxy import ProxyKeys, Snapshot, compile_proxy
from meshbus.compile.render import render_snapshot
from meshbus.model.keys import Key
from meshbus.model.rows import (
    ConfigObject,
    Endpoint,
    EndpointShard,
    MeshConfigRow,
    Row,
    Service,
    ServiceAddress,
    ServicePort,
)
from meshbus.model.world import World, world_of

CLUSTER = "c"
GROUPS = {"PeerAuthentication": "security.istio.io/v1", "Secret": "v1"}

Rows = dict[Key, Row]


def host(name: str, namespace: str = "default") -> str:
    return f"{name}.{namespace}.svc.cluster.local"


def service(
    name: str, *ports: tuple[str, int, str], namespace: str = "default", **fields: Any
) -> Rows:
    row = Service(
        host=fields.pop("host", host(name, namespace)),
        namespace=namespace,
        name=name,
        origin=fields.pop("origin", "kubernetes"),
        ports=[ServicePort(n, p, proto) for n, p, proto in ports],
        source=f"cfg.services/{namespace}/{name}",
        selector=fields.pop("selector", {"app": name}),
        **fields,
    )
    return {Key(CLUSTER, "reg", "services", namespace, row.host): row}


def endpoints(
    name: str,
    *addresses: str,
    namespace: str = "default",
    ports: dict[str, int],
    shard: str = "1",
    of_host: str = "",
    **fields: Any,
) -> Rows:
    labels = fields.pop("labels", {"app": name})
    members = [
        Endpoint(
            addresses=[a],
            ports=ports,
            labels=labels,
            service_account=fields.get("service_account", name),
            workload=f"{name}-{labels.get('version', 'v1')}",
            namespace=namespace,
            tls_mode=fields.get("tls_mode", "istio"),
            ready=fields.get("ready", True),
            locality=fields.get("locality", ""),
            network=fields.get("network", ""),
        )
        for a in addresses
    ]
    target = of_host or host(name, namespace)
    row = EndpointShard(target, namespace, shard, members)
    return {Key(CLUSTER, "reg", "endpoints", namespace, target, shard): row}


def config(
    kind: str, name: str, spec: dict[str, Any], namespace: str = "default", created: float = 0.0
) -> Rows:
    row = ConfigObject(
        api_version=GROUPS.get(kind, "networking.istio.io/v1"),
        kind=kind,
        namespace=namespace,
        name=name,
        uid=f"{namespace}-{name}",
        generation=1,
        created=created,
        spec=spec,
    )
    return {Key(CLUSTER, "cfg", plural_of(kind), namespace, name): row}


def mesh_config(**spec: Any) -> Rows:
    return {Key(CLUSTER, "mesh", "config", "", "mesh"): MeshConfigRow(spec)}


def control_plane() -> Rows:
    return {
        Key(CLUSTER, "mesh", "addresses", "", name): ServiceAddress(name, "127.0.0.1", port)
        for name, port in (("telemetry", 15031), ("policy", 15030))
    }


def rows(*parts: Rows) -> Rows:
    out: Rows = {}
    for part in parts:
        out.update(part)
    return out


def bookinfo() -> Rows:
    """Four services; reviews in three versions."""
    port = {"http": 9080}
    return rows(
        *(
            service(n, ("http", 9080, "HTTP"), addresses=[f"10.96.0.{i}"])
            for i, n in enumerate(("productpage", "details", "reviews", "ratings"), 1)
        ),
        endpoints("productpage", "10.0.0.1", ports=port, labels=labels("productpage", "v1")),
        endpoints("details", "10.0.0.2", ports=port, labels=labels("details", "v1")),
        endpoints("ratings", "10.0.0.3", ports=port, labels=labels("ratings", "v1")),
        *(
            endpoints(
                "reviews",
                f"10.0.1.{v}",
                ports=port,
                labels=labels("reviews", f"v{v}"),
                shard=str(v),
            )
            for v in (1, 2, 3)
        ),
    )


def labels(app: str, version: str) -> dict[str, str]:
    return {"app": app, "version": version}


def sidecar(app: str = "productpage", namespace: str = "default", **fields: Any) -> ProxyKeys:
    pairs = fields.pop("labels", labels(app, "v1"))
    ips = fields.pop("ips", ("10.0.0.1",))
    return ProxyKeys(
        type="sidecar",
        name=fields.pop("name", f"{app}-v1-0"),
        namespace=namespace,
        labels=tuple(sorted(pairs.items())),
        ips=ips,
        families=families_of(ips),
        workload=f"{app}-v1",
        **fields,
    )


def router(ips: tuple[str, ...] = ("10.0.9.1",), **fields: Any) -> ProxyKeys:
    return ProxyKeys(
        type="router",
        name="ingress-0",
        namespace=fields.pop("namespace", "istio-system"),
        labels=(("istio", "ingressgateway"),),
        workload="ingress",
        ips=ips,
        families=families_of(ips),
        **fields,
    )


def compiled(mesh: Rows | World, proxy: ProxyKeys) -> Snapshot:
    world = mesh if isinstance(mesh, World) else world_of(mesh)
    return Engine(world).get(compile_proxy, proxy)


class Rendered:
    """A snapshot as JSON, by name."""

    def __init__(self, mesh: Rows, proxy: ProxyKeys) -> None:
        self.snapshot = compiled(mesh, proxy)
        document = render_snapshot(self.snapshot)
        self.clusters = {c["name"]: c for c in document["clusters"]}
        self.listeners = {c["name"]: c for c in document["listeners"]}
        self.routes = {c["name"]: c for c in document["routes"]}
        self.endpoints = {c["clusterName"]: c for c in document["endpoints"]}
        self.runtime = {c["name"]: c["layer"] for c in document.get("runtime", ())}
        self.secrets = [c["name"] for c in document["secrets"]]

    def virtual_host(self, table: str, domain: str) -> dict[str, Any]:
        """The virtual host that has exactly this domain."""
        for vhost in self.routes[table]["virtualHosts"]:
            if domain in vhost["domains"]:
                return dict(vhost)
        raise AssertionError(f"no {domain} in {table}")
