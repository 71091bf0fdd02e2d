"""Where a Kubernetes Service is reached from elsewhere: external addresses, a load balancer, nodes.

Source: Istio, annotation `traffic.istio.io/nodeSelector`; pilot/pkg/serviceregistry/kube of 1.31:
nodes count for Services of type NodePort that have the annotation, each by its first external IP.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from meshbus.compile.engine import Reader
from meshbus.compile.registry.protocols import integer
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.model.world import NODE_SELECTOR, Query


def outside_of(
    reader: Reader, cluster: str, source_object: ConfigObject
) -> tuple[list[str], list[tuple[int, int]]]:
    """Addresses and names, and (port of the service, port there) where the two differ.

    Discovery puts what Kubernetes says of the load balancer beside the rest of the spec; without
    Kubernetes it is the object's status.
    """
    spec = source_object.spec
    status = _status(reader, Key(cluster, "cfg", "services", *_name(source_object)), source_object)
    balancer = status.get("loadBalancer")
    places = _records(balancer.get("ingress")) if isinstance(balancer, dict) else []
    places += _records(spec.get("ingress"))
    found = [str(address) for address in spec.get("externalIPs") or ()]
    found += [str(place.get("ip") or place.get("hostname") or "") for place in places]
    ports: list[tuple[int, int]] = []
    if spec.get("type") == "NodePort" and NODE_SELECTOR in source_object.annotations:
        ports = [
            (integer(port.get("port")), integer(port.get("nodePort")))
            for port in _records(spec.get("ports"))
            if integer(port.get("nodePort"))
        ]
        selector = selector_of(source_object.annotations[NODE_SELECTOR]) or {}
        found = found or list(_nodes(reader, cluster, selector))
    return list(dict.fromkeys(where for where in found if where)), ports


def selector_of(text: str) -> dict[str, str] | None:
    """The labels that nodes must have, of the annotation; none: all nodes. None: it is not a JSON
    object of texts, and all nodes count."""
    if not text:
        return {}
    try:
        held = json.loads(text)
    except ValueError:
        return None
    if not isinstance(held, dict) or not all(isinstance(value, str) for value in held.values()):
        return None
    return held


def _nodes(reader: Reader, cluster: str, selector: Mapping[str, str]) -> Iterable[str]:
    for entry in reader.entries(Query("cfg.nodes", "all", None)):
        row: ConfigObject = entry.row
        if entry.key.cluster == cluster and selector.items() <= row.labels.items():
            for place in _records(_status(reader, entry.key, row).get("addresses")):
                if place.get("type") == "ExternalIP" and place.get("address"):
                    yield str(place["address"])
                    break


def _status(reader: Reader, key: Key, row: ConfigObject) -> Mapping[str, Any]:
    held = row.spec.get("status")
    if isinstance(held, dict):
        return held
    told = reader.get(key._replace(plane="st"))
    return told.status if told is not None else {}


def _name(row: ConfigObject) -> tuple[str, str]:
    return row.namespace, row.name


def _records(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
