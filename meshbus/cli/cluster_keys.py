"""`meshbus cluster-keys`: what the bus of a cluster is made of, as Secrets; run by the chart's Job.

Each service has a key of its own and reads that alone. What is there stays; the certificate of
nats-server is made anew when half of its life is over, and its configuration each time.
"""

import asyncio
import base64
import datetime
import ipaddress
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cryptography import x509

    from meshbus.kube.client import KubeClient

ROOT_DAYS, LEAF_DAYS = 3650, 730
_SKEW = datetime.timedelta(minutes=5)
_LABELS = {"app.kubernetes.io/part-of": "meshbus", "app.kubernetes.io/component": "keys"}


def cluster_keys(
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Of the control plane.")],
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, max=9, help="Servers of the bus.")
    ] = 1,
    kubeconfig: Annotated[
        str, typer.Option("--kubeconfig", help="File; in a cluster it is not needed.")
    ] = "in-cluster",
) -> None:
    """Make the keys of services on the bus, and the certificate of nats-server, as Secrets."""
    asyncio.run(_make(namespace, replicas, kubeconfig))


async def _make(namespace: str, replicas: int, kubeconfig: str) -> None:
    import os

    from meshbus.kube.access import access_of
    from meshbus.kube.client import KubeClient

    access = await access_of(
        kubeconfig, os.environ, os.environ.get("MESHBUS_KUBERNETES_ACCOUNT", "")
    )
    client = KubeClient(access, agent="meshbus/cluster-keys")
    try:
        await make_keys(Secrets(client, namespace), namespace, replicas)
    finally:
        await client.close()


class Secrets:
    """The Secrets of a namespace."""

    def __init__(self, client: "KubeClient", namespace: str) -> None:
        self._client = client
        self._folder = f"/api/v1/namespaces/{namespace}/secrets"

    async def read(self, name: str) -> dict[str, str] | None:
        """Its data as text; None if there is none."""
        from meshbus.kube.client import NotFound

        try:
            held = json.loads(await self._client.get(f"{self._folder}/{name}"))
        except NotFound:
            return None
        return {k: base64.b64decode(v).decode() for k, v in (held.get("data") or {}).items()}

    async def create(self, name: str, data: Mapping[str, str]) -> dict[str, str]:
        """Make it; where somebody else was first, what they made."""
        from meshbus.kube.client import Conflict

        document = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": _LABELS},
            "type": "Opaque",
            "stringData": dict(data),
        }
        try:
            await self._client.send("POST", self._folder, document)
        except Conflict:
            return await self.read(name) or dict(data)
        return dict(data)

    async def change(self, name: str, data: Mapping[str, str]) -> None:
        """Write fields of one that is there."""
        from meshbus.kube.client import MERGE_PATCH

        body = {"stringData": dict(data)}
        await self._client.send("PATCH", f"{self._folder}/{name}", body, content_type=MERGE_PATCH)


async def make_keys(secrets: Secrets, namespace: str, replicas: int) -> None:
    """Everything that is not there yet."""
    from meshbus.bus.nkeys import UserKey
    from meshbus.bus.permissions import IDENTITIES
    from meshbus.bus.server import Peers, ServerFiles, render_server_config

    users = {}
    for identity in IDENTITIES:
        if identity == "local":
            continue
        name, field = f"meshbus-bus-{identity}", f"{identity}.seed"
        held = await secrets.read(name)
        if held is None:
            held = await secrets.create(name, {field: UserKey.generate().seed})
        users[identity] = UserKey.from_seed(held[field]).public
    issuer = await secrets.read("meshbus-nats-authority")
    if issuer is None:
        root, key = authority()
        issuer = await secrets.create("meshbus-nats-authority", {"tls.crt": root, "tls.key": key})
    if await secrets.read("meshbus-nats-roots") is None:
        await secrets.create("meshbus-nats-roots", {"ca.crt": issuer["tls.crt"]})
    peers = f"meshbus-nats-peers.{namespace}.svc"
    config = render_server_config(
        users=users,
        store=Path("/data"),
        host="",
        port=4222,
        server_name="$POD_NAME",
        tls=ServerFiles("/etc/nats/tls.crt", "/etc/nats/tls.key", "/etc/nats/ca.crt"),
        peers=Peers("meshbus", 6222, [f"meshbus-nats-{n}.{peers}" for n in range(replicas)]),
        monitor="0.0.0.0:8222",
    )
    names = [f"meshbus-nats.{namespace}.svc", f"*.{peers}", peers, "localhost"]
    held = await secrets.read("meshbus-nats")
    fresh = {"nats.conf": config, "ca.crt": issuer["tls.crt"]}
    if held is None:
        certificate, key = leaf(issuer["tls.crt"], issuer["tls.key"], names)
        await secrets.create("meshbus-nats", {**fresh, "tls.crt": certificate, "tls.key": key})
        return
    if half_over(held.get("tls.crt", "")):
        certificate, key = leaf(issuer["tls.crt"], issuer["tls.key"], names)
        fresh |= {"tls.crt": certificate, "tls.key": key}
    await secrets.change("meshbus-nats", fresh)


def half_over(certificate_pem: str) -> bool:
    """Whether a certificate has less than half of its life before it, or is none."""
    from cryptography import x509

    try:
        held = x509.load_pem_x509_certificate(certificate_pem.encode())
    except ValueError:
        return True
    life = held.not_valid_after_utc - held.not_valid_before_utc
    return held.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < life / 2


def authority() -> tuple[str, str]:
    """A root of its own, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("meshbus bus")
    certificate = (
        _builder(name, name, key.public_key(), ROOT_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def leaf(root_pem: str, root_key_pem: str, names: Sequence[str]) -> tuple[str, str]:
    """A certificate for a server, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    root = x509.load_pem_x509_certificate(root_pem.encode())
    signer: Any = serialization.load_pem_private_key(root_key_pem.encode(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(_name("meshbus-nats"), root.subject, key.public_key(), LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName([_san(n) for n in names]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def _san(name: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(text: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: "x509.Name", issuer: "x509.Name", key: Any, days: int
) -> "x509.CertificateBuilder":
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _pem(certificate: "x509.Certificate") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()


def _key_pem(key: Any) -> str:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return text.decode()
