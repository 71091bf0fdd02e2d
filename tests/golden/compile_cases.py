"""Golden cases of compile: `compile/<case>.in.yaml`.

proxy: {type, name, namespace, labels, ips, capture, httpProxy: ADDRESS:PORT, appAddress, ports,
        locality, proxyConfig, metadata}
meshConfig: {...}                   fields of MeshConfig
controlPlane: true                  telemetry and policy can be reached
services:                           rows of discovery; ports as `NAME NUMBER PROTOCOL`
  - {name, namespace, ports: [http 9080 HTTP], addresses: [...], endpoints: [{ips, ports, ...}]}
objects: [...]                      Kubernetes documents
"""

from pathlib import Path
from typing import Any

import msgspec
import yaml
from meshes import Rendered, Rows, config, control_plane, endpoints, mesh_config, rows, service

from meshbus.compile.families import families_of
from meshbus.compile.proxy import ProxyKeys
from meshbus.compile.render import render_findings, render_snapshot
from meshbus.model.rows import Endpoint

FOLDER = Path(__file__).parent / "compile"
CASES = sorted(p.name.removesuffix(".in.yaml") for p in FOLDER.glob("*.in.yaml"))


def load(case: str) -> tuple[Rows, ProxyKeys]:
    """The rows and the proxy of a case."""
    document = yaml.safe_load((FOLDER / f"{case}.in.yaml").read_text())
    parts = [_service(dict(entry)) for entry in document.get("services", [])]
    for item in document.get("objects", []):
        meta = item["metadata"]
        made = config(
            item["kind"],
            meta["name"],
            item.get("spec", {}),
            meta.get("namespace", "default"),
            float(meta.get("created", 0)),
        )
        notes = meta.get("annotations", {})
        parts.append(
            {k: msgspec.structs.replace(row, annotations=notes) for k, row in made.items()}
        )
    if "meshConfig" in document:
        parts.append(mesh_config(**document["meshConfig"]))
    if document.get("controlPlane"):
        parts.append(control_plane())
    return rows(*parts), _proxy(document["proxy"])


def _ports(texts: list[str]) -> list[tuple[str, int, str]]:
    out = []
    for text in texts:
        name, number, *protocol = text.split()
        out.append((name, int(number), protocol[0] if protocol else ""))
    return out


def _service(entry: dict[str, Any]) -> Rows:
    name, namespace = entry.pop("name"), entry.pop("namespace", "default")
    ports = _ports(entry.pop("ports"))
    groups = entry.pop("endpoints", [])
    if "dns_endpoints" in entry:
        entry["dns_endpoints"] = [Endpoint(**e) for e in entry["dns_endpoints"]]
    full = entry.get("host", "")
    parts = [service(name, *ports, namespace=namespace, **entry)]
    for index, group in enumerate(groups):
        group = dict(group)
        group.setdefault("ports", {n: number for n, number, _ in ports})
        addresses = group.pop("ips")
        parts.append(
            endpoints(
                name, *addresses, namespace=namespace, shard=str(index), of_host=full, **group
            )
        )
    return rows(*parts)


def _proxy(entry: dict[str, Any]) -> ProxyKeys:
    address, _, port = entry.get("httpProxy", "").rpartition(":")
    return ProxyKeys(
        type=entry["type"],
        name=entry["name"],
        namespace=entry.get("namespace", "default"),
        labels=tuple(sorted(entry.get("labels", {}).items())),
        ips=tuple(entry.get("ips", [])),
        workload=entry.get("workload", entry["name"]),
        capture=entry.get("capture", "redirect"),
        http_proxy_address=address,
        http_proxy_port=int(port or 0),
        app_address=entry.get("appAddress", ""),
        families=families_of(entry.get("ips", [])),
        ports=tuple(_ports(entry.get("ports", []))),
        locality=entry.get("locality", ""),
        proxy_config=entry.get("proxyConfig", ""),
        metadata=tuple(entry.get("metadata", {}).items()),
    )


def rendered(case: str) -> dict[str, Any]:
    """What compile makes of a case."""
    mesh, proxy = load(case)
    snapshot = Rendered(mesh, proxy).snapshot
    return {**render_snapshot(snapshot), "findings": render_findings(snapshot.findings)}
