"""Statuses of Ingress objects: the addresses of the Service before the gateways that carry them
out. Differences only; Ingress objects of other controllers are theirs."""

from collections.abc import Iterable
from typing import Any

import structlog

from meshbus.analyze.ingress_addresses import (
    addresses_of,
    ingress_service,
    load_balancer_status,
)
from meshbus.compile.engine import Engine
from meshbus.compile.ingress import ingresses
from meshbus.kube.client import (
    MERGE_PATCH,
    Conflict,
    KubeClient,
    KubeError,
    NotFound,
    object_path,
)
from meshbus.model.keys import Key
from meshbus.model.revisions import RevisionView, mesh_row_name
from meshbus.model.world import Put, Query, World
from meshbus_config.kubernetes.following import PLATFORM_GROUP, Following
from meshbus_config.kubernetes.objects import Judged

log = structlog.get_logger("kubernetes-status")


class IngressStatuses:
    """What is to be said of the Ingress objects that are in force."""

    def __init__(self, client: KubeClient, following: Following, cluster: str) -> None:
        self._client = client
        self._view = RevisionView(following.revisions.own)
        self._mesh = Key(cluster, "mesh", "config", "", mesh_row_name(following.revisions.own))
        self._following = following
        self._engine = Engine(World())
        self.written = 0
        """Statuses written since this process began."""

    def changed(self, world: World, touched: Iterable[Query]) -> None:
        """The next world, as the mirror gives it."""
        seen = self._view.key(self._mesh)
        if seen is not None and seen != self._mesh:
            put = Put(seen, world.sequence, 0.0, world.get(self._mesh))
            world, more = world.apply([put])
            touched = {*touched, *more}
        self._engine.update(world, touched)

    def _wanted(self) -> list[dict[str, str]]:
        mesh = self._following.mesh
        service = self._following.services.get(ingress_service(mesh.spec if mesh else {}))
        if service is None:
            return []
        return load_balancer_status(addresses_of(service.spec, service.spec.get("ingress") or ()))

    async def write(self) -> None:
        """Write what differs, once."""
        wanted = self._wanted()
        for ref in self._engine.get(ingresses):
            judged = self._following.objects.get(ref.key)
            if (
                judged is not None
                and self._following.revisions.is_ours(judged.row.labels)
                and _held(judged) != wanted
            ):
                await self._write(judged, wanted)

    async def _write(self, judged: Judged, wanted: list[dict[str, str]]) -> None:
        path = object_path(
            PLATFORM_GROUP, "v1", "ingresses", judged.row.namespace, judged.row.name, "status"
        )
        body = {
            "metadata": {"resourceVersion": judged.version},
            "status": {"loadBalancer": {"ingress": wanted}},
        }
        try:
            await self._client.send("PATCH", path, body, content_type=MERGE_PATCH)
            self.written += 1
        except (Conflict, NotFound):
            return  # It has changed, and we hear of it: the next look is of what it is then.
        except KubeError as error:
            log.info("status not written; trying again", object=path, error=str(error))


def _held(judged: Judged) -> list[dict[str, Any]]:
    """What it says now, but for ports: they are nothing that we write."""
    balancer = judged.status.get("loadBalancer") or {}
    return [
        {name: one[name] for name in ("ip", "hostname") if one.get(name)}
        for one in balancer.get("ingress") or ()
    ]
