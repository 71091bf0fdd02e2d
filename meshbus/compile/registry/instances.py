"""Instances of workloads: pods, workload entries, processes of this machine."""

import zlib
from collections.abc import Mapping
from typing import Any

import msgspec

from meshbus.api.addresses import is_ip
from meshbus.compile.registry.protocols import declared_protocol, integer
from meshbus.model.rows import (
    KEYS_ANNOTATION,
    ConfigObject,
    Namespace,
    WorkloadInstance,
    WorkloadPort,
)
from meshbus.model.status import InstanceReport
from meshbus.model.world import NETWORK_LABEL

TLS_MODE_LABEL = "security.istio.io/tlsMode"
LOCALITY_LABEL = "istio-locality"
MUTUAL = "istio"
DISABLED = "disabled"


def instance_of_report(report: InstanceReport, cluster: str, workload: ConfigObject | None) -> Any:
    """The instance that a supervisor reports, and its Workload object."""
    spec = workload.spec if workload is not None else {}
    protocols = {
        integer(p.get("port")): declared_protocol(str(p.get("name") or ""))
        for p in _records(spec.get("ports"))
    }
    targets = {name: port for name, port in report.ports if name}
    return WorkloadInstance(
        name=report.name,
        namespace=report.namespace,
        workload=report.workload,
        service_account=report.service_account or "default",
        labels=dict(report.labels),
        addresses=list(report.addresses),
        app_address=report.app_address,
        ports=[WorkloadPort(n, p, protocols.get(p, declared_protocol(n))) for n, p in report.ports],
        sidecar=report.sidecar,
        gateway=report.gateway,
        capture="redirect" if report.capture == "netns" else report.capture,
        http_proxy_port=report.http_proxy_port,
        http_proxy_address=report.http_proxy_address,
        network=report.network,
        cluster=cluster,
        locality=report.locality,
        ready=report.ready,
        draining=report.draining,
        dual_stack=report.dual_stack,
        weight=integer(spec.get("weight")),
        origin="workload",
        target_ports=targets,
        tls_mode=MUTUAL if report.sidecar and not report.gateway else DISABLED,
        dns=report.dns,
        annotations=_notes_of(workload) if workload is not None else {},
    )


def _notes_of(workload: ConfigObject) -> dict[str, str]:
    """Annotations, and what a Workload says in its spec and a pod in an annotation."""
    keys = workload.spec.get("keys")
    said = {KEYS_ANNOTATION: keys} if isinstance(keys, str) and keys else {}
    return {**_mesh_annotations(workload), **said}


def _mesh_annotations(object: ConfigObject) -> dict[str, str]:
    return {k: v for k, v in object.annotations.items() if "istio.io/" in k or "meshbus.io/" in k}


def instances_of_workload(object: ConfigObject, cluster: str, *, offline: bool) -> list[Any]:
    """The instances of a Workload that nobody supervises: a process of somebody else at its
    `address`; without a server (`offline`) each replica, at an address made of its name."""
    spec = object.spec
    address = str(spec.get("address") or "")
    gateway = bool(spec.get("gateway", False))
    sidecar = bool(spec.get("sidecar", True)) and not gateway
    if not offline and (gateway or not address or spec.get("command")):
        return []
    ports = [
        (str(p.get("name") or ""), integer(p.get("port")), integer(p.get("targetPort")))
        for p in _records(spec.get("ports"))
    ]
    replicas = integer(spec.get("replicas"), 1) if not address else 1
    return [
        WorkloadInstance(
            name=f"{object.name}-{index}",
            namespace=object.namespace,
            workload=object.name,
            service_account=str(spec.get("serviceAccount") or "default"),
            labels=dict(object.labels),
            addresses=[address or _stand_in(object.namespace, object.name, index)],
            ports=[WorkloadPort(n, p, declared_protocol(n)) for n, p, _ in ports],
            sidecar=sidecar and not address,
            gateway=gateway,
            network=str(spec.get("network") or ""),
            cluster=cluster,
            locality=str(spec.get("locality") or ""),
            created=object.created,
            weight=integer(spec.get("weight")),
            origin="workload",
            target_ports={n: p for n, p, _ in ports if n},
            tls_mode=MUTUAL if sidecar and not address else DISABLED,
            annotations=_notes_of(object),
        )
        for index in range(replicas)
    ]


def _stand_in(namespace: str, name: str, index: int) -> str:
    """An address that stands for one not known yet: the same for the same instance."""
    number = zlib.crc32(f"{namespace}/{name}/{index}".encode())
    return f"10.{64 + (number >> 16 & 63)}.{number >> 8 & 255}.{1 + number % 254}"


HEALTH_CHECKED = "proxy.istio.io/health-checks-enabled"
"""Annotation of an entry whose machine says whether it is healthy."""
PROXY_TYPE = "meshbus.io/proxy-type"
"""Annotation of a pod whose proxy was injected as a gateway: `router`."""
_CAPTURE = "standalone.meshbus.io/capture"
_INTERCEPTION = "sidecar.istio.io/interceptionMode"
_APPLICATION = "standalone.meshbus.io/application-address"
_FURTHER = "standalone.meshbus.io/further-addresses"
"""Annotation of an entry whose machine has an address of the other family too."""
_HTTP_PROXY = "standalone.meshbus.io/http-proxy-port"


def instance_of_entry(
    object: ConfigObject,
    cluster: str,
    namespace: Namespace | None,
    status: Mapping[str, Any] | None = None,
) -> WorkloadInstance | None:
    """The instance of a WorkloadEntry; None without an address.

    Source: Istio, health checks of auto-registered entries: unhealthy until the condition Healthy.
    """
    made = instance_of_entry_spec(
        object.spec,
        name=object.name,
        namespace=object.namespace,
        labels=object.labels,
        cluster=cluster,
        created=object.created,
        network=(namespace.labels.get(NETWORK_LABEL, "") if namespace else ""),
    )
    if made is None:
        return None
    notes = object.annotations
    changes: dict[str, Any] = {"annotations": own} if (own := _mesh_annotations(object)) else {}
    if notes.get(HEALTH_CHECKED, "").lower() == "true":
        found = {c.get("type"): c.get("status") for c in _records((status or {}).get("conditions"))}
        changes["ready"] = found.get("Healthy") == "True"
    if further := [one for one in notes.get(_FURTHER, "").split(",") if is_ip(one)]:
        addresses = [*made.addresses, *further]
        families = {":" in address for address in addresses}
        changes |= {"addresses": addresses, "dual_stack": len(families) > 1}
    if notes.get(_CAPTURE) == "proxy":
        port = notes.get(_HTTP_PROXY, "")
        changes |= {
            "capture": "proxy",
            "app_address": notes.get(_APPLICATION, ""),
            "http_proxy_address": made.addresses[0],
            "http_proxy_port": int(port) if port.isdigit() else 0,
        }
    return msgspec.structs.replace(made, **changes) if changes else made


def instance_of_entry_spec(
    spec: Mapping[str, Any],
    *,
    name: str,
    namespace: str,
    labels: Mapping[str, str],
    cluster: str,
    created: float,
    network: str = "",
    behind_gateway: bool = False,
) -> WorkloadInstance | None:
    """The same of a WorkloadEntry's fields, which a ServiceEntry's endpoints are too. With
    `behind_gateway` one without an address counts, if it says its network."""
    address = spec.get("address")
    if not isinstance(address, str) or not address:
        if not (behind_gateway and spec.get("network")):
            return None
        address = ""
    own = {str(k): str(v) for k, v in (spec.get("labels") or {}).items()}
    merged = {**labels, **own}
    account = str(spec.get("serviceAccount") or "")
    # Source: Istio, WorkloadEntry: one with an identity of its own is behind a mesh proxy.
    mode = merged.get(TLS_MODE_LABEL) or (MUTUAL if account else DISABLED)
    ports = {str(k): integer(v) for k, v in (spec.get("ports") or {}).items() if integer(v)}
    return WorkloadInstance(
        name=name,
        namespace=namespace,
        workload=name,
        service_account=account,
        labels=merged,
        addresses=[address] if address else [],
        sidecar=mode == MUTUAL,
        network=str(spec.get("network") or merged.get(NETWORK_LABEL) or network),
        cluster=cluster,
        locality=str(spec.get("locality") or ""),
        created=created,
        weight=integer(spec.get("weight")),
        origin="entry",
        target_ports=ports,
        tls_mode=mode,
    )


def instance_of_pod(
    object: ConfigObject,
    status: Mapping[str, Any],
    node_labels: Mapping[str, str],
    namespace: Namespace | None,
    cluster: str,
) -> WorkloadInstance | None:
    """The instance of a pod; None when it has no address yet or has ended."""
    addresses = [
        str(ip.get("ip")) for ip in _records(status.get("podIPs")) if isinstance(ip.get("ip"), str)
    ]
    first = status.get("podIP")
    if isinstance(first, str) and first and first not in addresses:
        addresses.insert(0, first)
    if not addresses or status.get("phase") in {"Succeeded", "Failed"}:
        return None
    spec = object.spec
    containers = _records(spec.get("containers")) + _records(spec.get("initContainers"))
    named = {
        str(port["name"]): integer(port.get("containerPort"))
        for container in containers
        for port in _records(container.get("ports"))
        if port.get("name")
    }
    injected = "sidecar.istio.io/status" in object.annotations or any(
        c.get("name") == "istio-proxy" for c in containers
    )
    labels = object.labels
    gateway = injected and object.annotations.get(PROXY_TYPE) == "router"
    mode = labels.get(TLS_MODE_LABEL) or (MUTUAL if injected and not gateway else DISABLED)
    ready = [
        c.get("status") for c in _records(status.get("conditions")) if c.get("type") == "Ready"
    ]
    network = labels.get(NETWORK_LABEL) or (
        namespace.labels.get(NETWORK_LABEL, "") if namespace else ""
    )
    return WorkloadInstance(
        name=object.name,
        namespace=object.namespace,
        workload=workload_of_pod(object),
        service_account=str(spec.get("serviceAccountName") or "default"),
        labels=dict(labels),
        addresses=addresses,
        sidecar=mode == MUTUAL and not gateway,
        gateway=gateway,
        network=network,
        cluster=cluster,
        locality=_locality(labels, node_labels),
        node=str(spec.get("nodeName") or ""),
        ready=not ready or ready[0] == "True",
        annotations=_mesh_annotations(object),
        dual_stack=any(":" in a for a in addresses) and any("." in a for a in addresses),
        created=object.created,
        origin="pod",
        capture="none" if object.annotations.get(_INTERCEPTION) == "NONE" else "redirect",
        target_ports={name: port for name, port in named.items() if port},
        tls_mode=mode,
        draining=object.deletion is not None,
        uid=object.uid,
    )


def workload_of_pod(object: ConfigObject) -> str:
    """Name of the deployment-like owner of a pod.

    Source: Istio, workload metadata: the owner's name, for a ReplicaSet without its hash.
    """
    for owner in object.owner_references:
        name = str(owner.get("name") or "")
        if owner.get("kind") == "ReplicaSet":
            hashed = object.labels.get("pod-template-hash", "")
            if hashed and name.endswith(f"-{hashed}"):
                return name.removesuffix(f"-{hashed}")
            return name.rpartition("-")[0] or name
        if name:
            return name
    return object.name


def _locality(labels: Mapping[str, str], node: Mapping[str, str]) -> str:
    own = labels.get(LOCALITY_LABEL)
    if own:
        return own if "/" in own else own.replace(".", "/")
    region = node.get("topology.kubernetes.io/region") or node.get(
        "failure-domain.beta.kubernetes.io/region", ""
    )
    zone = node.get("topology.kubernetes.io/zone") or node.get(
        "failure-domain.beta.kubernetes.io/zone", ""
    )
    subzone = node.get("topology.istio.io/subzone", "")
    return "/".join((region, zone, subzone)).rstrip("/")


def _records(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
