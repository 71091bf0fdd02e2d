"""How a process reaches an API server: its address, what it trusts, what it proves itself with.

In a cluster these are files that the kubelet renews, read again when they change; outside it a
kubeconfig, read by the Kubernetes client.
"""

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
IN_CLUSTER = "in-cluster"
TOKEN_READ_S = 30.0
"""How long a token is used before its file is read again: the kubelet renews it long before it
ends."""


class AccessError(Exception):
    """The API server cannot be reached as configured; the message says what is wrong."""


class Access:
    """An API server and a way to prove oneself to it."""

    def __init__(
        self,
        server: str,
        *,
        tls: ssl.SSLContext | None,
        token: str = "",
        token_file: Path | None = None,
    ) -> None:
        self.server = server.rstrip("/")
        self.tls = tls
        self._token = token
        self._token_file = token_file
        self._read_at = float("-inf")

    def authorization(self, monotonic: float) -> str:
        """The header that proves who we are; empty with a client certificate.

        Raises:
            AccessError: The token cannot be read, and there was none before.
        """
        if self._token_file is not None and monotonic - self._read_at > TOKEN_READ_S:
            try:
                self._token = self._token_file.read_text().strip()
                self._read_at = monotonic
            except OSError as error:
                if not self._token:
                    raise AccessError(f"{self._token_file}: {error.strerror}") from None
        return f"Bearer {self._token}" if self._token else ""

    def refused(self) -> None:
        """The server did not take the token: read the file again before the next request."""
        self._read_at = float("-inf")


def in_cluster(env: Mapping[str, str], folder: str = "") -> Access:
    """Access of a pod, as its ServiceAccount.

    Raises:
        AccessError: This is no pod, or it has no token.
    """
    host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise AccessError(
            "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: not in a pod; give "
            "the path of a kubeconfig"
        )
    place = Path(folder or ACCOUNT_FOLDER)
    authority = place / "ca.crt"
    try:
        tls = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise AccessError(f"{authority}: {error}") from None
    name = f"[{host}]" if ":" in host else host
    access = Access(f"https://{name}:{port}", tls=tls, token_file=place / "token")
    access.authorization(0.0)
    access.refused()
    return access


async def from_kubeconfig(path: str, context: str = "") -> Access:
    """Access as a kubeconfig says; also those that run a program for a token.

    Raises:
        AccessError: The file cannot be used.
    """
    # Imported here: it takes a second and 60 MB, and nothing in a cluster needs it.
    from kubernetes_asyncio import config
    from kubernetes_asyncio.client import Configuration

    settings = Configuration()
    try:
        await config.load_kube_config(
            config_file=path, context=context or None, client_configuration=settings
        )
    except (config.ConfigException, OSError, ValueError, KeyError, TypeError) as error:
        raise AccessError(f"{path}: {error}") from None
    tls: ssl.SSLContext | None = None
    if not settings.host:
        raise AccessError(f"{path}: names no server")
    if settings.host.startswith("https:"):
        tls = ssl.create_default_context(cafile=settings.ssl_ca_cert)
        if not settings.verify_ssl:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        if settings.cert_file:
            tls.load_cert_chain(settings.cert_file, settings.key_file)
    said = settings.api_key.get("BearerToken", "")
    return Access(settings.host, tls=tls, token=said.removeprefix("Bearer ").strip())


async def access_of(setting: str, env: Mapping[str, str], folder: str = "") -> Access:
    """The access that a setting names: `in-cluster`, or the path of a kubeconfig.

    Raises:
        AccessError: It cannot be used.
    """
    if setting == IN_CLUSTER:
        return in_cluster(env, folder)
    return await from_kubeconfig(os.path.expanduser(setting))  # noqa: PTH111 - as kubectl takes it
