"""The filters of RequestAuthentication and AuthorizationPolicy in chains, and what fills them.

Chains name the filters; `security_extensions` gives their configurations, by ECDS. A TCP connection
meets its filters once, when it begins: `end_connections_with` ends those that began under rules
which are gone.
"""

from collections.abc import Iterable
from typing import NamedTuple

from envoy.config.listener.v3 import listener_components_pb2 as lc_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meshbus.compile.authorization import (
    ASKING_HTTP,
    DECIDING_HTTP,
    NETWORK_SLOTS,
    Policies,
    Slot,
    authorization_filters,
    policies_of,
)
from meshbus.compile.engine import Reader
from meshbus.compile.extensions import (
    AUTHN,
    AUTHZ,
    LAST,
    STATS,
    Extension,
    http_filters,
    network_filters,
)
from meshbus.compile.findings import Part
from meshbus.compile.legacy_rbac import Access, access_of
from meshbus.compile.request_authentication import (
    TOKENS,
    TOKENS_TYPE,
    authentications_of,
    token_filter,
)
from meshbus.compile.values import ads
from meshbus.model.keys import Key

_METADATA = "meshbus"


class Security(NamedTuple):
    """The objects that a workload follows; workloads of equal Security share the resources."""

    policies: Policies
    authentications: tuple[Key, ...]
    access: Access | None = None
    """What callers need by the roles of Istio 1.4; those count where no policy does."""


NO_SECURITY = Security(Policies(), ())


def security_of(reader: Reader, namespace: str, labels: tuple[tuple[str, str], ...]) -> Security:
    """What a workload of these labels follows."""
    policies = policies_of(reader, namespace, labels)
    access = None if any(policies) else access_of(reader, namespace, labels)
    return Security(policies, authentications_of(reader, namespace, labels), access)


def security_extensions(reader: Reader, security: Security) -> Part:
    """Node: a configuration for every filter that chains name, also where it does nothing."""
    tokens = reader.node(token_filter, security.authentications)
    policies = reader.node(authorization_filters, security.policies, security.access)
    return Part((*tokens.resources, *policies.resources), (*tokens.findings, *policies.findings))


def connection_rules(reader: Reader, security: Security) -> str:
    """Node: a text that is another one when the rules about TCP connections are; empty without
    any."""
    idle = {r.name: r for r in reader.node(authorization_filters, Policies(), None).resources}
    made = reader.node(authorization_filters, security.policies, security.access).resources
    names = {slot.name for slot in NETWORK_SLOTS}
    deciding = [r for r in made if r.name in names and r.version != idle[r.name].version]
    return ".".join(r.version for r in deciding)


def end_connections_with(chains: Iterable[lc_pb2.FilterChain], rules: str) -> bool:
    """Make TCP chains others when the rules are: Envoy then ends, after its drain time, the
    connections that were let in by the rules before. It leaves other chains alone.

    Returns:
        Whether there is such a chain and a rule.
    """
    names = {slot.name for slot in NETWORK_SLOTS}
    found = [c for c in chains if rules and any(made.name in names for made in c.filters)]
    for chain in found:
        chain.metadata.filter_metadata[_METADATA]["connection_rules"] = rules
    return bool(found)


def http_security(
    reader: Reader, extensions: tuple[Extension, ...] = (), side: str = "", port: int = 0
) -> list[hcm_pb2.HttpFilter]:
    """Filters of a server-side connection manager: whom CUSTOM policies ask, tokens, RBAC, and
    extensions in their phases."""
    return [
        *map(_http_slot, ASKING_HTTP),
        *http_filters(extensions, (AUTHN,), side, port),
        _http_slot(Slot(TOKENS, (TOKENS_TYPE,))),
        *http_filters(extensions, (AUTHZ,), side, port),
        *map(_http_slot, DECIDING_HTTP),
        *http_filters(extensions, (STATS, LAST), side, port),
    ]


def _http_slot(slot: Slot) -> hcm_pb2.HttpFilter:
    made = hcm_pb2.HttpFilter(name=slot.name)
    made.config_discovery.config_source.CopyFrom(ads())
    made.config_discovery.type_urls.extend(slot.types)
    return made


def network_security(
    reader: Reader, extensions: tuple[Extension, ...] = (), side: str = "", port: int = 0
) -> list[lc_pb2.Filter]:
    """Filters of a server-side TCP chain, before what forwards."""
    out = network_filters(extensions, (AUTHN, AUTHZ), side, port)
    for slot in NETWORK_SLOTS:
        made = lc_pb2.Filter(name=slot.name)
        made.config_discovery.config_source.CopyFrom(ads())
        made.config_discovery.type_urls.extend(slot.types)
        out.append(made)
    return [*out, *network_filters(extensions, (STATS, LAST), side, port)]
