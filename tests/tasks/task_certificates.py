"""Certificates of the task tests: one root, servers and a client."""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LEAVES = {
    "outside": ["outside.example.com", "*.wild.example.com", "mutual.example.com"],
    "httpbin": ["httpbin.example.com"],
    "echo": ["echo.example.com", "nginx.example.com"],
    "client": ["client.example.com"],
}


def write_certificates(folder: Path) -> None:
    """`root.pem`, and `NAME.pem` and `NAME.key` for each of `LEAVES`."""
    folder.mkdir(mode=0o755)
    now = datetime.datetime.now(datetime.UTC)
    root_key = ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test root")])

    def sign(name: x509.Name, key: ec.EllipticCurvePrivateKey, names: list[str]) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(root_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
        )
        if names:
            found = x509.SubjectAlternativeName([x509.DNSName(n) for n in names])
            builder = builder.add_extension(found, critical=False)
        signed = builder.sign(root_key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    (folder / "root.pem").write_bytes(sign(root_name, root_key, []))
    for leaf, names in LEAVES.items():
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        (folder / f"{leaf}.pem").write_bytes(sign(name, key, names))
        (folder / f"{leaf}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
