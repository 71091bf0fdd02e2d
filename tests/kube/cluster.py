"""A real Kubernetes API server for tests: etcd, kube-apiserver, kube-controller-manager.

No kubelet and no container runtime: pods are what tests make them, or kwok.
"""

import contextlib
import datetime
import ipaddress
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

sys.path.insert(0, str(Path(__file__).parent / "tools"))

from build import Unavailable as Unavailable
from build import program

from meshbus.local.network import host_port

AUDIENCE = "meshbus"
_ISSUER = "https://kubernetes.default.svc.cluster.local"
_START_S = 120
_SERVICES = {"IPv4": "10.96.0.0/16", "IPv6": "fd00:10:96::/112"}
"""Ranges of addresses of Services."""
DUAL = ("IPv4", "IPv6")
_CONTROLLERS = (
    "serviceaccount-controller,serviceaccount-token-controller,namespace-controller,"
    "root-ca-certificate-publisher-controller,endpointslice-controller,"
    "garbage-collector-controller,deployment-controller,replicaset-controller,"
    "statefulset-controller,daemonset-controller,job-controller,"
    "horizontal-pod-autoscaler-controller,disruption-controller"
)


def free_port(address: str = "127.0.0.1") -> int:
    """A port of a loopback address that nobody listens on now, and that the system gives to nobody
    who asks for any: these programs are told their ports before they listen."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10000, lowest)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as sock, contextlib.suppress(OSError):
            sock.bind((address, port))
            return port


class Refused(Exception):
    """The API server's answer was no."""

    def __init__(self, code: int, body: str) -> None:
        super().__init__(f"{code}: {body[:2000]}")
        self.code = code
        self.body = body


class Cluster:
    """An API server on loopback with a disk of its own."""

    def __init__(
        self, folder: Path, *, controllers: bool = True, families: tuple[str, ...] = DUAL
    ) -> None:
        """Args:
        families: `IPv4`, `IPv6` or both: those of its Services; by the first one it is reached.
        """
        self.folder = folder
        self.families = families
        self.host = "::1" if families[0] == "IPv6" else "127.0.0.1"
        """The address that it listens on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._controllers = controllers
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port = free_port(self.host)
        self._etcd_port, self._peer_port = free_port(), free_port()
        self._manager_port = free_port()
        self._make_keys()
        self._write_kubeconfig()
        self._tls = ssl.create_default_context(cafile=str(self.ca_file))
        self._tls.load_cert_chain(folder / "admin.crt", folder / "admin.key")

    @property
    def server(self) -> str:
        """Its address."""
        return f"https://{host_port(self.host, self.port)}"

    @property
    def ca_file(self) -> Path:
        """What its certificate is checked with."""
        return self.folder / "ca.crt"

    @property
    def kubeconfig(self) -> Path:
        """That of its administrator."""
        return self.folder / "admin.kubeconfig"

    # ------------------------------------------------------------------ processes

    def start(self) -> None:
        """Start everything; returns when it can be used."""
        self.start_etcd()
        self.start_api_server()
        if self._controllers:
            self._run(
                "kube-controller-manager",
                f"--kubeconfig={self.kubeconfig}",
                f"--service-account-private-key-file={self.folder / 'sa.key'}",
                f"--root-ca-file={self.ca_file}",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                f"--secure-port={self._manager_port}",
                f"--cert-dir={self.folder / 'manager'}",
                f"--controllers={_CONTROLLERS}",
                "--concurrent-serviceaccount-token-syncs=2",
                "--kube-api-qps=500",
                "--kube-api-burst=500",
            )
            self.wait(lambda: self.exists("/api/v1/namespaces/default/serviceaccounts/default"))

    def start_etcd(self) -> None:
        """Start the store alone."""
        client = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        self._run(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self.wait(lambda: _answers(f"{client}/health"))

    def start_api_server(self) -> None:
        """Start the API server, also again after `kill`, on the same port."""
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--bind-address={self.host}",
            f"--advertise-address={self.host}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={self.folder / 'server.crt'}",
            f"--tls-private-key-file={self.folder / 'server.key'}",
            f"--client-ca-file={self.ca_file}",
            f"--service-account-issuer={_ISSUER}",
            f"--service-account-key-file={self.folder / 'sa.pub'}",
            f"--service-account-signing-key-file={self.folder / 'sa.key'}",
            f"--api-audiences={_ISSUER}",
            f"--service-cluster-ip-range={','.join(map(_SERVICES.__getitem__, self.families))}",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--endpoint-reconciler-type=none",
            "--profiling=false",
            "--watch-cache=true",
            f"--cert-dir={self.folder / 'apiserver'}",
        )
        self.wait(lambda: self.exists("/readyz"))

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End one of its processes, by default without warning."""
        process = self._processes.pop(name, None)
        if process is not None and process.poll() is None:
            process.send_signal(number)
            process.wait(30)

    def stop(self) -> None:
        """End everything."""
        for name in reversed(list(self._processes)):
            self.kill(name)

    def pid(self, name: str) -> int:
        """Of one of its processes."""
        return self._processes[name].pid

    def run(self, name: str, *arguments: str) -> None:
        """Start one more program of the tools beside it, kwok for example."""
        self._run(name, *arguments)

    def _run(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(program(name)), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )

    def wait(self, condition: Any, limit_s: float = _START_S) -> None:
        """Until a condition holds; fails with the logs when a process has died."""
        deadline = time.monotonic() + limit_s
        while True:
            with contextlib.suppress(OSError, Refused, urllib.error.URLError):
                if condition():
                    return
            for name, process in self._processes.items():
                if process.poll() is not None:
                    log = (self.folder / f"{name}.log").read_text()
                    raise AssertionError(f"{name} has ended: {log[-4000:]}")
            assert time.monotonic() < deadline, "not there in time"
            time.sleep(0.05)

    # ------------------------------------------------------------------ requests

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        token: str = "",
    ) -> Any:
        """A request as administrator, or with a token.

        Raises:
            Refused: The answer was no.
        """
        headers = {"Content-Type": content_type}
        tls = self._tls
        if token:
            headers["Authorization"] = f"Bearer {token}"
            tls = ssl.create_default_context(cafile=str(self.ca_file))
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            self.server + path, data=data, method=method, headers=headers
        )
        try:
            with urllib.request.urlopen(asked, timeout=300, context=tls) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode()) from None
        return json.loads(content) if content[:1] in (b"{", b"[") else content.decode()

    def exists(self, path: str) -> bool:
        """Whether a path is answered."""
        try:
            self.request("GET", path)
        except Refused as error:
            if error.code in (404, 403, 500, 503):
                return False
            raise
        return True

    def get(self, path: str) -> Any:
        """An object or a list."""
        return self.request("GET", path)

    def apply(self, document: dict[str, Any], sub: str = "") -> Any:
        """Server-side apply of one document."""
        path = self.path_of(document) + (f"/{sub}" if sub else "")
        return self.request(
            "PATCH",
            f"{path}?fieldManager=test&force=true",
            document,
            content_type="application/apply-patch+yaml",
        )

    def delete(self, document: dict[str, Any]) -> None:
        """Delete what a document names, if it is there."""
        with contextlib.suppress(Refused):
            self.request("DELETE", self.path_of(document))

    def path_of(self, document: dict[str, Any]) -> str:
        """The path of a document's object."""
        version, kind = document["apiVersion"], document["kind"]
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        resource = next(
            r
            for r in self.request("GET", base)["resources"]
            if r["kind"] == kind and "/" not in r["name"]
        )
        metadata = document["metadata"]
        place = (
            f"/namespaces/{metadata.get('namespace', 'default')}" if resource["namespaced"] else ""
        )
        return f"{base}{place}/{resource['name']}/{metadata['name']}"

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """The output of kubectl as administrator."""
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def token(
        self, namespace: str, account: str, *, audience: str = "", pod: dict[str, Any] | None = None
    ) -> str:
        """A token of a ServiceAccount, bound to a pod if one is given."""
        spec: dict[str, Any] = {"expirationSeconds": 3600}
        if audience:
            spec["audiences"] = [audience]
        if pod is not None:
            spec["boundObjectRef"] = {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod["metadata"]["name"],
                "uid": pod["metadata"]["uid"],
            }
        answer = self.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        return str(answer["status"]["token"])

    def account_folder(self, folder: Path, namespace: str, account: str) -> Path:
        """What a pod of this ServiceAccount finds in its file system."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").write_text(self.token(namespace, account))
        shutil.copy(self.ca_file, folder / "ca.crt")
        (folder / "namespace").write_text(namespace)
        return folder

    def pod_env(self, folder: Path) -> dict[str, str]:
        """What a process of such a pod has in its environment."""
        return {
            "KUBERNETES_SERVICE_HOST": self.host,
            "KUBERNETES_SERVICE_PORT": str(self.port),
            "MESHBUS_KUBERNETES": "in-cluster",
            "MESHBUS_KUBERNETES_ACCOUNT": str(folder),
        }

    def compact(self) -> None:
        """Make etcd forget all versions but the last, so that old watches get 410."""
        client = f"http://127.0.0.1:{self._etcd_port}/v3/kv"
        put = {"key": "YQ==", "value": "YQ=="}
        revision = _post(f"{client}/put", put)["header"]["revision"]
        _post(f"{client}/compaction", {"revision": revision, "physical": True})

    # ------------------------------------------------------------------ keys

    def _make_keys(self) -> None:
        if self.ca_file.exists():
            return
        signing = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        _write_key(self.folder / "sa.key", signing)
        (self.folder / "sa.pub").write_bytes(
            signing.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        authority = ec.generate_private_key(ec.SECP256R1())
        name = _name("test-ca")
        self.ca_file.write_bytes(
            _certificate(name, name, authority, authority, authority=True, names=[])
        )
        for file, subject, names in (
            ("server", _name("kube-apiserver"), ["localhost", "127.0.0.1", "::1", "10.96.0.1"]),
            ("admin", _name("admin", "system:masters"), []),
        ):
            key = ec.generate_private_key(ec.SECP256R1())
            _write_key(self.folder / f"{file}.key", key)
            (self.folder / f"{file}.crt").write_bytes(
                _certificate(subject, name, key, authority, authority=False, names=names)
            )

    def _write_kubeconfig(self) -> None:
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
                    "clusters": [
                        {
                            "name": "test",
                            "cluster": {
                                "server": self.server,
                                "certificate-authority": str(self.ca_file),
                            },
                        }
                    ],
                    "users": [
                        {
                            "name": "admin",
                            "user": {
                                "client-certificate": str(self.folder / "admin.crt"),
                                "client-key": str(self.folder / "admin.key"),
                            },
                        }
                    ],
                }
            )
        )


def _name(common: str, organization: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if organization:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: Any,
    signer: Any,
    *,
    authority: bool,
    names: list[str],
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if names:
        alternatives: list[x509.GeneralName] = []
        for text in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(text)))
            except ValueError:
                alternatives.append(x509.DNSName(text))
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _write_key(path: Path, key: Any) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )


def _answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=2) as response:
        return bool(response.status == 200)


def _post(url: str, body: dict[str, Any]) -> Any:
    asked = urllib.request.Request(url, data=json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(asked, timeout=10) as response:
        return json.loads(response.read())


@contextlib.contextmanager
def running_cluster(
    *, controllers: bool = True, families: tuple[str, ...] = DUAL
) -> Iterator[Cluster]:
    """A cluster that ends with its test."""
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="meshbus-kube-", dir=base))
    cluster = Cluster(folder, controllers=controllers, families=families)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
