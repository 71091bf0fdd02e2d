"""Where Ingress objects of a mesh without Kubernetes are served: the addresses that the Service
before the gateways has."""

from collections.abc import Iterable

from meshbus.analyze.ingress_addresses import (
    addresses_of,
    ingress_service,
    load_balancer_status,
)
from meshbus.compile.engine import Engine
from meshbus.compile.ingress import ingresses
from meshbus.model.keys import Key
from meshbus.model.rows import MeshConfigRow, ObjectStatus
from meshbus.model.world import Query, World
from meshbus_config.documents import Space, status_key
from meshbus_config.outcomes import CONFIGURED, Plan


class IngressStatuses:
    """What is to be said of the Ingress objects that are in force."""

    def __init__(self) -> None:
        self._engine = Engine(World())

    def changed(self, world: World, touched: Iterable[Query]) -> None:
        """The next world, as the mirror gives it."""
        self._engine.update(world, touched)

    def plans(self, space: Space) -> list[Plan]:
        """The statuses to write."""
        if not space.world.all("cfg.ingresses"):
            return []
        wanted = _wanted(space)
        plans = []
        for ref in self._engine.get(ingresses):
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
