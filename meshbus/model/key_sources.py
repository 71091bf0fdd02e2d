"""Where keys of tokens are, as rules of RequestAuthentication and of Istio 1.4's policies say it.

Source: OpenID Connect Discovery 1.0 §4.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from meshbus.model.keys import Key
from meshbus.model.world import World

DISCOVERY = "/.well-known/openid-configuration"
TOUCHING = frozenset(
    {"cfg.requestauthentications", "cfg.policies", "cfg.meshpolicies", "jwks.keys"}
)
"""Tables that say which keys are needed, and that of the keys."""


def key_set_key(cluster: str, source: str) -> Key:
    """The row with the keys of a source, a `KeySet`."""
    name = hashlib.blake2b(source.encode(), digest_size=16).hexdigest()
    return Key(cluster, "jwks", "keys", "", name)


def source_of(rule: Mapping[str, Any]) -> str:
    """The URL that the keys of a rule are fetched from; empty: they are written in it, or nobody
    can know where they are. A rule without either asks the issuer."""
    if rule.get("jwks"):
        return ""
    if rule.get("jwksUri"):
        return str(rule["jwksUri"])
    issuer = str(rule.get("issuer") or "")
    if not issuer.startswith(("https://", "http://")):
        return ""
    return issuer.rstrip("/") + DISCOVERY


def token_rules(spec: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Rules about tokens of any kind of policy, each with its path below `spec`."""
    yield from _records("jwtRules", spec.get("jwtRules"))
    for field in ("peers", "origins"):
        for path, method in _records(field, spec.get(field)):
            if isinstance(method.get("jwt"), Mapping):
                yield f"{path}.jwt", method["jwt"]


def _records(path: str, value: Any) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for index, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, Mapping):
            yield f"{path}[{index}]", item


class Need(NamedTuple):
    """What rules say of a source."""

    issuers: frozenset[str]
    """Whose tokens its keys are for."""
    timeouts: frozenset[str]
    """How long fetching may take, as the rules have it (`5s`)."""


def needed_sources(world: World) -> dict[str, Need]:
    """Every URL that rules of this world name."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for table in sorted(TOUCHING - {"jwks.keys"}):
        for entry in world.all(table):
            for _, rule in token_rules(entry.row.spec):
                if source := source_of(rule):
                    issuers, timeouts = found.setdefault(source, (set(), set()))
                    issuers.add(str(rule.get("issuer") or ""))
                    timeouts.add(str(rule.get("timeout") or ""))
    return {s: Need(frozenset(i), frozenset(t - {""})) for s, (i, t) in found.items()}
