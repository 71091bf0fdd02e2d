"""Inbound listeners: where they look at what comes, and which of two services says a port."""

from typing import Any

from meshbus.compile.offline import compile_documents

PROXY = {"type": "sidecar", "namespace": "default", "labels": {"app": "db"}, "ips": ["10.1.1.1"]}


def db(name: str, created: int, *ports: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "creationTimestamp": f"{created}-01-01T00:00:00Z"},
        "spec": {"clusterIP": "10.0.0.1", "selector": {"app": "db"}, "ports": list(ports)},
    }


def mode(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "default"},
        "spec": spec,
    }


def blind_ports(*documents: dict[str, Any]) -> dict[str, set[int]]:
    """Ports at which each inspector of the inbound listener does not look."""
    made = compile_documents(documents, proxy=PROXY).document
    listener = next(x for x in made["listeners"] if x["name"] == "virtualInbound")
    out = {}
    for item in listener["listenerFilters"]:
        disabled = item.get("filterDisabled", {})
        rules = disabled["orMatch"]["rules"] if "orMatch" in disabled else [disabled]
        ranges = [r["destinationPortRange"] for r in rules if "destinationPortRange" in r]
        out[item["name"].rpartition(".")[2]] = {
            port for r in ranges for port in range(r["start"], r["end"])
        }
    return out


MYSQL = {"name": "mysql", "port": 3306}
HTTP = {"name": "http", "port": 80}


def test_a_server_that_speaks_first_is_not_waited_for_without_mutual_tls() -> None:
    blind = blind_ports(db("db", 2020, MYSQL, HTTP), mode({"mtls": {"mode": "DISABLE"}}))
    assert {80, 3306} <= blind["tls_inspector"]
    assert {80, 3306} <= blind["http_inspector"]


def test_one_port_without_mutual_tls_is_not_looked_at() -> None:
    blind = blind_ports(
        db("db", 2020, MYSQL, HTTP),
        mode(
            {
                "selector": {"matchLabels": {"app": "db"}},
                "mtls": {"mode": "STRICT"},
                "portLevelMtls": {"3306": {"mode": "DISABLE"}},
            }
        ),
    )
    assert 3306 in blind["tls_inspector"]
    assert 80 not in blind["tls_inspector"]


def test_where_mutual_tls_is_offered_tls_is_looked_for() -> None:
    blind = blind_ports(db("db", 2020, MYSQL, HTTP))
    assert not {80, 3306} & blind["tls_inspector"]
    assert {80, 3306} <= blind["http_inspector"]


def test_the_older_of_two_services_says_a_port() -> None:
    old = db("z-old", 2019, {"name": "http", "port": 81, "targetPort": 80})
    young = db("a-young", 2021, {"name": "tcp", "port": 82, "targetPort": 80})
    for documents in ([old, young], [young, old]):
        made = compile_documents(documents, proxy=PROXY).document
        table = next(r for r in made["routes"] if r["name"] == "inbound|80||")
        assert table["virtualHosts"][0]["name"] == "inbound|http|81"
        cluster = next(c for c in made["clusters"] if c["name"] == "inbound|80||")
        told = cluster["metadata"]["filterMetadata"]["istio"]["services"]
        assert [s["name"] for s in told] == ["z-old", "a-young"]


def clusters_of_ingress(endpoint: str, **proxy: Any) -> dict[str, Any]:
    sidecar = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": "default", "namespace": "default"},
        "spec": {
            "ingress": [{"port": {"number": 80, "protocol": "HTTP"}, "defaultEndpoint": endpoint}]
        },
    }
    made = compile_documents([sidecar], proxy={**PROXY, **proxy}).document
    return next(c for c in made["clusters"] if c["name"] == "inbound|80||")


def endpoint_of(cluster: dict[str, Any]) -> str:
    member = cluster["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"]["address"]
    if "pipe" in member:
        return str(member["pipe"]["path"])
    return f"{member['socketAddress']['address']}:{member['socketAddress']['portValue']}"


def test_where_a_sidecar_says_the_application_is() -> None:
    both = ["10.1.1.1", "2001:db8::1"]
    assert endpoint_of(clusters_of_ingress("127.0.0.1:8080")) == "127.0.0.1:8080"
    assert endpoint_of(clusters_of_ingress("[::1]:8080", ips=both)) == "::1:8080"
    assert endpoint_of(clusters_of_ingress("0.0.0.0:8080")) == "10.1.1.1:8080"
    assert endpoint_of(clusters_of_ingress("[::]:8080", ips=both)) == "2001:db8::1:8080"
    assert endpoint_of(clusters_of_ingress("unix:///run/app")) == "/run/app"


def test_to_its_own_address_capture_leaves_it_alone() -> None:
    own = clusters_of_ingress("0.0.0.0:8080")
    assert own["upstreamBindConfig"]["sourceAddress"]["address"] == "127.0.0.6"
    assert "upstreamBindConfig" not in clusters_of_ingress("127.0.0.1:8080")
