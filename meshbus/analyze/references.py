"""What an object names and is not there: hosts, subsets, gateways, secrets, handlers, quotas,
keys, and Envoys for a Gateway.

Such an object is valid, and carried out as far as it goes; what names something missing has no
effect until that comes. Code and level are those of Istio's analysis message IST0101.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol, TypeAlias

from meshbus.api.credentials import CONFIG_MAP
from meshbus.api.networking.gateway import SERVICES_ANNOTATION
from meshbus.model.key_sources import key_set_key, source_of, token_rules
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, KeySet
from meshbus.model.world import ANY_GATEWAY, Entry, Query

CODE = "IST0101"
CLUSTER_SUFFIX = ".svc.cluster.local"


Labels: TypeAlias = tuple[tuple[str, str], ...]


class Entries(Protocol):
    """Where rows are looked for."""

    def entries(self, query: Query) -> tuple[Entry, ...]:
        """Rows that an index files under a value."""


def some_gateway(rows: Entries, selector: Labels) -> bool:
    """There is an Envoy of a gateway with these labels, or a Workload that has some."""
    first = selector[0] if selector else ANY_GATEWAY
    return any(
        entry.row.labels.items() >= set(selector)
        for table in ("cfg.workloads", "reg.workloads")
        for entry in rows.entries(Query(table, "gateway", first))
    )


def selector_of(gateway: ConfigObject) -> Labels | None:
    """Labels of the Envoys that a Gateway is for; None: services say which they are."""
    if SERVICES_ANNOTATION in gateway.annotations:
        return None
    selector = _record(gateway.spec.get("selector"))
    return tuple(sorted((str(k), str(v)) for k, v in selector.items()))


class Rows(Protocol):
    """Where rows are looked up; a recording reader makes the result incremental."""

    def entries(self, query: Query) -> tuple[Entry, ...]:
        """Rows that an index files under a value."""

    def get(self, key: Key) -> Any:
        """One row, or None."""

    def has_gateway(self, selector: Labels) -> bool:
        """`some_gateway`; many Gateways share the answer."""


class Missing(NamedTuple):
    """Something that is named and not there."""

    path: str
    """The field that names it: `spec.http[0].route[0].destination.host`."""
    message: str


def missing_references(rows: Rows, key: Key) -> tuple[Missing, ...]:
    """What the object at `key` names and is not there, in order of its fields."""
    row = rows.get(key)
    finder = _FINDERS.get(key.kind)
    if not isinstance(row, ConfigObject) or finder is None or key.plane != "cfg":
        return ()
    found = finder(_Names(rows, key), row.spec)
    return (*_envoys(rows, row), *found) if key.kind == "gateways" else tuple(found)


def _envoys(rows: Rows, gateway: ConfigObject) -> Iterator[Missing]:
    selector = selector_of(gateway)
    if selector is not None and not rows.has_gateway(selector):
        wanted = ", ".join(f"{name}={value}" for name, value in selector)
        named = f"no gateway has the labels {wanted}" if wanted else "there is no gateway"
        yield Missing("spec.selector", named)


def has_references(key: Key) -> bool:
    """Objects of this kind may name others."""
    return key.plane == "cfg" and key.kind in _FINDERS


class _Names:
    """Names as seen from one object."""

    def __init__(self, rows: Rows, key: Key) -> None:
        self.rows = rows
        self.cluster = key.cluster
        self.namespace = key.namespace

    def host(self, name: str, namespace: str = "") -> str:
        """The full name of a host: a name without dots is a service of the namespace."""
        if "." in name or name.startswith("*"):
            return name
        return f"{name}.{namespace or self.namespace}{CLUSTER_SUFFIX}"

    def has_host(self, name: str) -> bool:
        """Something answers to this host."""
        full = self.host(name)
        if full.endswith(CLUSTER_SUFFIX):
            short, _, namespace = full.removesuffix(CLUSTER_SUFFIX).partition(".")
            if self.has("services", short, namespace):
                return True
        if self.rows.entries(Query("reg.services", "host", full)):
            return True
        wanted = [full]
        labels = full.removeprefix("*.").split(".")
        wanted += ["*." + ".".join(labels[i:]) for i in range(1, len(labels))]
        wanted.append("*")
        return any(self.rows.entries(Query("cfg.serviceentries", "host", host)) for host in wanted)

    def has_subset(self, host: str, subset: str) -> bool:
        """A DestinationRule of the host defines the subset."""
        full = self.host(host)
        spellings = {full, host}
        if full.endswith(CLUSTER_SUFFIX):
            short, _, namespace = full.removesuffix(CLUSTER_SUFFIX).partition(".")
            spellings |= {short, f"{short}.{namespace}", f"{short}.{namespace}.svc"}
        for spelling in sorted(spellings):
            for entry in self.rows.entries(Query("cfg.destinationrules", "host", spelling)):
                if self.host(spelling, entry.key.namespace) not in {full, spelling}:
                    continue
                if any(s.get("name") == subset for s in _records(entry.row.spec.get("subsets"))):
                    return True
        return False

    def has(self, plural: str, name: str, namespace: str) -> bool:
        """An object is there."""
        return self.rows.get(Key(self.cluster, "cfg", plural, namespace, name)) is not None


def _virtual_service(names: _Names, spec: Mapping[str, Any]) -> Iterator[Missing]:
    for index, gateway in enumerate(spec.get("gateways") or ()):
        if not isinstance(gateway, str) or gateway == "mesh":
            continue
        namespace, slash, name = gateway.rpartition("/")
        if not names.has("gateways", name, namespace if slash else names.namespace):
            yield Missing(f"spec.gateways[{index}]", f"there is no Gateway {gateway!r}")
    for protocol in ("http", "tls", "tcp"):
        for place, rule in _indexed(f"spec.{protocol}", spec.get(protocol)):
            for path, destination in _destinations(place, rule):
                yield from _destination(names, path, destination)


def _destinations(place: str, rule: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path, route in _indexed(f"{place}.route", rule.get("route")):
        yield f"{path}.destination", _record(route.get("destination"))
    if isinstance(rule.get("mirror"), dict):
        yield f"{place}.mirror", rule["mirror"]
    for path, mirror in _indexed(f"{place}.mirrors", rule.get("mirrors")):
        yield f"{path}.destination", _record(mirror.get("destination"))


def _destination(names: _Names, path: str, destination: Mapping[str, Any]) -> Iterator[Missing]:
    host, subset = destination.get("host"), destination.get("subset")
    if not isinstance(host, str) or not host:
        return
    if not names.has_host(host):
        yield Missing(f"{path}.host", f"there is no service {names.host(host)!r}")
    if isinstance(subset, str) and subset and not names.has_subset(host, subset):
        yield Missing(
            f"{path}.subset", f"no DestinationRule of {names.host(host)!r} has a subset {subset!r}"
        )


def _destination_rule(names: _Names, spec: Mapping[str, Any]) -> Iterator[Missing]:
    host = spec.get("host")
    if isinstance(host, str) and not host.startswith("*") and not names.has_host(host):
        yield Missing("spec.host", f"there is no service {names.host(host)!r}")


def _gateway(names: _Names, spec: Mapping[str, Any]) -> Iterator[Missing]:
    for place, server in _indexed("spec.servers", spec.get("servers")):
        tls = _record(server.get("tls"))
        wanted = [("credentialName", tls.get("credentialName"))]
        for index, name in enumerate(tls.get("credentialNames") or ()):
            wanted.append((f"credentialNames[{index}]", name))
        if wanted_roots := tls.get("caCertCredentialName"):
            wanted.append(("caCertCredentialName", wanted_roots))
        for field, name in wanted:
            if not isinstance(name, str) or not name:
                continue
            if name.startswith(CONFIG_MAP):
                namespace, _, short = name.removeprefix(CONFIG_MAP).partition("/")
                if not names.has("configmaps", short, namespace):
                    message = f"there is no ConfigMap {namespace}/{short}"
                    yield Missing(f"{place}.tls.{field}", message)
                continue
            short = name.rpartition("/")[2]
            held = {short}
            if field == "caCertCredentialName":
                held.add(short.removesuffix("-cacert"))
            # The Secret belongs into the namespace of the gateway's workload, which is not
            # always that of the Gateway.
            found = names.rows.entries(Query("cfg.secrets", "all", None))
            if not any(entry.key.name in held for entry in found):
                yield Missing(f"{place}.tls.{field}", f"there is no Secret {name!r}")


def _quota_spec_binding(names: _Names, spec: Mapping[str, Any]) -> Iterator[Missing]:
    for place, quota in _indexed("spec.quotaSpecs", spec.get("quotaSpecs")):
        namespace = str(quota.get("namespace") or names.namespace)
        if not names.has("quotaspecs", str(quota.get("name")), namespace):
            yield Missing(f"{place}.name", f"there is no QuotaSpec {namespace}/{quota.get('name')}")


def _rule(names: _Names, spec: Mapping[str, Any]) -> Iterator[Missing]:
    for place, action in _indexed("spec.actions", spec.get("actions")):
        yield from _mixer_object(names, f"{place}.handler", action.get("handler"), "handlers")
        for index, name in enumerate(action.get("instances") or ()):
            yield from _mixer_object(names, f"{place}.instances[{index}]", name, "instances")


def _mixer_object(names: _Names, path: str, name: object, plural: str) -> Iterator[Missing]:
    """Mixer names objects `NAME`, `NAME.NAMESPACE`, or of the old kinds `NAME.KIND[.NAMESPACE]`;
    only plain names can be told to be missing without knowing the kind."""
    if isinstance(name, str) and name and "." not in name:
        old_kinds = names.rows.entries(Query(f"cfg.{plural}", "namespace", names.namespace))
        if not any(entry.key.name == name for entry in old_kinds):
            yield Missing(path, f"there is no {plural.removesuffix('s')} {name!r}")


def _role_binding(names: _Names, spec: Mapping[str, Any]) -> Iterator[Missing]:
    name = _record(spec.get("roleRef")).get("name")
    own = isinstance(name, str) and name and not name.startswith("/")
    if own and not names.has("serviceroles", str(name), names.namespace):
        yield Missing("spec.roleRef.name", f"there is no ServiceRole {name!r}")


def _key_sets(names: _Names, spec: Mapping[str, Any]) -> Iterator[Missing]:
    """Keys that have not come, and those that are old because fetching fails."""
    for path, rule in token_rules(spec):
        source = source_of(rule)
        if not source:
            continue
        row = names.rows.get(key_set_key(names.cluster, source))
        field = f"spec.{path}.{'jwksUri' if rule.get('jwksUri') else 'issuer'}"
        if not isinstance(row, KeySet) or not row.jwks:
            why = f": {row.error}" if isinstance(row, KeySet) and row.error else ""
            yield Missing(field, f"no keys have come from {source}{why}")
        elif row.error:
            yield Missing(
                field,
                f"keys are those of {_moment(row.fetched)}; since {_moment(row.failing_since)} "
                f"fetching them fails: {row.error}",
            )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _indexed(path: str, value: Any) -> Iterable[tuple[str, dict[str, Any]]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, dict):
                yield f"{path}[{index}]", item


def _records(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _record(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


_FINDERS = {
    "virtualservices": _virtual_service,
    "destinationrules": _destination_rule,
    "gateways": _gateway,
    "quotaspecbindings": _quota_spec_binding,
    "rules": _rule,
    "servicerolebindings": _role_binding,
    "requestauthentications": _key_sets,
    "policies": _key_sets,
    "meshpolicies": _key_sets,
}
