"""References to nothing are found; those to something are not."""

import msgspec
import yaml

from meshbus.analyze.references import Labels, missing_references, some_gateway
from meshbus.compile.offline import object_of_document
from meshbus.model.key_sources import key_set_key
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, KeySet, Row, WorkloadInstance
from meshbus.model.world import World, world_of

C = "c"
THERE = """
kind: Service
apiVersion: v1
metadata: {name: reviews}
---
kind: DestinationRule
apiVersion: networking.istio.io/v1
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1}]}
---
kind: ServiceEntry
apiVersion: networking.istio.io/v1
metadata: {name: ext}
spec: {hosts: ["*.example.com"]}
---
kind: Gateway
apiVersion: networking.istio.io/v1
metadata: {name: gw, namespace: istio-system}
spec: {servers: [{tls: {credentialName: here}}, {tls: {credentialName: gone}}]}
---
kind: Secret
apiVersion: v1
metadata: {name: here, namespace: istio-system}
---
kind: Workload
apiVersion: standalone.meshbus.io/v1alpha1
metadata: {name: ingress, namespace: istio-system, labels: {app: ingress, istio: front}}
spec: {gateway: true}
"""


def world(text: str) -> World:
    rows = {}
    for document in yaml.safe_load_all(text):
        row = object_of_document(document)
        plural = {"DestinationRule": "destinationrules", "ServiceEntry": "serviceentries"}.get(
            row.kind, row.kind.lower() + "s"
        )
        rows[Key(C, "cfg", plural, row.namespace, row.name)] = row
    return world_of(rows)


class _Rows:
    def __init__(self, held: World) -> None:
        self.entries = held.entries
        self.get = held.get
        self._held = held

    def has_gateway(self, selector: Labels) -> bool:
        return some_gateway(self._held, selector)


def paths(text: str, plural: str, name: str, namespace: str = "default") -> list[str]:
    rows = _Rows(world(THERE + "\n---\n" + text))
    found = missing_references(rows, Key(C, "cfg", plural, namespace, name))
    return [missing.path for missing in found]


def test_virtual_service() -> None:
    text = """
kind: VirtualService
apiVersion: networking.istio.io/v1
metadata: {name: a}
spec:
  gateways: [mesh, istio-system/gw, gw]
  http:
  - route:
    - destination: {host: reviews, subset: v1}
    - destination: {host: reviews.default.svc.cluster.local, subset: v1}
    - destination: {host: reviews, subset: v2}
    - destination: {host: nosuch}
    - destination: {host: a.b.example.com}
    - destination: {host: example.org}
    mirror: {host: ghost}
"""
    assert paths(text, "virtualservices", "a") == [
        "spec.gateways[2]",
        "spec.http[0].route[2].destination.subset",
        "spec.http[0].route[3].destination.host",
        "spec.http[0].route[5].destination.host",
        "spec.http[0].mirror.host",
    ]


def test_gateway_names_secrets() -> None:
    assert paths(
        "{kind: Service, apiVersion: v1, metadata: {name: x}}", "gateways", "gw", "istio-system"
    ) == ["spec.servers[1].tls.credentialName"]


def test_a_short_host_means_the_own_namespace() -> None:
    text = """
kind: DestinationRule
apiVersion: networking.istio.io/v1
metadata: {name: other, namespace: other}
spec: {host: reviews, subsets: [{name: v9}]}
---
kind: VirtualService
apiVersion: networking.istio.io/v1
metadata: {name: a}
spec: {tcp: [{route: [{destination: {host: reviews, subset: v9}}]}]}
"""
    assert paths(text, "destinationrules", "other", "other") == ["spec.host"]
    assert paths(text, "virtualservices", "a") == ["spec.tcp[0].route[0].destination.subset"]


def test_rules_and_quotas() -> None:
    text = """
kind: rule
apiVersion: config.istio.io/v1alpha2
metadata: {name: r}
spec: {actions: [{handler: h, instances: [i, q.quota]}]}
---
kind: handler
apiVersion: config.istio.io/v1alpha2
metadata: {name: h}
---
kind: QuotaSpecBinding
apiVersion: config.istio.io/v1alpha2
metadata: {name: b}
spec: {quotaSpecs: [{name: q, namespace: default}]}
"""
    assert paths(text, "rules", "r") == ["spec.actions[0].instances[0]"]
    assert paths(text, "quotaspecbindings", "b") == ["spec.quotaSpecs[0].name"]


def test_keys_of_tokens_that_have_not_come_or_are_old() -> None:
    rule = {"issuer": "https://i.example", "jwksUri": "https://i.example/keys"}
    spec = {"jwtRules": [{"issuer": "a", "jwks": "{}"}, rule, {"issuer": "https://i.example"}]}
    row = ConfigObject("security.istio.io/v1", "RequestAuthentication", "default", "a", "u", 1, 0.0)
    key = Key("c", "cfg", "requestauthentications", "default", "a")
    mesh: dict[Key, Row] = {key: msgspec.structs.replace(row, spec=spec)}

    def missing() -> list[tuple[str, str]]:
        return [(m.path, m.message) for m in missing_references(_Rows(world_of(mesh)), key)]

    assert [path for path, _ in missing()] == [
        "spec.jwtRules[1].jwksUri",
        "spec.jwtRules[2].issuer",
    ]
    there = key_set_key("c", "https://i.example/.well-known/openid-configuration")
    mesh[there] = KeySet("https://i.example/.well-known/openid-configuration", "{}", 1.0)
    own = key_set_key("c", "https://i.example/keys")
    mesh[own] = KeySet("https://i.example/keys", "", error="it is away", failing_since=1.0)
    ((path, message),) = missing()
    assert path == "spec.jwtRules[1].jwksUri"
    assert "it is away" in message
    mesh[own] = KeySet("https://i.example/keys", "{}", 86400.0, "it is away", 90000.0)
    ((_, message),) = missing()
    assert "those of 1970-01-02T00:00:00Z" in message
    mesh[own] = KeySet("https://i.example/keys", "{}", 86400.0)
    assert missing() == []


def test_authorities_of_clients() -> None:
    text = """
kind: Gateway
apiVersion: networking.istio.io/v1
metadata: {name: edge}
spec:
  servers:
  - {tls: {credentialName: here, caCertCredentialName: configmap://shop/trust}}
  - {tls: {credentialName: here, caCertCredentialName: configmap://default/trust}}
  - {tls: {credentialName: here, caCertCredentialName: here-cacert}}
  - {tls: {credentialName: here, caCertCredentialName: gone}}
---
kind: ConfigMap
apiVersion: v1
metadata: {name: trust, namespace: shop}
data: {ca.crt: x}
"""
    assert paths(text, "gateways", "edge") == [
        "spec.servers[1].tls.caCertCredentialName",
        "spec.servers[3].tls.caCertCredentialName",
    ]


def test_envoys_of_a_gateway() -> None:
    def missing(selector: str, notes: str = "{}") -> list[str]:
        text = f"""
kind: Gateway
apiVersion: networking.istio.io/v1
metadata: {{name: edge, annotations: {notes}}}
spec: {{selector: {selector}}}
---
kind: Workload
apiVersion: standalone.meshbus.io/v1alpha1
metadata: {{name: web, labels: {{app: web}}}}
spec: {{command: [web]}}
"""
        return paths(text, "gateways", "edge")

    assert missing("{istio: front}") == missing("{istio: front, app: ingress}") == []
    assert missing("{}") == []
    assert missing("{istio: front, app: other}") == ["spec.selector"]
    assert missing("{app: web}") == ["spec.selector"], "a sidecar runs no Gateway"
    assert missing("{app: gone}", "{internal.istio.io/gateway-service: web}") == []


def test_instances_are_envoys_of_a_gateway() -> None:
    instance = WorkloadInstance(
        "g-0", "shop", "g", "g", {"istio": "front"}, ["10.0.0.1"], gateway=True
    )
    selector = (("istio", "front"),)
    key = Key(C, "reg", "workloads", "shop", "g-0")
    assert some_gateway(world_of({key: instance}), selector)
    assert some_gateway(world_of({key: instance}), ())
    sidecar = msgspec.structs.replace(instance, gateway=False)
    assert not some_gateway(world_of({key: sidecar}), selector)
    assert not some_gateway(world_of({}), ())
