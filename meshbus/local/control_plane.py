"""The processes of the control plane on one machine: nats-server and the six services."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from meshbus.bus.server import render_server_config
from meshbus.local.home import (
    SERVICES,
    Home,
    HomeSettings,
    HomeState,
    api_token,
    kubeconfig,
    write_bus_seeds,
    write_private,
)
from meshbus.local.keeper import Keeper
from meshbus.local.network import host_port, network_of
from meshbus.local.probe import ask_tcp
from meshbus.local.processes import Command, Records, last_line

NATS = "nats-server"
CLUSTER = "Kubernetes"
"""Name of the cluster in the model, as Istio's default."""

HOPELESS_STARTS = 4

log = structlog.get_logger("local")


def nats_command(home: Home, state: HomeState, binary: str) -> Command:
    """nats-server with the users of this home; writes its configuration."""
    text = render_server_config(
        users=write_bus_seeds(home),
        store=home.bus / "jetstream",
        port=state.ports["bus"],
        host=network_of(state).loopback,
    )
    path = home.bus / "nats.conf"
    if not path.exists() or path.read_text() != text:
        write_private(path, text.encode())
    return Command(NATS, [binary, "-c", str(path)], {}, home.bus, home.logs / f"{NATS}.log")


def service_env(home: Home, state: HomeState, settings: HomeSettings) -> dict[str, str]:
    """Settings of the services, for all of them. Tokens and keys are in files."""
    ports = state.ports
    network = network_of(state)
    own = network.loopback
    env = {
        "MESHBUS_BUS_URL": f"nats://{host_port(own, ports['bus'])}",
        "MESHBUS_BUS_SEEDS": str(home.seeds),
        "MESHBUS_CLUSTER": CLUSTER,
        "MESHBUS_STATE": str(home.services),
        "MESHBUS_ADMIN": host_port(own, 0),
        "MESHBUS_ROOT_NAMESPACE": settings.root_namespace,
        "MESHBUS_TRUST_DOMAIN": settings.trust_domain,
        "MESHBUS_LOG_LEVEL": settings.services.log_level,
        "MESHBUS_CONFIG_API": host_port(own, ports["api"]),
        "MESHBUS_CONFIG_TOKENS": str(home.tokens_file),
        "MESHBUS_CA_REQUIRE_PROOF": "true",
        "MESHBUS_XDS_GATEWAY_LISTEN": host_port(network.proxies_reach, ports["xds"]),
        "MESHBUS_POLICY_LISTEN": host_port(network.proxies_reach, ports["policy"]),
        "MESHBUS_TELEMETRY_LISTEN": host_port(network.proxies_reach, ports["telemetry"]),
    }
    names = [host_port(host, ports["dns"]) for host in network.loopbacks]
    if state.capture == "netns":
        names += [host_port(host, 53) for host in network.bridges]
        proxies = [host_port(host, 53) for host in network.resolvers]
        env["MESHBUS_DISCOVERY_DNS_PROXIES"] = ",".join(proxies)
    env["MESHBUS_DISCOVERY_DNS"] = ",".join(names)
    for service in ("DISCOVERY", "CONFIG"):
        env[f"MESHBUS_{service}_IP_FAMILIES"] = ",".join(network.families)
    env["MESHBUS_DISCOVERY_DNS_UPSTREAM"] = ",".join(settings.dns.upstream)
    if settings.xds.plaintext:
        env["MESHBUS_XDS_GATEWAY_PLAINTEXT"] = settings.xds.plaintext
    if settings.xds.workers > 1:
        env["MESHBUS_XDS_GATEWAY_WORKERS"] = str(settings.xds.workers)
    return env | settings.services.environment


def service_commands(home: Home, settings: HomeSettings, env: dict[str, str]) -> dict[str, Command]:
    """Command by process name: one of each service, or one of all (several workers of the gateway
    have a process that keeps them)."""
    groups: list[tuple[str, ...]] = [(name,) for name in SERVICES]
    if settings.services.processes == "one":
        alone = ["xds-gateway"] if settings.xds.workers > 1 else []
        groups = [tuple(n for n in SERVICES if n not in alone), *((n,) for n in alone)]
    commands = {}
    for names in groups:
        name = f"service/{names[0]}" if len(names) == 1 else "services"
        argv = [sys.executable, "-m", "meshbus.local.serving", *names]
        log_file = home.logs / f"{name.rpartition('/')[2]}.log"
        commands[name] = Command(name, argv, env, home.services, log_file)
    return commands


class ControlPlane:
    """Keeps nats-server and the services running, and knows which of them are ready."""

    def __init__(
        self,
        home: Home,
        state: HomeState,
        settings: HomeSettings,
        records: Records,
        *,
        nats_binary: str,
        changed: Callable[[], None],
    ) -> None:
        self._home = home
        self._state = state
        self._changed = changed
        env = service_env(home, state, settings)
        nats = nats_command(home, state, nats_binary)
        self._nats = Keeper(state.id, records, lambda: nats, self._moved)
        self._services = {
            name: Keeper(state.id, records, lambda command=command: command, self._moved)  # type: ignore[misc]
            for name, command in service_commands(home, settings, env).items()
        }
        self._ever_ready = False
        self.problems: dict[str, str] = dict.fromkeys((NATS, *SERVICES), "starting")
        """Why a part is not ready; empty: it is."""

    def start(self) -> None:
        """Start or adopt all of them at once: each waits for what it needs."""
        for keeper in (self._nats, *self._services.values()):
            keeper.start()

    def release(self) -> None:
        """Stop keeping them; they go on."""
        for keeper in (self._nats, *self._services.values()):
            keeper.release()

    async def stop(self) -> None:
        """End the services, then the bus."""
        await asyncio.gather(*(keeper.stop() for keeper in self._services.values()))
        await self._nats.stop()

    def _keeper_of(self, service: str) -> Keeper:
        return self._services.get(f"service/{service}") or self._services["services"]

    def _moved(self) -> None:
        """A process has started or died: who is dead is not ready, also before the next look."""
        for name in (NATS, *SERVICES):
            keeper = self._nats if name == NATS else self._keeper_of(name)
            if not keeper.pid and not self.problems[name]:
                self.problems = {**self.problems, name: self._why_dead(keeper, name)}
        self._changed()

    async def look(self) -> bool:
        """Ask all of them whether they are ready; whether an answer has changed."""
        names = [NATS, *SERVICES]
        answers = await asyncio.gather(self._look_at_nats(), *map(self._look_at, SERVICES))
        found = dict(zip(names, answers, strict=True))
        changed = found != self.problems
        self.problems = found
        self._ever_ready = self._ever_ready or not any(found.values())
        return changed

    async def _look_at_nats(self) -> str:
        if not self._nats.pid:
            return self._why_dead(self._nats, NATS)
        return ""  # services are not ready without it

    def _why_dead(self, keeper: Keeper, name: str) -> str:
        log_file = self._home.logs / f"{name}.log"
        return keeper.error or f"ended {keeper.restarts} times: {last_line(log_file)}"

    def hopeless(self) -> str:
        """A part that only ever ended since this supervisor began, and why; empty: none."""
        for name, problem in self.problems.items():
            keeper = self._nats if name == NATS else self._keeper_of(name)
            if problem and keeper.restarts >= HOPELESS_STARTS and not self._ever_ready:
                return f"{name}: {problem}"
        return ""

    async def _look_at(self, service: str) -> str:
        keeper = self._keeper_of(service)
        if not keeper.pid:
            return self._why_dead(keeper, service)
        try:
            about = json.loads((self._home.services / f"admin-{service}.json").read_text())
        except (OSError, ValueError):
            return "starting"
        if about.get("pid") != keeper.pid:
            return "starting"
        host, _, port = str(about["address"]).rpartition(":")
        status, body = await ask_tcp(host.strip("[]"), int(port), "/readyz")
        if status == 200:
            return ""
        return body.strip().splitlines()[0] if body.strip() else "does not answer"

    def write_access(self) -> bool:
        """Write `api.json` and `kubeconfig`, once the API has its certificate."""
        home = self._home
        try:
            ca_pem = (home.services / "config" / "api-ca.pem").read_text()
        except OSError:
            return False
        where = host_port(network_of(self._state).loopback, self._state.ports["api"])
        url = f"https://{where}"
        token = api_token(home)
        access = {"url": url, "token": token, "ca": ca_pem}
        _write_if_different(home.api_file, json.dumps(access).encode())
        _write_if_different(home.kubeconfig_file, kubeconfig(url, ca_pem, token))
        return True


def _write_if_different(path: Path, content: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return
    write_private(path, content)
