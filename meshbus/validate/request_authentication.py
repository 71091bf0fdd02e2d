"""Rules of RequestAuthentication.

Source: https://istio.io/latest/docs/reference/config/security/request_authentication/
"""

import msgspec
from msgspec import UnsetType

from meshbus.api.security import RequestAuthentication
from meshbus.validate.durations import duration_problem
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_targets

_URL = ("https://", "http://")


@independent
def check(spec: RequestAuthentication, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    check_targets(spec.selector, spec.target_ref, spec.target_refs, out)
    for index, rule in enumerate(spec.jwt_rules):
        path = f"spec.jwtRules[{index}]"
        if isinstance(rule.jwks, str) and rule.jwks and not is_key_set(rule.jwks):
            out.error(f"{path}.jwks", "is not a JSON Web Key Set")
        issuer = rule.issuer if isinstance(rule.issuer, str) else ""
        if not issuer and not rule.jwks_uri:
            out.required(f"{path}.issuer", "issuer or jwksUri must be set")
        elif not rule.jwks and not rule.jwks_uri and not issuer.startswith(_URL):
            message = "no URL that keys can be asked for at: give `jwks` or `jwksUri`"
            out.warn(f"{path}.issuer", message)
        if isinstance(rule.jwks_uri, str) and rule.jwks_uri.startswith("http://"):
            out.warn(f"{path}.jwksUri", "keys that come in plain text can be changed on the way")
        if not isinstance(rule.timeout, UnsetType) and (problem := duration_problem(rule.timeout)):
            out.error(f"{path}.timeout", problem)


def is_key_set(text: str) -> bool:
    """Whether it is a JSON Web Key Set, or a single key (RFC 7517)."""
    try:
        parsed = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    if not isinstance(parsed, dict):
        return False
    keys = parsed.get("keys", [parsed])
    return isinstance(keys, list) and all(_is_key(key) for key in keys)


_MATERIAL = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x"), "oct": ("k",)}
"""Parameters that a key must have. Source: RFC 7518 §6, RFC 8037."""


def _is_key(key: object) -> bool:
    if not isinstance(key, dict):
        return False
    names = _MATERIAL.get(str(key.get("kty")))
    return names is not None and all(isinstance(key.get(n), str) and key[n] for n in names)
