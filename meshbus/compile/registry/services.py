"""Services and their endpoints, as nodes of the engine: each reads only what concerns it."""

import ipaddress
from collections.abc import Mapping
from typing import Any

import msgspec

from meshbus.compile.engine import Reader
from meshbus.compile.names import CLUSTER_DOMAIN
from meshbus.compile.registry.instances import DISABLED, instance_of_entry_spec
from meshbus.compile.registry.outside import outside_of
from meshbus.compile.registry.protocols import integer, protocol_of_entry, protocol_of_port
from meshbus.compile.registry.virtual_addresses import (
    BOTH,
    ENTRY,
    SERVICE,
    families_of_service,
    virtual_address,
)
from meshbus.model.keys import Key
from meshbus.model.rows import (
    ConfigObject,
    Endpoint,
    EndpointShard,
    Row,
    Service,
    ServicePort,
    WorkloadInstance,
)
from meshbus.model.world import TRAFFIC_DISTRIBUTION, Entry, Query

EXPORT_ANNOTATION = "networking.istio.io/exportTo"
Rows = tuple[tuple[Key, Row], ...]


def host_of_service(namespace: str, name: str) -> str:
    """The host of a Kubernetes service."""
    return f"{name}.{namespace}.svc.{CLUSTER_DOMAIN}"


# --------------------------------------------------------------------------- Kubernetes services


def service_rows(
    reader: Reader, cluster: str, namespace: str, name: str, mesh: tuple[str, ...] = BOTH
) -> Rows:
    """Node: the rows of one Kubernetes service. `mesh`: families of addresses that there are."""
    source_object = reader.get(Key(cluster, "cfg", "services", namespace, name))
    if source_object is None:
        return ()
    spec = source_object.spec
    host = host_of_service(namespace, name)
    source = f"cfg.services/{namespace}/{name}"
    ports = [_service_port(port) for port in _records(spec.get("ports"))]
    external_name = (
        str(spec.get("externalName") or "") if spec.get("type") == "ExternalName" else ""
    )
    selector = _texts(spec.get("selector"))
    outside, outside_ports = outside_of(reader, cluster, source_object)
    row = Service(
        host=host,
        namespace=namespace,
        name=name,
        origin="kubernetes",
        ports=ports,
        addresses=_addresses(reader, source_object, mesh),
        resolution="DNS" if external_name else "STATIC",
        headless=spec.get("clusterIP") == "None",
        external_name=external_name,
        export_to=[
            part.strip()
            for part in source_object.annotations.get(EXPORT_ANNOTATION, "").split(",")
            if part.strip()
        ],
        selector=selector,
        labels=dict(source_object.labels),
        annotations=_annotations(source_object),
        created=source_object.created,
        source=source,
        session_affinity=spec.get("sessionAffinity") == "ClientIP",
        outside=outside,
        outside_ports=outside_ports,
    )
    rows: list[tuple[Key, Row]] = [(Key(cluster, "reg", "services", namespace, host), row)]
    if external_name:
        return tuple(rows)
    slices = reader.entries(Query("cfg.endpointslices", "service", (namespace, name)))
    families = spec.get("ipFamilies") or []
    first = str(families[0]) if len(families) > 1 else ""
    for entry in slices:
        shard = _shard_of_slice(reader, cluster, row, entry, first)
        rows.append((Key(cluster, "reg", "endpoints", namespace, host, entry.key.name), shard))
    if selector:
        targets = {
            str(p.get("name") or ""): p.get("targetPort", p.get("port"))
            for p in _records(spec.get("ports"))
        }
        endpoints = [
            endpoint
            for instance in selected(reader, namespace, selector)
            if not (slices and instance.origin == "pod")
            and (own := _of_families(instance, spec)) is not None
            and (endpoint := _endpoint(own, row.ports, targets)) is not None
        ]
        if endpoints or not slices:
            key = Key(cluster, "reg", "endpoints", namespace, host, "selected")
            rows.append((key, EndpointShard(host, namespace, "selected", endpoints, source)))
    return tuple(rows)


def _annotations(source_object: ConfigObject) -> dict[str, str]:
    """Those of Istio; `spec.trafficDistribution` stands with them."""
    out = {k: v for k, v in source_object.annotations.items() if "istio.io/" in k}
    distribution = source_object.spec.get("trafficDistribution")
    if isinstance(distribution, str) and distribution:
        out.setdefault(TRAFFIC_DISTRIBUTION, distribution)
    return out


def _addresses(reader: Reader, source_object: ConfigObject, mesh: tuple[str, ...]) -> list[str]:
    spec = source_object.spec
    if spec.get("clusterIP") == "None" or spec.get("type") == "ExternalName":
        return []
    given = [str(ip) for ip in spec.get("clusterIPs") or [] if ip]
    first = spec.get("clusterIP")
    if first and first not in given:
        given.insert(0, str(first))
    if given:
        return given
    families = families_of_service(spec, mesh)
    return virtual_address(reader, SERVICE, source_object.namespace, source_object.name, families)


def _of_families(instance: WorkloadInstance, spec: Mapping[str, Any]) -> WorkloadInstance | None:
    """The instance with the addresses that a service takes, the preferred family first; None: it
    has none of these.

    Source: Kubernetes, dual-stack services.
    """
    wanted = [str(family) for family in spec.get("ipFamilies") or ()]
    if not wanted:
        return instance
    if str(spec.get("ipFamilyPolicy") or "").endswith("DualStack") and len(wanted) == 1:
        wanted.append("IPv4" if wanted[0] == "IPv6" else "IPv6")
    addresses = [a for family in wanted for a in instance.addresses if _family(a) == family]
    addresses += [a for a in instance.addresses if not _family(a)]
    if addresses == instance.addresses:
        return instance
    return msgspec.structs.replace(instance, addresses=addresses) if addresses else None


def _family(address: str) -> str:
    """`IPv4`, `IPv6`; empty: a name."""
    try:
        return f"IPv{ipaddress.ip_address(address).version}"
    except ValueError:
        return ""


def _service_port(port: Mapping[str, Any]) -> ServicePort:
    name, number = str(port.get("name") or ""), integer(port.get("port"))
    protocol = protocol_of_port(
        name, number, str(port.get("appProtocol") or ""), str(port.get("protocol") or "TCP")
    )
    return ServicePort(name, number, protocol, integer(port.get("targetPort")))


def selected(reader: Reader, namespace: str, selector: Mapping[str, str]) -> list[WorkloadInstance]:
    """Instances whose labels match. Reads only those that carry one of the labels."""
    name, value = min(selector.items())
    found = reader.entries(Query("src.instances", "label", (namespace, name, value)))
    return [
        entry.row
        for entry in found
        if all(entry.row.labels.get(k) == v for k, v in selector.items())
    ]


def _endpoint(
    instance: WorkloadInstance, ports: list[ServicePort], targets: Mapping[str, Any]
) -> Endpoint | None:
    """The endpoint that an instance is of a service; None when it has none of its ports."""
    found: dict[str, int] = {}
    for port in ports:
        target = targets.get(port.name)
        if isinstance(target, str) and not target.isdigit():
            number = instance.target_ports.get(target, 0)
        elif instance.origin == "entry" and port.name in instance.target_ports:
            number = instance.target_ports[port.name]
        else:
            number = integer(target) or (int(target) if isinstance(target, str) else port.number)
        if number:
            found[port.name] = number
    if not found:
        return None
    return Endpoint(
        addresses=list(instance.addresses),
        ports=found,
        labels=dict(instance.labels),
        service_account=instance.service_account,
        workload=instance.workload,
        instance=instance.name,
        namespace=instance.namespace,
        network=instance.network,
        cluster=instance.cluster,
        locality=instance.locality,
        weight=instance.weight,
        ready=instance.ready,
        draining=instance.draining,
        tls_mode=instance.tls_mode,
    )


def _shard_of_slice(
    reader: Reader, cluster: str, service: Service, entry: Entry, first_family: str
) -> EndpointShard:
    """The endpoints of one EndpointSlice, with what the pods behind them say.

    A dual-stack service has slices of each family: a pod that is in one of `first_family` stands
    there, with all its addresses, and not in the others.
    """
    spec = entry.row.spec
    ports = {
        str(p.get("name") or ""): integer(p.get("port"))
        for p in _records(spec.get("ports"))
        if integer(p.get("port"))
    }
    endpoints = []
    for item in _records(spec.get("endpoints")):
        addresses = [str(a) for a in item.get("addresses") or []]
        if not addresses:
            continue
        instance = _instance_at(reader, addresses[0], item.get("targetRef"))
        if first_family and instance is not None:
            own = [a for a in instance.addresses if (":" in a) == (first_family == "IPv6")]
            if own and addresses[0] not in own:
                continue
            addresses += [a for a in instance.addresses if a not in addresses]
        conditions = item.get("conditions") or {}
        serving = conditions.get("serving")
        terminating = bool(conditions.get("terminating", False))
        ready = conditions.get("ready") is not False and not terminating
        locality = instance.locality if instance else ""
        if not locality and item.get("zone"):
            locality = f"/{item['zone']}"
        endpoints.append(
            Endpoint(
                addresses=addresses,
                ports=dict(ports),
                labels=dict(instance.labels) if instance else {},
                service_account=instance.service_account if instance else "",
                workload=instance.workload if instance else "",
                instance=instance.name if instance else str(item.get("hostname") or ""),
                namespace=instance.namespace if instance else service.namespace,
                network=instance.network if instance else "",
                cluster=cluster,
                locality=locality,
                ready=ready,
                draining=terminating and serving is True,
                tls_mode=instance.tls_mode if instance else DISABLED,
            )
        )
    source = f"cfg.endpointslices/{entry.key.namespace}/{entry.key.name}"
    return EndpointShard(service.host, service.namespace, entry.key.name, endpoints, source)


def _instance_at(reader: Reader, address: str, target: Any) -> WorkloadInstance | None:
    """The instance with this address; of several (host network) the one that `target` names."""
    found = reader.entries(Query("src.instances", "address", address))
    if isinstance(target, dict) and len(found) > 1:
        wanted = (target.get("namespace"), target.get("name"))
        for entry in found:
            if (entry.row.namespace, entry.row.name) == wanted:
                row: WorkloadInstance = entry.row
                return row
    return found[0].row if found else None


# --------------------------------------------------------------------------- service entries


def entry_rows(
    reader: Reader, cluster: str, namespace: str, host: str, mesh: tuple[str, ...] = BOTH
) -> Rows:
    """Node: the rows of one host of the ServiceEntries of a namespace. Of several entries the
    oldest says what the host is; those of equal resolution, labels, selector and exportTo add their
    addresses and ports; all that are resolved as it is add their endpoints at ports of these names.
    A Kubernetes service of that host comes before all. `mesh`: families of addresses that there
    are.

    Source: Istio, canMergeServices; endpoints are known by host and namespace.
    """
    found = [
        entry
        for entry in reader.entries(Query("cfg.serviceentries", "host", host))
        if entry.key.namespace == namespace
    ]
    if not found:
        return ()
    name, _, rest = host.partition(".")
    if rest == f"{namespace}.svc.{CLUSTER_DOMAIN}":
        kubernetes = Key(cluster, "cfg", "services", namespace, name)
        if reader.get(kubernetes) is not None:
            return ()
    found.sort(key=lambda e: (e.row.created, e.key.name))
    source_object: ConfigObject = found[0].row
    spec = source_object.spec
    ports: list[ServicePort] = []
    addresses: dict[str, None] = {}
    members: list[Endpoint] = []
    resolution = _resolution(spec)
    for entry in found:
        own = entry.row.spec
        if _resolution(own) != resolution:
            continue
        own_ports = _ports_of_entry(own)
        if _merging(entry.row) == _merging(source_object):
            names = _join_ports(ports, own_ports)
            addresses.update((str(a), None) for a in own.get("addresses") or ())
        else:
            names = {p.name: p.name for p in ports if any(o.name == p.name for o in own_ports)}
        for member in _members(reader, cluster, entry.row, own_ports):
            known = {names[name]: at for name, at in member.ports.items() if name in names}
            if known:
                members.append(msgspec.structs.replace(member, ports=known))
    source = f"cfg.serviceentries/{namespace}/{source_object.name}"
    dynamic = resolution.startswith("DNS")
    selector = _texts((spec.get("workloadSelector") or {}).get("labels"))
    row = Service(
        host=host,
        namespace=namespace,
        name=source_object.name,
        origin="external",
        ports=ports,
        addresses=list(addresses),
        resolution=resolution,
        external=str(spec.get("location") or "MESH_EXTERNAL") == "MESH_EXTERNAL",
        export_to=[str(e) for e in spec.get("exportTo") or []],
        selector=selector,
        labels=dict(source_object.labels),
        annotations={k: v for k, v in source_object.annotations.items() if "istio.io/" in k},
        subject_alt_names=[str(s) for s in spec.get("subjectAltNames") or []],
        created=source_object.created,
        source=source,
        dns_endpoints=members if dynamic else [],
        auto_addresses=virtual_address(reader, ENTRY, namespace, host, mesh),
        # Its workloads are called at their own addresses.
        headless=resolution == "NONE" and bool(selector or members) and not addresses,
    )
    rows: list[tuple[Key, Row]] = [(Key(cluster, "reg", "services", namespace, host), row)]
    if resolution == "STATIC" or row.headless:
        key = Key(cluster, "reg", "endpoints", namespace, host, "entry")
        rows.append((key, EndpointShard(host, namespace, "entry", members, source)))
    return tuple(rows)


def _resolution(spec: Mapping[str, Any]) -> str:
    return str(spec.get("resolution") or "NONE")


def _merging(entry: ConfigObject) -> tuple[Any, ...]:
    """What entries of a host have in common that are one service."""
    spec = entry.spec
    selector = _texts((spec.get("workloadSelector") or {}).get("labels"))
    return sorted(map(str, spec.get("exportTo") or ())), selector, entry.labels


def _ports_of_entry(spec: Mapping[str, Any]) -> list[ServicePort]:
    return [
        ServicePort(
            str(p.get("name") or ""),
            integer(p.get("number")),
            protocol_of_entry(str(p.get("protocol") or "")),
            integer(p.get("targetPort")),
        )
        for p in _records(spec.get("ports"))
    ]


def _join_ports(ports: list[ServicePort], more: list[ServicePort]) -> dict[str, str]:
    """Add ports to those of a host that it does not have; what each of them is called there."""
    names = {}
    for port in more:
        held = next((p for p in ports if p.number == port.number), None)
        if held is None:
            taken = any(p.name == port.name for p in ports)
            name = f"{port.name}-{port.number}" if taken else port.name
            held = msgspec.structs.replace(port, name=name)
            ports.append(held)
        names[port.name] = held.name
    return names


def _members(
    reader: Reader, cluster: str, source_object: ConfigObject, ports: list[ServicePort]
) -> list[Endpoint]:
    spec = source_object.spec
    targets = {p.name: p.target_port or p.number for p in ports}
    instances: list[WorkloadInstance] = []
    for index, inline in enumerate(_records(spec.get("endpoints"))):
        instance = instance_of_entry_spec(
            inline,
            name=f"{source_object.name}-{index}",
            namespace=source_object.namespace,
            labels={},
            cluster=cluster,
            created=source_object.created,
            behind_gateway=True,
        )
        if instance is not None:
            instances.append(instance)
    selector = _texts((spec.get("workloadSelector") or {}).get("labels"))
    if selector:
        instances += selected(reader, source_object.namespace, selector)
    return [e for i in instances if (e := _endpoint(i, ports, targets)) is not None]


def _records(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _texts(value: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}
