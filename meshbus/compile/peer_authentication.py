"""PeerAuthentication: does a workload's port take plaintext, mutual TLS, or both?"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from meshbus.compile.engine import Reader
from meshbus.compile.legacy_authentication import any_policy, legacy_modes
from meshbus.compile.settings import mesh
from meshbus.model.keys import Key
from meshbus.model.world import Query

STRICT = "STRICT"
PERMISSIVE = "PERMISSIVE"
DISABLE = "DISABLE"
_MODES = frozenset({STRICT, PERMISSIVE, DISABLE})

NO_SELECTOR_IN_ROOT = (
    "has no effect in the root namespace, as in Istio: a policy there is for the whole mesh; "
    "workloads are selected in their own namespaces"
)

Labels = tuple[tuple[str, str], ...]


class PeerPolicy(NamedTuple):
    """One PeerAuthentication."""

    key: Key
    selector: Labels
    """Empty: the whole namespace."""
    mode: str
    """Empty: as the level above."""
    ports: tuple[tuple[int, str], ...]
    """Modes of ports of the workload."""


class MutualTls(NamedTuple):
    """The modes in force for a workload."""

    mode: str
    ports: tuple[tuple[int, str], ...]
    origins: tuple[Key, ...]
    passed_over: tuple[Key, ...] = ()
    """Policies that select the workload and have no effect: see `NO_SELECTOR_IN_ROOT`."""

    def at(self, port: int) -> str:
        """The mode of one port of the workload."""
        for number, mode in self.ports:
            if number == port:
                return mode
        return self.mode


def peer_policies(reader: Reader, namespace: str) -> tuple[PeerPolicy, ...]:
    """Node: policies of a namespace, older first."""
    entries = sorted(
        reader.entries(Query("cfg.peerauthentications", "namespace", namespace)),
        key=lambda e: (e.row.created, e.row.name),
    )
    out = []
    for entry in entries:
        spec = entry.row.spec
        selector = (spec.get("selector") or {}).get("matchLabels") or {}
        ports = {
            int(port): _mode(settings)
            for port, settings in (spec.get("portLevelMtls") or {}).items()
            if str(port).isdigit()
        }
        out.append(
            PeerPolicy(
                entry.key,
                tuple(sorted((str(k), str(v)) for k, v in selector.items())),
                _mode(spec.get("mtls")),
                tuple(sorted(ports.items())),
            )
        )
    return tuple(out)


def _mode(settings: object) -> str:
    mode = settings.get("mode") if isinstance(settings, dict) else None
    return mode if isinstance(mode, str) and mode in _MODES else ""


def selecting_labels(reader: Reader, namespace: str) -> frozenset[tuple[str, str]]:
    """Node: labels that policies of a namespace, or of the root namespace, select workloads by."""
    owners = dict.fromkeys((reader.node(mesh).root_namespace, namespace))
    policies = [policy for owner in owners for policy in reader.node(peer_policies, owner)]
    return frozenset(pair for policy in policies for pair in policy.selector)


def mutual_tls(reader: Reader, namespace: str, labels: Labels) -> MutualTls:
    """Modes for workloads of these labels: one node for all whom the same policies select."""
    return reader.node(modes, namespace, labels_for_mutual_tls(reader, namespace)(dict(labels)))


def labels_for_mutual_tls(reader: Reader, namespace: str) -> Callable[[Mapping[str, str]], Labels]:
    """Gives those labels of a workload of a namespace that its modes depend on: arguments of
    `modes`."""
    if any_policy(reader, namespace):
        return lambda labels: tuple(sorted(labels.items()))  # of Istio 1.4, which go by services
    chosen = reader.node(selecting_labels, namespace)
    if not chosen:
        return lambda _: ()
    return lambda labels: tuple(sorted(chosen.intersection(labels.items())))


def modes(reader: Reader, namespace: str, labels: Labels) -> MutualTls:
    """Node: modes for workloads of these labels. The workload's policy wins over the namespace's,
    that over the mesh's (root namespace, where those with a selector do not count); at each level
    the oldest counts. Without any the policies of Istio 1.4 count, and PERMISSIVE without those.

    Source: Istio, PeerAuthentication reference; ComposePeerAuthentication.
    """
    root = reader.node(mesh).root_namespace
    mode, ports, origins = PERMISSIVE, {}, []
    held = set(labels)
    of_mesh = reader.node(peer_policies, root)
    levels = [next((p for p in of_mesh if not p.selector), None)]
    if namespace != root:
        own = reader.node(peer_policies, namespace)
        levels.append(next((p for p in own if not p.selector), None))
        levels.append(next((p for p in own if p.selector and held.issuperset(p.selector)), None))
    passed_over = tuple(p.key for p in of_mesh if p.selector and held.issuperset(p.selector))
    if not any(levels):
        legacy = reader.node(legacy_modes, namespace, labels)
        return MutualTls(legacy.mode or PERMISSIVE, legacy.ports, legacy.origins, passed_over)
    for policy in levels:
        if policy is None:
            continue
        origins.append(policy.key)
        mode = policy.mode or mode
        if policy.selector:
            ports = {number: own_mode or mode for number, own_mode in policy.ports}
    return MutualTls(mode, tuple(sorted(ports.items())), tuple(origins), passed_over)
