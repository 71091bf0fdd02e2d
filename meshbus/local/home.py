"""The directory of one mesh on this machine: what is where, its settings, who may run it.

Everything is private to its owner (0700, files 0600): it holds keys and tokens.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from meshbus.bus.permissions import IDENTITIES

DEFAULT_HOME = Path("~/.meshbus")
SERVICES = ("config", "discovery", "ca", "xds-gateway", "policy", "telemetry")
CAPTURE_MODES = ("proxy", "netns")


class HomeError(Exception):
    """Something about the home that its owner has to change; the message says what."""


Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class PortSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fixed ports; 0: any free one, chosen once and kept."""

    api: Port = 0
    bus: Port = 0
    xds: Port = 0
    policy: Port = 0
    telemetry: Port = 0
    dns: Port = 0
    forwards: dict[str, Annotated[int, msgspec.Meta(ge=1, le=65535)]] = {}
    """Local port by `NAMESPACE/WORKLOAD:PORT` of a gateway."""


class XdsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the xds-gateway."""

    plaintext: str = ""
    """`127.0.0.1:PORT` of an unauthenticated ADS, for load tests; empty: none."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    """Processes that share the gateway's ports."""


class DnsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of mesh DNS."""

    upstream: list[str] = []
    """`HOST:PORT` of resolvers for names outside the mesh; empty: those of this machine."""


class ServiceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the six services."""

    processes: str = "separate"
    """`separate`: a process each. `one`: all in one process."""
    log_level: str = "info"
    environment: dict[str, str] = {}
    """More settings of services, as `MESHBUS_<SERVICE>_<FIELD>: value`."""


Family = Literal["IPv4", "IPv6"]


class HomeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`settings.yaml` of a home."""

    ports: PortSettings = PortSettings()
    xds: XdsSettings = XdsSettings()
    dns: DnsSettings = DnsSettings()
    services: ServiceSettings = ServiceSettings()
    ip_families: list[Family] = msgspec.field(name="ipFamilies", default_factory=list)
    """Families of the mesh's addresses, the preferred one first; empty: with `--capture netns`
    those that the machine has, else IPv4."""
    mesh: dict[str, Any] = {}
    """MeshConfig, applied when the mesh starts."""

    @property
    def root_namespace(self) -> str:
        """Namespace of what holds for the whole mesh."""
        return str(self.mesh.get("rootNamespace") or "istio-system")

    @property
    def trust_domain(self) -> str:
        """Trust domain of all identities."""
        return str(self.mesh.get("trustDomain") or "cluster.local")


class HomeState(msgspec.Struct, frozen=True):
    """What was decided for a home when it was made, and stays."""

    id: str
    """8 hex digits: part of the names of bridges and network namespaces."""
    capture: str
    ports: dict[str, int]
    """Port by what listens there: `api`, `bus`, `xds`, `policy`, `telemetry`, `dns`."""
    block: str
    """Addresses of the instances: an IPv4 network."""
    block6: str = ""
    """The same for IPv6; empty: it has none."""
    families: list[Family] = []
    """Families of addresses, the preferred one first; empty: those that there is a block of."""


class Home:
    """Paths of one home. `create` makes it."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.settings_file = self.path / "settings.yaml"
        self.state_file = self.path / "home.json"
        self.lock_file = self.path / "lock"
        self.api_file = self.path / "api.json"
        self.kubeconfig_file = self.path / "kubeconfig"
        self.tokens_file = self.path / "tokens"
        self.bus = self.path / "bus"
        self.seeds = self.bus / "seeds"
        self.services = self.path / "services"
        self.instances = self.path / "instances"
        self.logs = self.path / "logs"
        self.run = self.path / "run"
        self.records = self.run / "records"
        self.status_file = self.run / "status.json"
        self.stopping_file = self.run / "stopping"

    def create(self) -> None:
        """Make the directories.

        Raises:
            HomeError: The path cannot be used.
        """
        try:
            for folder in (
                self.path,
                self.bus,
                self.seeds,
                self.services,
                self.instances,
                self.logs,
                self.run,
                self.records,
            ):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.path.stat().st_uid != os.geteuid():
                raise HomeError(
                    f"{self.path} belongs to another user: use --home with a directory of yours"
                )
            self.path.chmod(0o700)
        except OSError as error:
            raise HomeError(
                f"cannot use {self.path}: {error.strerror}: choose another directory with --home"
            ) from None

    def settings(self) -> HomeSettings:
        """What `settings.yaml` says; defaults when there is none.

        Raises:
            HomeError: It says something that is not understood.
        """
        try:
            text = self.settings_file.read_text()
        except FileNotFoundError:
            return HomeSettings()
        except OSError as error:
            raise HomeError(f"{self.settings_file}: {error.strerror}") from None
        return parse_settings(text, str(self.settings_file))

    def state(self) -> HomeState | None:
        """What was decided for this home; None before it first ran."""
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=HomeState)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise HomeError(f"{self.state_file}: {error}") from None

    def keep_state(self, state: HomeState) -> None:
        """Write what was decided."""
        write_private(self.state_file, msgspec.json.format(msgspec.json.encode(state)))

    def lock(self) -> int | None:
        """Become the one supervisor of this home: a descriptor that holds the lock, None when
        another process has it."""
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def locked(self) -> bool:
        """A supervisor runs."""
        if not self.lock_file.exists():
            return False
        descriptor = self.lock()
        if descriptor is None:
            return True
        os.close(descriptor)
        return False


def parse_settings(text: str, where: str) -> HomeSettings:
    """The settings of a YAML document; `where` names it in errors.

    Raises:
        HomeError: Not YAML, an unknown field, a wrong value.
    """
    try:
        content = yaml.safe_load(text)
        settings = msgspec.convert(content or {}, HomeSettings)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise HomeError(f"{where}: {error}") from None
    if settings.services.processes not in ("separate", "one"):
        raise HomeError(f"{where}: services.processes: separate or one is needed")
    if len(set(settings.ip_families)) < len(settings.ip_families):
        raise HomeError(f"{where}: ipFamilies: one of them stands there twice")
    plaintext = settings.xds.plaintext
    if plaintext and not plaintext.startswith(("127.", "localhost:", "[::1]:")):
        raise HomeError(
            f"{where}: xds.plaintext: {plaintext!r} is not on loopback; it has no authentication"
        )
    return settings


def write_private(path: Path, data: bytes, *, owner: int | None = None) -> None:
    """Write a file of mode 0600 whole or not at all; `owner`: its user and group."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(3)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if owner is not None:
                os.fchown(descriptor, owner, owner)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)  # it may hold a key
        raise


def write_in_place(path: Path, content: bytes) -> None:
    """Bring a file that is mounted elsewhere up to date; every user may read it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(descriptor, 0o644)
        if os.pread(descriptor, len(content) + 1, 0) != content:
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def write_bus_seeds(home: Home) -> dict[str, str]:
    """Make the bus keys that are missing; public key by identity.

    Raises:
        HomeError: A seed file holds no seed.
    """
    from meshbus.bus.nkeys import UserKey

    users = {}
    for identity in IDENTITIES:
        path = home.seeds / f"{identity}.seed"
        if not path.exists():
            write_private(path, UserKey.generate().seed.encode())
        try:
            users[identity] = UserKey.from_seed(path.read_text()).public
        except ValueError as error:
            raise HomeError(f"{path}: {error}: delete it to make a new one") from None
    return users


def api_token(home: Home) -> str:
    """The token of who owns the home, made when there is none."""
    if not home.tokens_file.exists():
        token = secrets.token_urlsafe(32)
        write_private(home.tokens_file, f"{token},admin,system:masters\n".encode())
    return home.tokens_file.read_text().split(",", 1)[0]


def kubeconfig(url: str, ca_pem: str, token: str) -> bytes:
    """The kubeconfig of a home: one cluster, one user, one context called `meshbus`."""
    from base64 import b64encode

    document: Mapping[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "meshbus",
                "cluster": {
                    "server": url,
                    "certificate-authority-data": b64encode(ca_pem.encode()).decode(),
                },
            }
        ],
        "users": [{"name": "meshbus", "user": {"token": token}}],
        "contexts": [
            {
                "name": "meshbus",
                "context": {"cluster": "meshbus", "user": "meshbus", "namespace": "default"},
            }
        ],
        "current-context": "meshbus",
    }
    return json.dumps(document, indent=2).encode() + b"\n"
