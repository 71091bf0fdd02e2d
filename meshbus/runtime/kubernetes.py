"""The cluster that a process runs for."""

import os
from typing import TYPE_CHECKING, NamedTuple

from meshbus.model.revisions import DEFAULT_REVISION
from meshbus.runtime.settings import ProcessSettings, SettingsError

if TYPE_CHECKING:
    from meshbus.kube.client import KubeClient


class Kubernetes(NamedTuple):
    """An API server, and which part of the cluster is ours."""

    client: "KubeClient"
    revision: str
    """`default`, or the name of the revision."""
    namespaces: tuple[str, ...]
    """Namespaces that we are limited to; none: the whole cluster."""
    namespace: str
    """That of the control plane."""


async def connect_kubernetes(process: ProcessSettings) -> Kubernetes | None:
    """The cluster of a process; None without one. Nothing is asked of the server yet.

    Raises:
        SettingsError: It cannot be reached as configured.
    """
    if not process.kubernetes:
        return None
    # Imported here: a process without Kubernetes pays nothing for it.
    from meshbus.kube.access import AccessError, access_of
    from meshbus.kube.client import KubeClient

    try:
        access = await access_of(process.kubernetes, os.environ, process.kubernetes_account)
    except AccessError as error:
        raise SettingsError(f"MESHBUS_KUBERNETES: {error}") from None
    return Kubernetes(
        client=KubeClient(access, agent=f"meshbus/{process.pod or 'meshbus'}"),
        revision=process.revision or DEFAULT_REVISION,
        namespaces=tuple(
            dict.fromkeys(name.strip() for name in process.namespaces.split(",") if name.strip())
        ),
        namespace=process.root_namespace,
    )
