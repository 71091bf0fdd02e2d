"""Tables of a peer about what a proxy sees and what a rule means, through our compile.

The tables are data of others and not part of the repository: `MESHBUS_SHARED_DATA` names them.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from meshes import Rows, config, mesh_config, rows, service

from meshbus.compile.authorization_matchers import (
    cidr,
    filter_metadata,
    header_matcher,
    identity,
    namespace_identity,
    path_permission,
    port_permission,
    text_matcher,
    token_identity,
    trust_domain,
)
from meshbus.compile.authorization_rules import aliased, migrated
from meshbus.compile.engine import Engine
from meshbus.compile.ingress import ingresses
from meshbus.compile.registry import rows_of_objects
from meshbus.compile.route_match import claim_of
from meshbus.compile.scope import (
    reachable_services,
    visible_services,
    visible_virtual_services,
)
from meshbus.compile.sidecars import sidecar_of, viewer_of
from meshbus.compile.viewers import Viewer
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Service, ServicePort
from meshbus.model.world import world_of

Row = dict[str, Any]
NAMESPACE = "mynamespace"
"""Of the proxies of the table of scopes."""


@pytest.fixture(scope="module")
def tables(shared_data: Path) -> dict[str, list[Row]]:
    held = json.loads((shared_data / "tables" / "scalars.json").read_text())
    return {name.rpartition("::")[2]: table for name, table in held.items()}


def _name(of: Any) -> Any:
    """`$ident`s are names of constants."""
    return of["$ident"].rpartition(".")[2] if isinstance(of, dict) and "$ident" in of else ""


# --------------------------------------------------------------------------- scopes

UNMERGED = "of one host in one namespace, two entries that cannot be merged: the older is the host"
NOT_EXPRESSED = {
    "virtual-service-2-match-service": "a namespace `*` is none",
    "virtual-service-2-match-service-and-domain": "a namespace `*` is none",
    "virtual-service-2-match-all-services": "a namespace `*` is none",
    "virtual-service-pick-alphabetical": "a feature that is switched off",
    "serviceentry not merge when resolution is different": UNMERGED,
    "serviceentry not merge when label selector is different": UNMERGED,
    "serviceentry not merge when exportTo is different": UNMERGED,
}
_VISIBILITY = {"Public": "*", "Private": ".", "None": "~"}
_LISTED = [("tcp-" + str(n), 8030 + n) for n in range(1, 6)]


def _ports(written: Any) -> list[tuple[str, int]]:
    if written is None:
        return [("any", 1)]
    if isinstance(written, list):
        return [(p.get("Name") or f"p{p['Port']}", p["Port"]) for p in written]
    if "$pos" in written:
        return [("p", int(re.findall(r"port(\d+)", e["$expr"])[0])) for e in written["$pos"]]
    if written.get("$call") == "append":
        return [*_ports(written["args"][0]["args"][0]), *_LISTED]
    first, last = re.findall(r"\[(\d*):(\d*)\]", written["$expr"])[0]
    return _LISTED[int(first or 0) : int(last) if last else None]


def _exported(written: Any) -> list[str]:
    """The visibilities of a set in code."""
    if not isinstance(written, dict):
        return []
    return [_VISIBILITY[n] if (n := _name(a)) in _VISIBILITY else a["args"][0]
            for a in written["args"]]  # fmt: skip


def _described(row: Row) -> tuple[str, str, tuple[int, ...]]:
    namespace = row.get("Attributes", {}).get("Namespace") or "unset"
    return namespace, row["Hostname"], tuple(sorted(n for _, n in _ports(row.get("Ports"))))


def _services(table: list[Row]) -> Rows:
    entries: Rows = {}
    made: Rows = {}
    for index, row in enumerate(table):
        held = row.get("Attributes", {})
        namespace, host, _ = _described(row)
        name = held.get("Name") or host.replace("*", "any")
        exported = _exported(held.get("ExportTo"))
        ports = _ports(row.get("Ports"))
        created = float(index) if "CreationTime" in row else 0.0
        if _name(held.get("ServiceRegistry")) == "Kubernetes":
            key = Key("c", "reg", "services", namespace, host)
            before = made.get(key)
            known = before.ports if isinstance(before, Service) else []
            more = [ServicePort(n, p, "TCP") for n, p in ports]
            made[key] = Service(
                host, namespace, name, "kubernetes", [*known, *more], created=created
            )
        else:
            spec: Row = {
                "hosts": [host],
                "ports": [{"name": n, "number": p, "protocol": "TCP"} for n, p in ports],
                "resolution": "STATIC",
                "exportTo": exported,
            }
            entries |= config("ServiceEntry", f"{name}-{index}", spec, namespace, created)
    objects = {k: r for k, r in entries.items() if isinstance(r, ConfigObject)}
    return {**rows_of_objects(objects), **made}


def _camel(of: Any) -> Any:
    """Fields as documents name them; a host that is short as the peer has it, without a domain."""
    if isinstance(of, dict):
        return {k[0].lower() + k[1:]: _camel(v) for k, v in of.items() if k[0] != "$"}
    if isinstance(of, list):
        return [_camel(item) for item in of]
    return "foo/virtualbar.foo.svc.cluster.local" if of == "foo/virtualbar.foo" else of


def _scope(reader: Any) -> set[tuple[str, str, tuple[int, ...]]]:
    viewer = viewer_of(reader, sidecar_of(reader, NAMESPACE, ()), NAMESPACE)
    return {
        (ref.row.namespace, host, tuple(sorted(p.number for p in ref.row.ports)))
        for host, ref in reader.node(reachable_services, viewer).items()
    }


def test_scopes(tables: dict[str, list[Row]]) -> None:
    """Which services with which ports a proxy has clusters for, under a Sidecar and without."""
    ran = 0
    for row in tables["TestCreateSidecarScope"]:
        if row["name"] in NOT_EXPRESSED or row.get("expectedDr"):
            continue
        mesh = _services(row.get("services") or [])
        for vs in row.get("virtualServices") or []:
            meta = vs["Meta"]
            mesh |= config("VirtualService", meta["Name"], _camel(vs["Spec"]), meta["Namespace"])
        if row.get("sidecarConfig"):
            mesh |= config("Sidecar", "scope", _camel(row["sidecarConfig"]["Spec"]), NAMESPACE)
        wanted = {
            _described(
                row["services"][int(re.findall(r"\[(\d+)\]", s["$expr"])[0])] if "$expr" in s else s
            )
            for s in row.get("expectedServices") or []
        }
        assert Engine(world_of(mesh)).get(_scope) == wanted, row["name"]
        ran += 1
    assert ran == 47


def _visible_hosts(reader: Any, namespace: str) -> set[str]:
    return set(reader.node(visible_services, Viewer(namespace)))


def test_who_sees_a_service(tables: dict[str, list[Row]]) -> None:
    for row in tables["TestIsServiceVisible"]:
        held = row["service"]["Attributes"]
        context = row["pushContext"]
        settings: Row = {}
        default = context.get("exportToDefaults", {}).get("service")
        if default:
            settings["defaultServiceExportTo"] = _exported(default)
        wish = context.get("Mesh", {}).get("ServiceEntryVisibility")
        if wish:
            said = _name(held["Visibility"]).removeprefix("ServiceVisibility")
            settings["serviceEntryVisibility"] = {
                "applyToSidecars": wish["ApplyToSidecars"],
                "defaultVisibility": said.upper(),
            }
        mesh = service(
            "a",
            ("http", 80, "HTTP"),
            namespace=held["Namespace"],
            export_to=_exported(held.get("ExportTo")),
            origin="external" if wish else "kubernetes",
            host="a.example",
        )
        seen = Engine(world_of(rows(mesh, mesh_config(**settings)))).get(_visible_hosts, "foo")
        assert bool(seen) == row["expect"], row["name"]


def _followed(reader: Any, namespace: str) -> set[str]:
    found = reader.node(visible_virtual_services, Viewer(namespace))
    return {host for ref in found if ref.row.for_sidecars for host in ref.row.hosts}


def _at_gateway(reader: Any, namespace: str) -> set[str]:
    found = reader.node(visible_virtual_services, Viewer(namespace))
    named = [ref for ref in found if "default/gateway" in reader.get(ref.key).spec["gateways"]]
    return {host for ref in named for host in ref.row.hosts}


def _vs(name: str, namespace: str, *gateways: str, **spec: Any) -> Rows:
    held = {"hosts": [f"{name}.com"], "gateways": list(gateways) or ["mesh"], **spec}
    held["http"] = [{"route": [{"destination": {"host": "a.example"}}]}]
    return config("VirtualService", name.lower(), held, namespace)


EXPORTED = rows(
    _vs("rule1", "test1", exportTo=[".", "ns1"]),
    _vs("rule2", "test2", exportTo=["test2", "ns1", "test1"]),
    _vs("rule2gw", "test2", "default/gateway", "mesh", exportTo=["test2", "ns1", "test1"]),
    _vs("rule3", "test3", exportTo=["*"]),
    _vs("rule3gw", "test3", "default/gateway", exportTo=["*"]),
    _vs("rootNS", "istio-system"),
)
PRIVATE = rows(
    _vs("mesh-rule1", "test1"),
    _vs("mesh-rule2", "test2"),
    _vs("gw-rule", "test1", "default/gateway"),
    mesh_config(defaultVirtualServiceExportTo=[".", "ns1"]),
)


@pytest.mark.parametrize(
    ("test", "mesh"),
    [
        ("TestVirtualServiceWithExportTo", EXPORTED),
        ("TestVirtualServiceWithDefaultExportTo", PRIVATE),
    ],
)
def test_who_follows_a_virtual_service(tables: dict[str, list[Row]], test: str, mesh: Rows) -> None:
    """The table says who follows what; the objects are made here as its test makes them."""
    for row in tables[test]:
        asked = _followed if isinstance(row["gateway"], dict) else _at_gateway
        found = Engine(world_of(mesh)).get(asked, row["proxyNs"])
        assert found == {h.lower() if h != "rootNS.com" else h for h in row["wantHosts"]}, row


# --------------------------------------------------------------------------- single rules


def test_claims_that_routes_match(tables: dict[str, list[Row]]) -> None:
    for row in tables["TestToRoutingClaim"]:
        assert claim_of(row["name"]) == row["want"].get("Claims", []), row


def _carried_out(reader: Any) -> int:
    return len(reader.node(ingresses))


def test_whose_ingress(tables: dict[str, list[Row]]) -> None:
    """Class annotation, IngressClass and mode; a mode that is none is refused by validation."""
    for row in tables["TestIngressClass"]:
        if row["ingressMode"] == -1:
            continue
        mode = _name(row["ingressMode"]).rpartition("_")[2]
        said = row.get("annotation")
        notes = {}
        if said:
            notes["kubernetes.io/ingress.class"] = "istio" if isinstance(said, dict) else said
        spec: Row = {"defaultBackend": {"service": {"name": "a", "port": {"number": 80}}}}
        mesh = mesh_config(ingressControllerMode=mode, ingressClass="istio")
        held = row.get("ingressClass")
        if held:
            name, controller = held["ObjectMeta"]["Name"], held["Spec"]["Controller"]
            spec["ingressClassName"] = name
            ours = "istio.io/ingress-controller"
            controlled = {"controller": ours if isinstance(controller, dict) else controller}
            key = Key("c", "cfg", "ingressclasses", "", name)
            mesh[key] = ConfigObject(
                "networking.k8s.io/v1", "IngressClass", "", name, name, 1, 0.0, spec=controlled
            )
        key = Key("c", "cfg", "ingresses", "default", "a")
        mesh[key] = ConfigObject(
            "networking.k8s.io/v1", "Ingress", "default", "a", "a", 1, 0.0,
            annotations=notes, spec=spec,
        )  # fmt: skip
        assert bool(Engine(world_of(mesh)).get(_carried_out)) == row["shouldProcess"], row


def test_trust_domains_of_principals(tables: dict[str, list[Row]]) -> None:
    """A principal whose trust domain is one of the mesh's stands for all of them; one without, or
    in another form, stays as it is written."""
    for row in tables["TestReplaceTrustDomainInPrincipal"]:
        domain = row["principal"].partition("/")[0]
        found = migrated([row["principal"]], (domain, row.get("trustDomainIn", "new")))
        wanted = [row["principal"]] if row["expectedError"] else [row["principal"], row["out"]]
        assert found == wanted, row
    for row in tables["TestGetTrustDomainFromSpiffeIdentity"]:
        found = migrated([row["principal"]], (row["out"] or "spiffe:", "other"))
        assert (len(found) == 2) == bool(row["out"]), row
    for row in tables["TestIsTrustDomainBeingEnforced"]:
        found = migrated([row["principal"]], ("cluster.local", "old-td", ""))
        assert (len(found) > 1) == row["want"], row


# --------------------------------------------------------------------------- values of policies

SAID: dict[str, Any] = {
    "destIPGenerator": lambda key, value: {"destinationIp": cidr(value)},
    "destPortGenerator": lambda key, value: port_permission(value),
    "connSNIGenerator": lambda key, value: {"requestedServerName": text_matcher(value)},
    "envoyFilterGenerator": lambda key, value: filter_metadata(key, [value]),
    "srcIPGenerator": lambda key, value: {"directRemoteIp": cidr(value)},
    "remoteIPGenerator": lambda key, value: {"remoteIp": cidr(value)},
    "srcNamespaceGenerator": lambda key, value: namespace_identity(value),
    "srcTrustDomainGenerator": lambda key, value: trust_domain(value),
    "srcPrincipalGenerator": lambda key, value: identity(value),
    "requestHeaderGenerator": lambda key, value: {"header": header_matcher("x-foo", value)},
    "hostGenerator": lambda key, value: {
        "header": header_matcher(":authority", value, ignore_case=True)
    },
    "pathGenerator": lambda key, value: path_permission(value),
    "methodGenerator": lambda key, value: {"header": header_matcher(":method", value)},
}


def _json(message: Any) -> Any:
    if isinstance(message, dict):
        return {k: _json(v) for k, v in message.items()}
    return MessageToDict(message)


def _folded(of: Any) -> Any:
    """Names of fields in one spelling; a caller's certificate where the peer asks a filter state
    that its own filter has left."""
    if isinstance(of, list):
        return [_folded(item) for item in of]
    if not isinstance(of, dict):
        return of
    out = {re.sub(r"_(.)", lambda m: m[1].upper(), k): _folded(v) for k, v in of.items()}
    state = out.pop("filterState", None)
    if state:
        out["authenticated"] = {"principalName": state["stringMatch"]}
    return out


def test_values_of_authorization(tables: dict[str, list[Row]]) -> None:
    """Each value as Envoy's matcher of it, but for the shape of `want`: YAML in the table."""
    from meshbus.api.yaml_text import read_yaml

    for row in tables["TestGenerator"]:
        if "want" not in row:
            continue
        wanted = _folded(read_yaml(row["want"]["args"][1]))
        made = SAID[row["g"]["$type"]](row.get("key", ""), row["value"])
        assert _folded(_json(made)) == wanted, row["name"]
    for row in tables["TestRequestPrincipal"]:
        wanted = _folded(read_yaml(row["want"]))
        assert _folded(_json(token_identity(row["in"]))) == wanted, row["in"]
    for row in tables["TestPathTemplateMatcher"]:
        made = _json(path_permission(row["path"]))
        found = made["uriTemplate"]["typedConfig"]["pathTemplate"]
        assert found == row["want"]["PathTemplate"], row


def test_names_of_the_trust_domain() -> None:
    """`cluster.local` is the mesh's own trust domain, whatever that is called; a trust domain in a
    policy stands for its aliases."""
    assert migrated(["cluster.local/ns/a/sa/b"], ("td2",)) == ["td2/ns/a/sa/b"]
    assert migrated(["cluster.local/ns/a/sa/b"], ("td2", "td1")) == [
        "td2/ns/a/sa/b",
        "td1/ns/a/sa/b",
    ]
    assert aliased(["td1", "other"], ("td2", "td1")) == ["td2", "td1", "other"]


def test_identities_with_wildcards(tables: dict[str, list[Row]]) -> None:
    """The peer's prefix is `spiffe://` here: no other is put before a value."""
    for row in tables["TestStringMatcherWithPrefix"]:
        value = row["v"]
        made = MessageToDict(identity(value).authenticated.principal_name)
        if value == "*":
            assert made == {"safeRegex": {"regex": ".+"}}
        elif value.startswith("*"):
            ending = value[1:].replace(".", r"\.")
            assert made == {"safeRegex": {"regex": f"spiffe://.*{ending}"}}, row
        else:
            kind = "prefix" if value.endswith("*") else "exact"
            assert made == {kind: "spiffe://" + value.rstrip("*")}, row
