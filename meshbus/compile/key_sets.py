"""Keys that tokens are checked with: written in a rule, or fetched from where the rule says.

Nothing is fetched here: the policy service does, and what it has is a row.
Source: RFC 7517 (JSON Web Keys).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from meshbus.compile.engine import Reader
from meshbus.compile.findings import NotCompiledError
from meshbus.model.key_sources import source_of
from meshbus.model.rows import KeySet
from meshbus.model.world import Query

_KEY_FIELDS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x"), "oct": ("k",)}
_ABOUT = ("kty", "kid", "alg", "use", "key_ops")


def key_set(text: str) -> str:
    """The usable keys of a JSON Web Key Set, or of a single key, as a set; empty: there is none.

    Source: RFC 7517; Envoy refuses a set without a usable key.
    """
    usable = [k for k in _keys(text) if _usable(k)]
    return msgspec.json.encode({"keys": usable}).decode() if usable else ""


def public_key_set(text: str) -> str:
    """The same with public keys alone, and of each only what is public."""
    public = [
        {name: key[name] for name in (*_ABOUT, *_KEY_FIELDS[key["kty"]]) if name in key}
        for key in _keys(text)
        if _usable(key) and key["kty"] != "oct"
    ]
    return msgspec.json.encode({"keys": public}).decode() if public else ""


def _keys(text: str) -> list[Any]:
    try:
        parsed = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return []
    keys = parsed.get("keys", [parsed]) if isinstance(parsed, dict) else None
    return keys if isinstance(keys, list) else []


def _usable(key: Any) -> bool:
    wanted = _KEY_FIELDS.get(str(key.get("kty"))) if isinstance(key, dict) else None
    return wanted is not None and all(isinstance(key.get(f), str) and key[f] for f in wanted)


# --------------------------------------------------------------------------- what there is


def fetched_keys(reader: Reader, source: str) -> str:
    """Node: the last good keys of a source; empty: there never were any. It does not change when
    they are fetched again and are the same."""
    for entry in reader.entries(Query("jwks.keys", "source", source)):
        row: KeySet = entry.row
        return row.jwks
    return ""


def keys_of(reader: Reader, rule: Mapping[str, Any]) -> tuple[str, NotCompiledError | None]:
    """The key set of a rule, or why there is none."""
    if rule.get("jwks"):
        written = key_set(str(rule["jwks"]))
        return written, None if written else NotCompiledError("jwks", "has no key that can be used")
    source = source_of(rule)
    if not source:
        why = "there is neither `jwks` nor `jwksUri`, and the issuer is no URL to ask for them"
        return "", NotCompiledError("issuer", why)
    found = reader.node(fetched_keys, source)
    path = "jwksUri" if rule.get("jwksUri") else "issuer"
    return found, None if found else NotCompiledError(path, f"no keys have come from {source}")
