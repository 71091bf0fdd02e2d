"""No policy, however odd, takes down compile: rows may come from a newer or unvalidated source."""

from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from meshes import compiled, config, mesh_config, rows, service, sidecar

from meshbus.compile.resources import ECDS, LDS

SCALARS = st.none() | st.booleans() | st.integers(-5, 70000) | st.text(max_size=6)
WORDS = st.sampled_from(
    ["*", "a", "*a", "a*", "1.2.3.4", "10.0.0.0/8", "80", "/a/{*}", "./*", "*/*", "~/*", "shop/a.b"]
)
KEYS = st.sampled_from(
    [
        *("selector", "matchLabels", "workloadSelector", "labels", "targetRefs", "targetRef"),
        *("rules", "from", "to", "when", "source", "operation", "key", "values", "notValues"),
        *("principals", "requestPrincipals", "namespaces", "ipBlocks", "serviceAccounts"),
        *("paths", "notPaths", "methods", "hosts", "ports", "action", "provider", "name"),
        *("jwtRules", "issuer", "jwks", "fromHeaders", "audiences", "outputClaimToHeaders"),
        *("egress", "ingress", "port", "number", "protocol", "bind", "captureMode"),
        *("defaultEndpoint", "connectionPool", "tcp", "maxConnections"),
        *("outboundTrafficPolicy", "mode", "egressProxy", "host", "inboundConnectionPool"),
        *("envoyExtAuthzHttp", "envoyExtAuthzGrpc", "service", "timeout", "statusOnError"),
    ]
)
ACTIONS = st.sampled_from(["ALLOW", "DENY", "AUDIT", "CUSTOM"])
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Found cases are small enough: making them smaller takes minutes."""


def _with(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(children, max_size=3) | st.dictionaries(KEYS, children, max_size=4)


ANYTHING = st.recursive(SCALARS | WORDS | ACTIONS, _with, max_leaves=12)
RULE = st.fixed_dictionaries({}, optional={"from": ANYTHING, "to": ANYTHING, "when": ANYTHING})
POLICY = st.fixed_dictionaries(
    {}, optional={"action": ACTIONS, "rules": st.lists(RULE, max_size=2) | ANYTHING}
)
SIDECAR = st.fixed_dictionaries(
    {},
    optional={
        "egress": st.lists(ANYTHING, max_size=2) | ANYTHING,
        "ingress": st.lists(ANYTHING, max_size=2) | ANYTHING,
        "outboundTrafficPolicy": ANYTHING,
        "workloadSelector": ANYTHING,
    },
)
TOKENS = st.fixed_dictionaries({}, optional={"jwtRules": st.lists(ANYTHING, max_size=2) | ANYTHING})
SPEC = st.dictionaries(KEYS, ANYTHING, max_size=4)


@given(POLICY | SPEC, SIDECAR | SPEC, TOKENS | SPEC, st.lists(ANYTHING, max_size=2))
@settings(max_examples=80, deadline=None, derandomize=True, phases=PHASES)
def test_compile_never_raises(policy: Any, scope: Any, tokens: Any, providers: Any) -> None:
    mesh = rows(
        service("a", ("http", 80, "HTTP"), addresses=["0.0.0.1"]),
        config("AuthorizationPolicy", "p", policy),
        config("Sidecar", "s", scope),
        config("RequestAuthentication", "r", tokens),
        mesh_config(extensionProviders=providers),
    )
    snapshot = compiled(mesh, sidecar("a"))
    assert "virtualInbound" in snapshot.resources[LDS]
    assert "envoy.filters.http.rbac.deny" in snapshot.resources[ECDS]
