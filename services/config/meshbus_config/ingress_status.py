"""Where Ingress objects of a mesh without Kubernetes are served: the addresses that the Service
before the gateways has. Pure."""

from meshbus.analyze.ingress_addresses import (
    addresses_of,
    ingress_service,
    load_balancer_status,
)
from meshbus.compile.engine import Engine
from meshbus.compile.ingress import ingresses
from meshbus.model.keys import Key
from meshbus.model.rows import MeshConfigRow, ObjectStatus
from meshbus_config.documents import Space, status_key
from meshbus_config.outcomes import CONFIGURED, Plan


def plan_ingress_statuses(space: Space) -> list[Plan]:
    """The statuses to write."""
    world = space.world
    if not world.all("cfg.ingresses"):
        return []
    wanted = _wanted(space)
    plans = []
    for ref in Engine(world).get(ingresses):
        stored = space.at(ref.key)
        if stored is None:
            continue
        held = stored.status.status if stored.status is not None else {}
        balancer = held.get("loadBalancer")
        said = balancer.get("ingress") if isinstance(balancer, dict) else None
        if (said or []) == wanted:
            continue
        status = {**held, "loadBalancer": {"ingress": wanted}}
        row = ObjectStatus(stored.row.uid, stored.row.generation, status)
        plans.append(Plan(CONFIGURED, stored, ((status_key(ref.key), row),)))
    return plans


def _wanted(space: Space) -> list[dict[str, str]]:
    mesh = space.world.get(Key(space.cluster, "mesh", "config", "", "mesh"))
    spec = mesh.spec if isinstance(mesh, MeshConfigRow) else {}
    root = str(spec.get("rootNamespace") or space.root_namespace)
    service = space.at(Key(space.cluster, "cfg", "services", root, ingress_service(spec)))
    if service is None:
        return []
    status = service.status.status if service.status is not None else {}
    balancer = status.get("loadBalancer")
    places = balancer.get("ingress") if isinstance(balancer, dict) else None
    known = [one for one in places or () if isinstance(one, dict)]
    return load_balancer_status(addresses_of(service.row.spec, known))
