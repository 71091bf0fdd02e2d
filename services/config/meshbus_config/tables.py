"""Tables, as `kubectl get` prints them: one entry of `COLUMNS` per kind. Pure.

Source: printers of Kubernetes (pkg/printers/internalversion) and `additionalPrinterColumns` of
Istio's CRDs.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from meshbus.api.kinds import KindInfo
from meshbus.schema.columns import PRINTER_COLUMNS, PrinterColumn
from meshbus_config.documents import Document, seconds_of

Cell = Callable[[Document], Any]


class Column(NamedTuple):
    """One column; `priority` above 0 shows with `-o wide` only."""

    name: str
    cell: Cell
    priority: int = 0
    type: str = "string"
    description: str = ""


def _at(path: str) -> Cell:
    names = path.split(".")

    def read(document: Document) -> Any:
        value: Any = document
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, dict | list):
            return json.dumps(value, separators=(",", ":"))
        return "" if value is None else value

    return read


def _count(path: str) -> Cell:
    def count(document: Document) -> int:
        value: Any = document
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return len(value) if isinstance(value, dict | list) else 0

    return count


def _service_ports(document: Document) -> str:
    ports = document.get("spec", {}).get("ports") or []
    return ",".join(f"{p.get('port')}/{p.get('protocol', 'TCP')}" for p in ports) or "<none>"


def _selector(document: Document) -> str:
    selector = document.get("spec", {}).get("selector") or {}
    return ",".join(f"{k}={v}" for k, v in sorted(selector.items())) or "<none>"


def _slice_ports(document: Document) -> str:
    return ",".join(str(p.get("port", "*")) for p in document.get("ports") or []) or "<unset>"


def _slice_endpoints(document: Document) -> str:
    found = [a for e in document.get("endpoints") or [] for a in e.get("addresses") or []]
    more = f" + {len(found) - 3} more..." if len(found) > 3 else ""
    return ",".join(found[:3]) + more or "<unset>"


def _workload_ports(document: Document) -> str:
    ports = document.get("spec", {}).get("ports") or []
    return ",".join(f"{p.get('name', '')}:{p.get('port')}" for p in ports) or "<none>"


def _role(document: Document) -> str:
    spec = document.get("spec", {})
    if spec.get("gateway"):
        return "gateway"
    return "sidecar" if spec.get("sidecar", True) else "outside"


def _or(cell: Cell, default: Any) -> Cell:
    return lambda document: cell(document) or default


def _reconciled(document: Document) -> str:
    for condition in document.get("status", {}).get("conditions") or []:
        if isinstance(condition, dict) and condition.get("type") == "Reconciled":
            return str(condition.get("status"))
    return ""


_RECONCILED = Column(
    "Reconciled", _reconciled, 1, description="False when a proxy refuses what comes of it."
)


def _printed(columns: Sequence[PrinterColumn]) -> tuple[Column, ...]:
    """As Kubernetes prints them by the definitions of our kinds."""
    found = [
        Column(one.name, _at(one.path), one.priority, one.type, one.description) for one in columns
    ]
    return (*found, _RECONCILED)


COLUMNS: dict[tuple[str, str], tuple[Column, ...]] = {
    ("", "Service"): (
        Column("Type", _or(_at("spec.type"), "ClusterIP")),
        Column("Cluster-IP", _or(_at("spec.clusterIP"), "<none>")),
        Column("External-IP", _or(_at("spec.externalName"), "<none>")),
        Column("Port(s)", _service_ports),
        Column("Selector", _selector, 1),
    ),
    ("", "Pod"): (
        Column("Status", _or(_at("status.phase"), "Unknown")),
        Column("IP", _or(_at("status.podIP"), "<none>"), 1),
        Column("Node", _or(_at("spec.nodeName"), "<none>"), 1),
    ),
    ("", "Namespace"): (Column("Status", _at("status.phase")),),
    ("", "ServiceAccount"): (Column("Secrets", _count("secrets"), type="integer"),),
    ("", "ConfigMap"): (Column("Data", _count("data"), type="integer"),),
    ("", "Secret"): (
        Column("Type", _or(_at("type"), "Opaque")),
        Column("Data", _count("data"), type="integer"),
    ),
    ("discovery.k8s.io", "EndpointSlice"): (
        Column("AddressType", _at("addressType")),
        Column("Ports", _slice_ports),
        Column("Endpoints", _slice_endpoints),
    ),
    **{kind: _printed(columns) for kind, columns in PRINTER_COLUMNS.items()},
    ("standalone.meshbus.io", "Workload"): (
        Column("Role", _role),
        Column("Ports", _workload_ports),
        Column("Replicas", _or(_at("spec.replicas"), 1), type="integer"),
        Column("Service-Account", _or(_at("spec.serviceAccount"), "default"), 1),
    ),
    ("mesh.istio.io", "MeshConfig"): (Column("Trust-Domain", _at("spec.trustDomain")),),
}


def table(
    info: KindInfo,
    documents: Sequence[Document],
    metadata: dict[str, Any],
    now: float,
    *,
    include: str = "Metadata",
    version: str = "v1",
    definitions: bool = True,
) -> Document:
    """Objects as a `meta.k8s.io` Table.

    Args:
        include: What of each object stands beside its row: `None`, `Metadata` or `Object`.
        definitions: False leaves out the columns, as in all events of a watch but the first.
    """
    own = COLUMNS.get((info.group, info.kind), (_RECONCILED,) if info.has_status else ())
    columns = [
        Column("Name", _at("metadata.name"), description="Name of the object.", type="string"),
        *own,
        Column("Age", lambda d: _age(d, now), description="Time since it was created."),
    ]
    result: Document = {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": metadata,
        "columnDefinitions": [
            {
                "name": column.name,
                "type": column.type,
                "format": "name" if column.name == "Name" else "",
                "description": column.description,
                "priority": column.priority,
            }
            for column in columns
        ]
        if definitions
        else [],
        "rows": [_row(columns, document, include, version) for document in documents],
    }
    return result


def _row(
    columns: Sequence[Column], document: Document, include: str, version: str
) -> dict[str, Any]:
    row: dict[str, Any] = {"cells": [column.cell(document) for column in columns]}
    if include == "Object":
        row["object"] = document
    elif include == "Metadata":
        row["object"] = partial(document, version)
    return row


def partial(document: Document, version: str = "v1") -> Document:
    """The metadata of an object alone."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": document["metadata"],
    }


def _age(document: Document, now: float) -> str:
    created = seconds_of(str(document["metadata"].get("creationTimestamp", "")))
    return "<unknown>" if created is None else human_duration(max(0.0, now - created))


def human_duration(seconds: float) -> str:
    """A duration as kubectl writes it: two units at most, finer where it is short.

    Source: k8s.io/apimachinery/pkg/util/duration HumanDuration.
    """
    whole = int(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 120:
        return f"{whole}s"
    if minutes < 10:
        return f"{minutes}m{whole % 60}s" if whole % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 365 * 2:
        return f"{days}d"
    if days < 365 * 8:
        years, rest = divmod(days, 365)
        return f"{years}y{rest}d" if rest else f"{years}y"
    return f"{days // 365}y"
