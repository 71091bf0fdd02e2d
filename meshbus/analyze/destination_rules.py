"""DestinationRules: what they leave unchecked, and subsets of nobody.

Source: Istio, analysis messages IST0128, IST0129, IST0173, IST0174.
"""

from collections.abc import Iterator, Mapping

from meshbus.analyze.hosts import Host, Hosts
from meshbus.analyze.messages import Message, about
from meshbus.analyze.objects import (
    NETWORKING,
    Objects,
    Pod,
    record,
    records,
    selects,
    strings,
    text,
    texts,
)
from meshbus.api.credentials import CONFIG_MAP

_TOPOLOGY = (
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
)
_HOSTNAME = "kubernetes.io/hostname"


def unverified(objects: Objects) -> Iterator[Message]:
    """TLS without authorities: nobody asks who the server is."""
    for one in objects.of(NETWORKING, "DestinationRule"):
        policy = record(one.spec.get("trafficPolicy"))
        host = text(one.spec.get("host"))
        # Sidecars take credentials of rules that say whose sidecars are meant.
        fetched = isinstance(one.spec.get("workloadSelector"), dict)
        if _is_unverified(record(policy.get("tls")), fetched):
            message = f"no caCertificates: certificates of {host} are not verified"
            yield about(one, "IST0128", message, "spec.trafficPolicy.tls")
        for index, port in enumerate(records(policy.get("portLevelSettings"))):
            if _is_unverified(record(port.get("tls")), fetched):
                at = record(port.get("port")).get("number")
                message = f"no caCertificates: certificates of {host} on port {at} are not verified"
                path = f"spec.trafficPolicy.portLevelSettings[{index}].tls"
                yield about(one, "IST0129", message, path)


def _is_unverified(tls: Mapping[str, object], fetched: bool) -> bool:
    name = text(tls.get("credentialName"))
    fetched = fetched or name.startswith(CONFIG_MAP)
    verified = tls.get("caCertificates") or (fetched and name)
    return tls.get("mode") in ("SIMPLE", "MUTUAL") and not verified


def subsets(objects: Objects) -> Iterator[Message]:
    """The host is there, and pods are in each subset."""
    hosts = Hosts(objects)
    nodes = {one.name: one.labels for one in objects.of("", "Node")}
    running = [_labels(pod, nodes) for pod in objects.pods]
    running += [
        strings(one.spec.get("labels")) | one.labels
        for one in objects.of(NETWORKING, "WorkloadEntry")
    ]
    for one in objects.of(NETWORKING, "DestinationRule"):
        name = text(one.spec.get("host"))
        host = _host(hosts, name, one.namespace, texts(one.spec.get("exportTo")))
        if host is None:
            yield about(one, "IST0174", f"there is no service {name}", "spec.host")
            continue
        behind = [*running, *host.endpoints]
        for index, subset in enumerate(records(one.spec.get("subsets"))):
            selector = host.selector | strings(subset.get("labels"))
            only = strings(subset.get("labels"))
            found = any(selects(selector, labels) for labels in behind)
            if not found and not any(selects(only, labels) for labels in host.endpoints):
                message = f"no pod is in subset {text(subset.get('name'))}: calls of it would fail"
                yield about(one, "IST0173", message, f"spec.subsets[{index}]")


def _host(hosts: Hosts, name: str, namespace: str, export_to: list[str]) -> Host | None:
    found = hosts.find(name, namespace, export_to)
    if found is None and name.startswith("*"):
        # A rule for many hosts is about those that are there.
        suffix = name[1:]
        if any(held.endswith(suffix) for held in hosts.names()):
            return Host((), {})
    return found


def _labels(pod: Pod, nodes: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Labels of a pod, and where it runs."""
    name = text(pod.spec.get("nodeName"))
    if name not in nodes:
        return pod.labels
    where = {key: nodes[name][key] for key in _TOPOLOGY if nodes[name].get(key)}
    return pod.labels | where | {_HOSTNAME: name}
