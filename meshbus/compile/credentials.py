"""Secrets that proxies will ask for: which object each comes from, and who may have it.

A bare name is a Secret of the proxy's own namespace. One of another namespace may be used by
objects of that namespace, and by those that a ReferenceGrant there lets in. Authorities in a
ConfigMap are no secret: every object may name them.

Source: https://gateway-api.sigs.k8s.io/api-types/referencegrant/ ; Istio's `credentialName`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from meshbus.compile.credential_names import (
    AUTHORITY_KEYS,
    CONFIG_MAPS,
    Credential,
    certificate_name,
    credential_of,
    roots_name,
    roots_secret_of,
    without_suffix,
)
from meshbus.compile.engine import Reader
from meshbus.compile.findings import NotCompiledError
from meshbus.model.keys import Key
from meshbus.model.world import Query

GATEWAY = "Gateway"
DESTINATION_RULE = "DestinationRule"
_GROUPS = {
    GATEWAY: frozenset({"networking.istio.io", "gateway.networking.k8s.io"}),
    DESTINATION_RULE: frozenset({"networking.istio.io"}),
}


class SecretNeed(NamedTuple):
    """A secret that a proxy will ask for."""

    name: str
    """`default`, `ROOTCA`, `kubernetes://NAME` or `kubernetes://NAME-cacert`."""
    key: Key | None
    """The Secret or ConfigMap that it comes from; None: made by the gateway."""
    part: str
    """`certificate` (chain and key) or `ca` (what peers are checked with)."""
    origins: tuple[Key, ...] = ()
    """Objects that name it: their authors hear when a proxy refuses it."""


class Wanting(NamedTuple):
    """An object that names a Secret or ConfigMap, on behalf of a proxy."""

    kind: str
    origin: Key
    proxy_namespace: str


def secret_grants(reader: Reader, namespace: str) -> frozenset[tuple[str, str, str, str]]:
    """Node: (group, kind, namespace, name) of who may name which Secret of a namespace; an empty
    name: any."""
    found = set()
    for entry in reader.entries(Query("cfg.referencegrants", "namespace", namespace)):
        names = [
            str(to.get("name") or "")
            for to in _records(entry.row.spec.get("to"))
            if to.get("kind") == "Secret" and not to.get("group")
        ]
        for source in _records(entry.row.spec.get("from")):
            who = tuple(str(source.get(f) or "") for f in ("group", "kind", "namespace"))
            found |= {(*who, name) for name in names}
    return frozenset(found)  # type: ignore[arg-type]


def _records(value: Any) -> Iterable[Mapping[str, Any]]:
    return (item for item in (value if isinstance(value, list) else ()) if isinstance(item, dict))


def _located(reader: Reader, who: Wanting, credential: Credential, path: str) -> Key:
    """The key of what an object may name.

    Raises:
        NotCompiledError: It may not.
    """
    if credential.table == CONFIG_MAPS:
        return Key(who.origin.cluster, "cfg", CONFIG_MAPS, credential.namespace, credential.name)
    namespace, name = credential.namespace or who.proxy_namespace, credential.name
    own = {who.proxy_namespace, who.origin.namespace}
    if namespace not in own:
        grants = reader.node(secret_grants, namespace)
        granted = any(
            (group, who.kind, who.origin.namespace, held) in grants
            for group in _GROUPS[who.kind]
            for held in ("", name)
        )
        if not granted:
            raise NotCompiledError(
                path,
                f"no ReferenceGrant of namespace {namespace} lets a {who.kind} of namespace "
                f"{who.origin.namespace} use Secret {name}",
            )
    return Key(who.origin.cluster, "cfg", "secrets", namespace, name)


def certificate_need(reader: Reader, who: Wanting, written: str, path: str) -> SecretNeed:
    """The need of a certificate with its key.

    Raises:
        NotCompiledError: There is no such Secret, or it may not be used.
    """
    credential = credential_of(written, path)
    if credential.table == CONFIG_MAPS:
        raise NotCompiledError(path, f"{written!r} is a ConfigMap: it has no certificate and key")
    key = _located(reader, who, credential, path)
    if reader.get(key) is None:
        raise NotCompiledError(path, f"Secret {key.namespace}/{key.name} does not exist")
    return SecretNeed(certificate_name(written), key, "certificate", (who.origin,))


def roots_need(reader: Reader, who: Wanting, written: str, path: str) -> SecretNeed:
    """The need of the roots that come with a certificate: in a Secret of their own (`-cacert`), or
    in the same (`ca.crt`); or of those in a ConfigMap.

    Raises:
        NotCompiledError: There is neither, or it may not be used.
    """
    credential = credential_of(written, path)
    if credential.table == CONFIG_MAPS:
        key = _config_map(reader, who, credential, path)
        return SecretNeed(roots_name(written), key, "ca", (who.origin,))
    key = _located(reader, who, credential, path)
    separate = key._replace(name=roots_secret_of(credential).name)
    held = separate if reader.get(separate) is not None else key
    if reader.get(held) is None:
        raise NotCompiledError(
            path, f"Secret {key.namespace}/{key.name} does not exist, and neither {separate.name}"
        )
    return SecretNeed(roots_name(written), held, "ca", (who.origin,))


def named_roots_need(reader: Reader, who: Wanting, written: str, path: str) -> SecretNeed:
    """The need of roots in a Secret or ConfigMap that is named for them (`caCertCredentialName`).

    Raises:
        NotCompiledError: There is none, or it may not be used.
    """
    credential = credential_of(written, path)
    if credential.table == CONFIG_MAPS:
        key = _config_map(reader, who, credential, path)
    else:
        key = _located(reader, who, credential, path)
        other = key._replace(name=without_suffix(credential).name)
        if reader.get(key) is None and reader.get(other) is None:
            raise NotCompiledError(path, f"Secret {key.namespace}/{key.name} does not exist")
        key = key if reader.get(key) is not None else other
    return SecretNeed(certificate_name(written), key, "ca", (who.origin,))


def _config_map(reader: Reader, who: Wanting, credential: Credential, path: str) -> Key:
    """A ConfigMap with authorities.

    Raises:
        NotCompiledError: There is none, or it has none.
    """
    key = _located(reader, who, credential, path)
    row = reader.get(key)
    if row is None:
        raise NotCompiledError(path, f"ConfigMap {key.namespace}/{key.name} does not exist")
    if not authorities_in(row.spec):
        message = f"ConfigMap {key.namespace}/{key.name} has neither ca.crt nor cacert"
        raise NotCompiledError(path, message)
    return key


def authorities_in(content: Mapping[str, Any]) -> dict[str, bytes]:
    """Authorities of a ConfigMap, and what they have revoked, by key; none without authorities."""
    data = content.get("data")
    texts = data if isinstance(data, dict) else {}
    found = {k: str(texts[k]).encode() for k in AUTHORITY_KEYS if texts.get(k)}
    return found if found.keys() & {"ca.crt", "cacert"} else {}


def united(needs: Iterable[SecretNeed]) -> tuple[SecretNeed, ...]:
    """Each need once, with everybody who has it."""
    found: dict[SecretNeed, set[Key]] = {}
    for need in needs:
        found.setdefault(need._replace(origins=()), set()).update(need.origins)
    return tuple(n._replace(origins=tuple(sorted(found[n]))) for n in sorted(found))
