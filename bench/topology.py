"""A mesh of any size, the same one for the same seed: rows as discovery and config write them.

A service has replicas with a sidecar each; a fifth of the services have subsets and a weighted
route; each namespace has a policy; each service calls some others. Scoped: a Sidecar per namespace
shows it itself and what its services call; unscoped: everybody sees everything.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from meshbus.model.keys import Key
from meshbus.model.rows import (
    ConfigObject,
    Endpoint,
    EndpointShard,
    Namespace,
    Row,
    Service,
    ServicePort,
    WorkloadInstance,
    WorkloadPort,
)

CLUSTER = "c"
PORT = 80
Rows = dict[Key, Row | None]


@dataclass(frozen=True)
class Size:
    """What mesh to make."""

    services: int
    replicas: int = 2
    per_namespace: int = 20
    calls: tuple[int, int] = (5, 10)
    scoped: bool = True
    seed: int = 1


@dataclass
class Topology:
    """The mesh of a size."""

    size: Size
    calls: dict[int, list[int]] = field(default_factory=dict)
    """Services that a service calls."""

    def __post_init__(self) -> None:
        random_ = random.Random(self.size.seed)
        everyone = range(self.size.services)
        for number in everyone:
            count = min(random_.randint(*self.size.calls), self.size.services)
            self.calls[number] = random_.sample(everyone, count)

    # ------------------------------------------------------------------ names

    def namespace(self, number: int) -> str:
        """Of a service."""
        return f"ns-{number // self.size.per_namespace:03}"

    def namespaces(self) -> list[str]:
        """All of them."""
        return sorted({self.namespace(number) for number in range(self.size.services)})

    def host(self, number: int) -> str:
        """Of a service."""
        return f"svc-{number:05}.{self.namespace(number)}.svc.cluster.local"

    def cluster(self, number: int) -> str:
        """Name of the cluster, and of its endpoints, that callers of a service have."""
        return f"outbound|{PORT}||{self.host(number)}"

    def has_route(self, number: int) -> bool:
        """Whether a service has subsets and a route."""
        return number % 5 == 0

    def address(self, number: int, replica: int) -> str:
        """Of an instance."""
        at = number * self.size.replicas + replica
        return f"10.{128 + at // 62500}.{at // 250 % 250}.{at % 250 + 1}"

    # ------------------------------------------------------------------ rows

    def rows(self) -> Rows:
        """Everything."""
        rows: Rows = {}
        seen: dict[str, set[str]] = {}
        for number in range(self.size.services):
            rows.update(self.service(number))
            rows.update(self.endpoints(number))
            rows.update(self.workloads(number))
            if self.has_route(number):
                rows.update(self.route(number, 90))
                rows.update(self._subsets(number))
            called = {f"{self.namespace(other)}/{self.host(other)}" for other in self.calls[number]}
            seen.setdefault(self.namespace(number), set()).update(called)
        for namespace, called in seen.items():
            rows[Key(CLUSTER, "reg", "namespaces", "", namespace)] = Namespace(namespace)
            rows.update(self._policy(namespace))
            if self.size.scoped:
                hosts = ["./*", "istio-system/*", *sorted(called)]
                spec = {"egress": [{"hosts": hosts}]}
                rows.update(_config("Sidecar", "sidecars", namespace, "default", spec))
        return rows

    def service(self, number: int) -> Rows:
        """Its `reg.services`."""
        namespace, host, name = self.namespace(number), self.host(number), f"svc-{number:05}"
        row = Service(
            host,
            namespace,
            name,
            "kubernetes",
            [ServicePort("http", PORT, "HTTP")],
            addresses=[f"10.{96 + number // 60000}.{number // 250 % 250}.{number % 250 + 1}"],
            selector={"app": name},
            created=1.0,
        )
        return {Key(CLUSTER, "reg", "services", namespace, host): row}

    def endpoints(self, number: int, mark: int | None = None) -> Rows:
        """Its `reg.endpoints`; `mark`: a number that the address of one more endpoint tells."""
        namespace, host, name = self.namespace(number), self.host(number), f"svc-{number:05}"
        members = [
            _endpoint(name, namespace, replica, self.address(number, replica))
            for replica in range(self.size.replicas)
        ]
        if mark is not None:
            members.append(_endpoint(name, namespace, self.size.replicas, address_of_mark(mark)))
        row = EndpointShard(host, namespace, "s", members)
        return {Key(CLUSTER, "reg", "endpoints", namespace, host, "s"): row}

    def workloads(self, number: int) -> Rows:
        """Its `reg.workloads`."""
        namespace, name = self.namespace(number), f"svc-{number:05}"
        rows: Rows = {}
        for replica in range(self.size.replicas):
            instance = f"{name}-{replica}"
            rows[Key(CLUSTER, "reg", "workloads", namespace, instance)] = WorkloadInstance(
                instance,
                namespace,
                name,
                f"sa-{name}",
                _labels(name, replica),
                [self.address(number, replica)],
                ports=[WorkloadPort("http", 8080, "HTTP")],
            )
        return rows

    def route(self, number: int, weight: int) -> Rows:
        """A virtual service that gives the first subset so many percent."""
        host = self.host(number)
        route = [
            {"destination": {"host": host, "subset": subset}, "weight": part}
            for subset, part in (("v1", weight), ("v2", 100 - weight))
        ]
        spec = {"hosts": [host], "http": [{"route": route}]}
        name = f"svc-{number:05}"
        return _config("VirtualService", "virtualservices", self.namespace(number), name, spec)

    def _subsets(self, number: int) -> Rows:
        subsets = [{"name": v, "labels": {"version": v}} for v in ("v1", "v2")]
        spec = {"host": self.host(number), "subsets": subsets}
        name = f"svc-{number:05}"
        return _config("DestinationRule", "destinationrules", self.namespace(number), name, spec)

    def _policy(self, namespace: str) -> Rows:
        rule = {"to": [{"operation": {"paths": ["/forbidden"]}}]}
        spec = {"action": "DENY", "rules": [rule]}
        return _security("AuthorizationPolicy", "authorizationpolicies", namespace, "deny", spec)

    def mesh_policy(self, step: int) -> Rows:
        """A policy for the whole mesh that differs with each step."""
        rule = {"to": [{"operation": {"paths": [f"/step-{step}"]}}]}
        spec = {"action": "DENY", "rules": [rule]}
        return _security("AuthorizationPolicy", "authorizationpolicies", "istio-system", "m", spec)

    # ------------------------------------------------------------------ who is concerned

    def callers_namespaces(self, number: int) -> set[str]:
        """Namespaces that see a service."""
        if not self.size.scoped:
            return set(self.namespaces())
        return {self.namespace(number)} | {
            self.namespace(caller) for caller, called in self.calls.items() if number in called
        }

    def sidecars(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(node id, node metadata) of each instance; neighbours are of different services."""
        for replica in range(self.size.replicas):
            for number in range(self.size.services):
                namespace, name = self.namespace(number), f"svc-{number:05}"
                address = self.address(number, replica)
                instance = f"{name}-{replica}.{namespace}"
                yield (
                    f"sidecar~{address}~{instance}~{namespace}.svc.cluster.local",
                    {
                        "NAMESPACE": namespace,
                        "LABELS": _labels(name, replica),
                        "SERVICE_ACCOUNT": f"sa-{name}",
                        "WORKLOAD_NAME": name,
                        "INSTANCE_IPS": address,
                    },
                )


def address_of_mark(mark: int) -> str:
    """An address that tells a number below 2^24."""
    return f"11.{mark >> 16 & 255}.{mark >> 8 & 255}.{mark & 255}"


def mark_of_address(address: str) -> int | None:
    """The number that an address tells; None: it is an ordinary one."""
    first, *rest = address.split(".")
    if first != "11":
        return None
    high, middle, low = map(int, rest)
    return high << 16 | middle << 8 | low


def _labels(name: str, replica: int) -> dict[str, str]:
    return {"app": name, "version": f"v{replica % 2 + 1}"}


def _endpoint(name: str, namespace: str, replica: int, address: str) -> Endpoint:
    return Endpoint(
        [address],
        {"http": 8080},
        _labels(name, replica),
        f"sa-{name}",
        name,
        f"{name}-{replica}",
        namespace,
        tls_mode="istio",
    )


def _config(kind: str, plural: str, namespace: str, name: str, spec: Any) -> Rows:
    row = ConfigObject("networking.istio.io/v1", kind, namespace, name, name, 1, 1.0, spec=spec)
    return {Key(CLUSTER, "cfg", plural, namespace, name): row}


def _security(kind: str, plural: str, namespace: str, name: str, spec: Any) -> Rows:
    [(key, row)] = _config(kind, plural, namespace, name, spec).items()
    assert isinstance(row, ConfigObject)
    return {key: msgspec.structs.replace(row, api_version="security.istio.io/v1")}
