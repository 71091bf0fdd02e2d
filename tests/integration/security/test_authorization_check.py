"""What `authz check` answers is what a real Envoy does: policies and requests by chance."""

import base64
import contextlib
import datetime
import http.client
import json
import random
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID
from gateway_mesh import envoy_binary, free_port
from policy_cases import ACCOUNTS, ISSUER, OTHER_ISSUER, policies, request

from meshbus.compile.authorization_check import Question, check
from meshbus.compile.engine import Engine
from meshbus.compile.offline import compile_documents, find_instance, world_of_documents
from meshbus.validate import validate_object

pytestmark = [pytest.mark.real, pytest.mark.slow]
WORLDS, REQUESTS = 80, 60
ADDRESSES = ("127.0.0.1", "::1")
"""Where the server is, and who calls it: in one world by IPv4, in the next by IPv6."""
_MATCHED = re.compile(r"rbac_access_denied_matched_policy\[(.*)\]$")


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Authority:
    """Signs certificates and tokens of this test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._certificate("root", None, self.key)
        (folder / "root.pem").write_bytes(self.root.public_bytes(serialization.Encoding.PEM))
        numbers = self.key.public_key().public_numbers()
        point = {n: base64url(getattr(numbers, n).to_bytes(32)) for n in ("x", "y")}
        self.jwks = json.dumps({"keys": [{"kty": "EC", "crv": "P-256", **point}]})

    def _certificate(self, name: str, uri: str | None, key: Any) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(uri is None, None), critical=True)
        )
        if uri:
            names = [x509.UniformResourceIdentifier(uri), x509.DNSName("server")]
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return made.sign(self.key, hashes.SHA256())

    def leaf(self, name: str, uri: str) -> tuple[str, str]:
        """Files of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._certificate(name, uri, key)
        pem, private = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return str(pem), str(private)

    def token(self, claims: dict[str, Any]) -> str:
        body = {**claims, "exp": int(time.time()) + 600}
        text = ".".join(base64url(json.dumps(part).encode()) for part in ({"alg": "ES256"}, body))
        r, s = decode_dss_signature(self.key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{base64url(r.to_bytes(32) + s.to_bytes(32))}"


def documents(
    address: str, port: int, jwks: str, written: list[dict[str, Any]], protocol: str = "http"
) -> list[dict[str, Any]]:
    return [
        {
            "kind": "Workload",
            "apiVersion": "standalone.meshbus.io/v1alpha1",
            "metadata": {"name": "server", "namespace": "default", "labels": {"app": "server"}},
            "spec": {
                "address": address,
                "serviceAccount": "server",
                "ports": [{"name": protocol, "port": port}],
            },
        },
        {
            "kind": "RequestAuthentication",
            "apiVersion": "security.istio.io/v1",
            "metadata": {"name": "jwt", "namespace": "default"},
            "spec": {
                "jwtRules": [
                    {"issuer": ISSUER, "jwks": jwks},
                    {"issuer": OTHER_ISSUER, "jwks": jwks, "audiences": ["books", "games"]},
                ]
            },
        },
        *written,
    ]


SETTINGS = {
    "pathNormalization": {"normalization": "DECODE_AND_MERGE_SLASHES"},
    "trustDomainAliases": ["old.local"],
}
_ACTIONS = ("deny", "allow")
_PER_ROUTE = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"


def bootstrap(port: int, server: tuple[str, str], root: str, worlds: list[Any]) -> dict[str, Any]:
    """One listener; the header `x-case` chooses whose policies hold."""
    routes = []
    for number, extensions in enumerate(worlds):
        overrides = {}
        for name in _ACTIONS:
            config = dict(extensions[f"envoy.filters.http.rbac.{name}"])
            config.pop("@type")
            overrides[name] = {"@type": _PER_ROUTE, "rbac": config}
        exact = {"name": "x-case", "stringMatch": {"exact": str(number)}}
        routes.append(
            {
                "match": {"prefix": "/", "headers": [exact]},
                "directResponse": {"status": 200, "body": {"inlineString": "in"}},
                "typedPerFilterConfig": overrides,
            }
        )
    empty = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager."
        "v3.HttpConnectionManager",
        "statPrefix": "a",
        "normalizePath": True,
        "mergeSlashes": True,
        "pathWithEscapedSlashesAction": "UNESCAPE_AND_FORWARD",
        "routeConfig": {"virtualHosts": [{"name": "a", "domains": ["*"], "routes": routes}]},
        "localReplyConfig": {
            "bodyFormat": {"textFormatSource": {"inlineString": "%RESPONSE_CODE_DETAILS%"}}
        },
        "httpFilters": [
            {
                "name": "envoy.filters.http.jwt_authn",
                "typedConfig": worlds[0]["envoy.filters.http.jwt_authn"],
            },
            *({"name": name, "typedConfig": {"@type": empty}} for name in _ACTIONS),
            {
                "name": "envoy.filters.http.router",
                "typedConfig": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            },
        ],
    }
    return static([listener(port, server, root, "http_connection_manager", [manager])])


def listener(
    port: int, server: tuple[str, str], root: str, name: str, filters: list[dict[str, Any]]
) -> dict[str, Any]:
    """Takes TLS with or without a certificate of the client."""
    pem, private = server
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
        "DownstreamTlsContext",
        "commonTlsContext": {
            "tlsCertificates": [
                {"certificateChain": {"filename": pem}, "privateKey": {"filename": private}}
            ],
            "validationContext": {"trustedCa": {"filename": root}},
        },
    }
    first, *others = (
        {"address": {"socketAddress": {"address": address, "portValue": port}}}
        for address in ADDRESSES
    )
    chain = {
        "filters": [
            {"name": f"envoy.filters.network.{name}", "typedConfig": config} for config in filters
        ],
        "transportSocket": {"name": "envoy.transport_sockets.tls", "typedConfig": tls},
    }
    inspector = {
        "name": "envoy.filters.listener.tls_inspector",
        "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3."
            "TlsInspector"
        },
    }
    return {
        "name": str(port),
        **first,
        "additionalAddresses": others,
        "listenerFilters": [inspector],
        "filterChains": [chain],
    }


def static(listeners: list[dict[str, Any]]) -> dict[str, Any]:
    return {"node": {"id": "a", "cluster": "a"}, "static_resources": {"listeners": listeners}}


@contextlib.contextmanager
def running(folder: Path, config: dict[str, Any], port: int) -> Iterator[None]:
    path = folder / "envoy.json"
    path.write_text(json.dumps(config))
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(
            [envoy_binary(), "-c", str(path), "--use-dynamic-base-id", "--concurrency", "1"],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (folder / "envoy.log").read_text()[-3000:]
            with contextlib.suppress(OSError), socket.create_connection((ADDRESSES[0], port), 1):
                break
            assert time.monotonic() < deadline, "Envoy does not listen"
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


class Caller:
    """Connections to the Envoy, one for each identity."""

    def __init__(self, port: int, authority: Authority) -> None:
        self.port, self.authority = port, authority
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._connections: dict[tuple[str, str], http.client.HTTPSConnection] = {}

    def _context(self, account: str) -> ssl.SSLContext:
        context = self._contexts.get(account)
        if context is None:
            context = ssl.create_default_context(cafile=str(self.authority.folder / "root.pem"))
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            context.check_hostname = False
            if account:
                namespace, name = account.split("/")
                uri = f"spiffe://cluster.local/ns/{namespace}/sa/{name}"
                context.load_cert_chain(*self.authority.leaf(account.replace("/", "-"), uri))
            self._contexts[account] = context
        return context

    def connected(self, account: str, address: str, port: int) -> ssl.SSLSocket:
        """A connection of its own."""
        raw = socket.create_connection((address, port), 10)
        return self._context(account).wrap_socket(raw, server_hostname="server")

    def _connection(self, account: str, address: str) -> http.client.HTTPSConnection:
        held = self._connections.get((account, address))
        if held is None:
            held = http.client.HTTPSConnection(address, self.port)
            held.sock = self.connected(account, address, self.port)
            self._connections[account, address] = held
        return held

    def echoed(self, account: str, address: str, port: int) -> bool:
        """A TCP connection gets back what it sends."""
        with self.connected(account, address, port) as connection:
            try:
                connection.sendall(b"x")
                return connection.recv(1) == b"x"
            except OSError:
                return False

    def ask(self, case: int, address: str, asked: dict[str, Any]) -> tuple[int, str]:
        """Status, and the response's details."""
        connection = self._connection(asked["account"], address)
        connection.putrequest(asked["method"], asked["path"], skip_host=True)
        connection.putheader("host", asked["host"])
        connection.putheader("x-case", str(case))
        for name, value in asked["headers"].items():
            connection.putheader(name, value)
        if asked["claims"] is not None:
            token = self.authority.token(asked["claims"])
            connection.putheader("authorization", f"Bearer {token}")
        connection.endheaders()
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.getheader("connection") == "close":
            del self._connections[asked["account"], address]
        return answer.status, text


def question(asked: dict[str, Any], address: str, port: int) -> Question:
    namespace, _, account = asked["account"].partition("/")
    return Question(
        caller=(namespace, account) if account else None,
        port=port,
        method=asked["method"],
        path=asked["path"],
        host=asked["host"],
        headers=asked["headers"],
        claims=asked["claims"],
        source_ip=address,
        sni="server",
    )


def test_the_answer_is_what_envoy_does(tmp_path):
    rng = random.Random(13)
    port = free_port(ADDRESSES[0])
    authority = Authority(tmp_path)
    worlds, extensions = [], []
    for number in range(WORLDS):
        address = ADDRESSES[number % 2]
        written = policies(rng, port)
        for document in written:
            report = validate_object(document)
            assert report.valid, (document, report.errors)
        given = documents(address, port, authority.jwks, written)
        world = world_of_documents(given, SETTINGS)
        worlds.append((address, written, Engine(world), find_instance(world, "default/server")))
        compiled = compile_documents(given, workload="default/server", mesh_config=SETTINGS)
        assert not compiled.findings
        extensions.append({e["name"]: e["typedConfig"] for e in compiled.document["extensions"]})
    server = authority.leaf("server", "spiffe://cluster.local/ns/default/sa/server")
    config = bootstrap(port, server, str(tmp_path / "root.pem"), extensions)
    seen: dict[str, int] = {}
    wrong = []
    with running(tmp_path, config, port):
        caller = Caller(port, authority)
        for number, (address, written, engine, proxy) in enumerate(worlds):
            for _ in range(REQUESTS):
                asked = request(rng)
                answer = check(engine, proxy, question(asked, address, port))
                status, details = caller.ask(number, address, asked)
                found = _MATCHED.search(details)
                rule = found[1] if found else ""
                expected = ""
                if answer.status == 403 and not details.startswith("jwt_authn"):
                    expected = answer.rule.name if answer.rule else "none"
                outcome = f"{status} {'rule' if rule not in ('', 'none') else rule}"
                seen[outcome] = seen.get(outcome, 0) + 1
                if status != answer.status or rule != expected:
                    wrong.append((status, details, answer, asked, written))
    assert not wrong, f"{len(wrong)} differ; the first: {json.dumps(wrong[0], default=str)}"
    # The cases are worth something: each outcome is met often.
    assert min(seen.get(k, 0) for k in ("200 ", "401 ", "403 ", "403 none", "403 rule")) > 100, seen


_ECHO = {"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"}


def test_the_answer_about_tcp_is_what_envoy_does(tmp_path):
    """Rules that only HTTP can decide are among them: both fail safe the same way."""
    rng = random.Random(3)
    authority = Authority(tmp_path)
    server = authority.leaf("server", "spiffe://cluster.local/ns/default/sa/server")
    root = str(tmp_path / "root.pem")
    worlds, listeners, taken = [], [], set()
    while len(worlds) < WORLDS:
        address = ADDRESSES[len(worlds) % 2]
        port = free_port(ADDRESSES[0])
        if port in taken:
            continue
        taken.add(port)
        written = policies(rng, port)
        given = documents(address, port, authority.jwks, written, "tcp")
        world = world_of_documents(given, SETTINGS)
        found = find_instance(world, "default/server")
        worlds.append((address, port, written, Engine(world), found))
        compiled = compile_documents(given, workload="default/server", mesh_config=SETTINGS)
        configs = {e["name"]: e["typedConfig"] for e in compiled.document["extensions"]}
        filters = [configs[f"envoy.filters.network.rbac.{action}"] for action in _ACTIONS]
        listeners.append(listener(port, server, root, "of_tcp", [*filters, _ECHO]))
    seen = {True: 0, False: 0}
    wrong = []
    with running(tmp_path, static(listeners), port):
        caller = Caller(0, authority)
        for address, port, written, engine, proxy in worlds:
            for account in ("", *ACCOUNTS):
                asked = {**request(rng), "account": account, "claims": None}
                answer = check(engine, proxy, question(asked, address, port))
                passed = caller.echoed(account, address, port)
                seen[passed] += 1
                if passed != (answer.outcome == "allowed"):
                    wrong.append((passed, account, answer, written))
    assert not wrong, f"{len(wrong)} differ; the first: {json.dumps(wrong[0], default=str)}"
    assert min(seen.values()) > 50, seen
