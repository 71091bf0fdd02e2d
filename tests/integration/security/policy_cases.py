"""Policies and requests by chance, from small vocabularies so that they often meet."""

import random
from typing import Any

ISSUER = "https://issuer.example"
OTHER_ISSUER = "https://other.example/tokens"
STRANGER = "https://nobody.example"
ACCOUNTS = ("default/client", "default/web", "bank/teller", "bank-2/teller")
PATHS = (
    "/", "/a", "/a/", "/a/b", "/a/b/c", "/A/b", "/secret", "/secret/x.txt", "/secretly", "//a//b",
    "/a/./b", "/a/../secret", "/a/..", "/%61/b", "/a%2Fb", "/secret?x=/a/b", "/a\\b", "/a/b;v=1",
    "/a/%7B*%7D/c", "/a/x=y/c", "/a/x%20y/c", "/a/b/c/d.txt", "/a//c", "/%2e%2e/secret", "/a/b:c/c",
    "/a/[x]/c", "/a/[x]", "/a/x|y/c", "/a/x^y/c", "/a/'x'/c", "/a/x#y/c",
    "/a/%zz/c", "/a/x\"y/c", "/a/%C3%A9/c",
    "/a//../secret", "/a/%2E./secret", "/a/b/.", "/a/%5c/c", "/a/b%3Fc/c",
)  # fmt: skip
METHODS = ("GET", "POST", "DELETE", "PURGE")
HOSTS = ("server", "server.default", "Server.Default", "other.example", "other.example:8080")
TEAMS = ("red", "blue", "redder", "", "red,blue", "green,redder,pink")


def chance(rng: random.Random, part: float) -> bool:
    return rng.random() < part


def some(rng: random.Random, values: tuple[str, ...], most: int = 3) -> list[str]:
    return rng.sample(values, rng.randint(1, min(most, len(values))))


_SOURCE: dict[str, tuple[str, ...]] = {
    "principals": (
        "cluster.local/ns/default/sa/client", "cluster.local/ns/bank/sa/*", "*/sa/teller", "*",
        "old.local/ns/default/sa/web", "cluster.local/ns/none/sa/none",
    ),
    "namespaces": ("default", "bank", "bank*", "*2", "*", "none"),
    "requestPrincipals": (f"{ISSUER}/ann", f"{ISSUER}/*", "*", "*/bob", f"{OTHER_ISSUER}/ann"),
    "ipBlocks": ("127.0.0.1", "127.0.0.0/8", "10.0.0.0/8", "::1", "::/64"),
    "remoteIpBlocks": ("127.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "::1"),
    "trustDomains": ("cluster.local", "cluster*", "*.local", "other"),
}  # fmt: skip
_ACCOUNTS_FIELD = ("client", "web", "bank/teller", "default/web", "none/none")
_OPERATION: dict[str, tuple[str, ...]] = {
    "hosts": ("server", "server.default", "*.example", "other.*", "*", "none"),
    "ports": ("80", "8080", "9", "0"),
    "methods": ("GET", "POST", "P*", "*T", "*"),
    "paths": (
        "/a", "/a/b", "/a/*", "*/b", "/secret*", "*", "*.txt", "/a/{*}", "/a/{*}/c", "/{**}",
        "/a/{**}",         "/{*}/b/{**}", "/a/b/{**}",
    ),
}  # fmt: skip
_CONDITIONS: dict[str, tuple[str, ...]] = {
    "request.headers[x-team]": ("red", "red*", "*er", "*", "blue"),
    "request.headers[X-Other]": ("1",),
    "request.experimental.inline.headers[x-team]": ("red", "red*", "*er", "*", "blue", "pink"),
    "source.ip": ("127.0.0.1", "10.0.0.0/8", "::/96"),
    "remote.ip": ("127.0.0.0/8", "10.1.2.3", "::1"),
    "source.namespace": ("default", "bank*"),
    "source.principal": ("cluster.local/ns/default/sa/*", "old.local/ns/bank/sa/teller"),
    "source.serviceAccount": ("client", "bank/teller"),
    "request.auth.principal": (f"{ISSUER}/ann", "*"),
    "request.auth.audiences": ("books", "films", "b*"),
    "request.auth.presenter": ("app", "*"),
    "request.auth.claims[team]": ("red", "red*", "*", "blue"),
    "request.auth.claims[org][unit]": ("u1", "u2", "u*"),
    "request.auth.claims[scope]": ("read", "write"),
    "destination.ip": ("127.0.0.1", "10.0.0.0/8", "::1"),
    "destination.port": ("80", "8080", "0"),
    "connection.sni": ("server", "*.server", "ser*"),
}


def _fields(rng: random.Random, of: dict[str, tuple[str, ...]], part: float) -> dict[str, Any]:
    out: dict[str, Any] = {}
    while not out:
        for name, values in of.items():
            if chance(rng, part):
                out[name] = some(rng, values)
            if chance(rng, part / 2):
                out[f"not{name[0].upper()}{name[1:]}"] = some(rng, values, 2)
    return out


def _rule(rng: random.Random, port: int, custom: bool) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    if chance(rng, 0.5):
        rule["from"] = [{"source": _source(rng, custom)} for _ in range(rng.randint(1, 2))]
    if chance(rng, 0.6):
        rule["to"] = []
        for _ in range(rng.randint(1, 2)):
            operation = _fields(rng, _OPERATION, 0.25)
            for name in ("ports", "notPorts"):
                if name in operation:
                    operation[name] = [str(port) if p == "80" else p for p in operation[name]]
            rule["to"].append({"operation": operation})
    if chance(rng, 0.4):
        rule["when"] = []
        for key in some(rng, tuple(_CONDITIONS), 2):
            if custom and (key.startswith("request.auth") or key in _NOT_FOR_CUSTOM):
                continue
            values = [str(port) if v == "80" else v for v in some(rng, _CONDITIONS[key])]
            names = ["values"] if chance(rng, 0.7) else ["notValues"]
            rule["when"].append({"key": key, **dict.fromkeys(names, values)})
    return rule


_NOT_FOR_CUSTOM = ("source.namespace", "source.principal", "source.serviceAccount")


def _source(rng: random.Random, custom: bool) -> dict[str, Any]:
    if custom:
        of = {k: v for k, v in _SOURCE.items() if k.endswith("pBlocks")}
        return _fields(rng, of, 0.4)
    source = _fields(rng, _SOURCE, 0.2)
    accounts = not any(k.lower().endswith(("principals", "namespaces")) for k in source)
    if accounts and chance(rng, 0.5):
        source["serviceAccounts"] = some(rng, _ACCOUNTS_FIELD)
    return source


def policies(rng: random.Random, port: int) -> list[dict[str, Any]]:
    """A few AuthorizationPolicies of namespace `default`, valid."""
    out = []
    for number in range(rng.randint(1, 3)):
        action = rng.choice(("ALLOW", "ALLOW", "DENY", "DENY", "AUDIT"))
        rules = [_rule(rng, port, False) for _ in range(rng.randint(1, 3))]
        if action == "ALLOW" and chance(rng, 0.05):
            rules = []
        dry = action != "AUDIT" and chance(rng, 0.15)
        out.append(
            {
                "apiVersion": "security.istio.io/v1",
                "kind": "AuthorizationPolicy",
                "metadata": {
                    "name": f"p{number}",
                    "namespace": rng.choice(("default", "default", "istio-system")),
                    "annotations": {"istio.io/dry-run": "true"} if dry else {},
                },
                "spec": {"action": action, "rules": rules},
            }
        )
    return out


def request(rng: random.Random) -> dict[str, Any]:
    """One request: `account` (empty: no certificate), method, path, host, headers, claims."""
    headers = {}
    if chance(rng, 0.6):
        headers["x-team"] = rng.choice(TEAMS)
    claims: dict[str, Any] | None = None
    if chance(rng, 0.5):
        claims = {
            "iss": rng.choice((ISSUER, ISSUER, ISSUER, OTHER_ISSUER, STRANGER)),
            "sub": rng.choice(("ann", "bob")),
            "aud": rng.choice(("books", ["films", "books"], ["films"])),
        }
        for name, values in {
            "azp": ("app",),
            "team": ("red", "blue", ["red", "green"], 7),
            "org": ({"unit": "u1"}, {"unit": ["u2", "u3"]}, "none"),
            "scope": ("read write", "read"),
        }.items():
            if chance(rng, 0.6):
                claims[name] = rng.choice(values)
    return {
        "account": rng.choice(("", *ACCOUNTS)),
        "method": rng.choice(METHODS),
        "path": rng.choice(PATHS),
        "host": rng.choice(HOSTS),
        "headers": headers,
        "claims": claims,
    }
