"""The hosts file of workloads: names of services that mean the same to all of them.

They are known also while nobody answers DNS. What depends on who asks (a host of two services, one
that is exported to some, anything under a Sidecar) is left to mesh DNS, which decides as compile
does.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from meshbus.local.capture import hosts_file, service_names
from meshbus.model.rows import Service
from meshbus.model.world import Query, World

_DECIDES_WHO_SEES = ("defaultServiceExportTo", "serviceEntryVisibility")


def hosts_for(world: World, namespace: str, root_namespace: str) -> str:
    """The file for workloads of a namespace."""
    if not _all_see_the_same(world, namespace, root_namespace):
        return hosts_file([])
    services: list[Service] = [entry.row for entry in world.all("reg.services")]
    owners = Counter(service.host for service in services)
    lines = []
    for service in services:
        if owners[service.host] > 1 or "*" in service.host or not _is_public(service):
            continue
        names = [service.host]
        if service.origin == "kubernetes":
            known = service_names(service.name, service.namespace, service.host, namespace)
            names = [name for name in known if name == service.host or name not in owners]
        lines += [(address, names) for address in service.addresses if "/" not in address]
    return hosts_file(lines)


def _all_see_the_same(world: World, namespace: str, root_namespace: str) -> bool:
    settings: list[Mapping[str, Any]] = [entry.row.spec for entry in world.all("mesh.config")]
    if any(spec.get(field) for spec in settings for field in _DECIDES_WHO_SEES):
        return False
    return not any(
        world.keys(Query("cfg.sidecars", "namespace", owner))
        for owner in (namespace, root_namespace)
    )


def _is_public(service: Service) -> bool:
    return not service.export_to or "*" in service.export_to
