"""Machines of IPv4, IPv6 and both, in meshes of the same families: one whose application uses
`http_proxy`, and one whose traffic is captured in a network of its own."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from dns_client import AAAA, A, ask
from standalone import meshbus, status_of, until

from meshbus.local import loopback, netns
from meshbus.local.api import MeshApi
from meshbus.local.capture import PROXY_UID, STANDARD_PORTS
from meshbus.local.end import end_mesh
from meshbus.local.home import Home, HomeState
from meshbus.local.network import HomeNetwork, host_port, network_of

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.root]

APP = Path(__file__).parents[1] / "tasks" / "echo_app.py"
CASES = [["IPv4"], ["IPv6"], ["IPv4", "IPv6"], ["IPv6", "IPv4"]]
ENVOY = {"IPv4": "127.201.8.1", "IPv6": "fd6d:6573:ffff::1"}
APPLICATION = {"IPv4": "127.201.8.2", "IPv6": "fd6d:6573:ffff::2"}
OUTSIDE = 300
"""Index of the machine among the addresses of a home: no instance has it."""


def workload(name: str, *arguments: str) -> dict[str, Any]:
    return {
        "apiVersion": "standalone.meshbus.io/v1alpha1",
        "kind": "Workload",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "serviceAccount": name,
            "command": [sys.executable, str(APP), *arguments],
            "ports": [{"name": "http", "port": 8080}] if arguments else [],
        },
    }


def service(name: str, app: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": {"app": app},
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"name": "http", "port": 8080}],
            **spec,
        },
    }


def manifests() -> list[dict[str, Any]]:
    group = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadGroup",
        "metadata": {"name": "vm"},
        "spec": {
            "metadata": {"labels": {"app": "vm"}},
            "template": {"serviceAccount": "vm", "ports": {"http": 8080}},
            "probe": {"httpGet": {"path": "/status/200", "port": 8080}, "periodSeconds": 1},
        },
    }
    return [
        workload("client"),
        workload("hello", "http:8080"),
        service("hello", "hello"),
        service("vm", "vm"),
        service("vm-each", "vm", clusterIP="None"),
        group,
    ]


@contextmanager
def mesh(folder: Path, families: list[str], capture: str) -> Iterator[Home]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("addresses and networks are made by root, with `ip`")
    home = Home(folder / "h")
    home.create()
    home.settings_file.write_text(
        yaml.safe_dump({"ipFamilies": families, "services": {"processes": "one"}})
    )
    file = folder / "mesh.yaml"
    file.write_text(yaml.safe_dump_all(manifests()))
    try:
        result = meshbus(
            "up", "--home", str(home.path), "-d", "-f", str(file), "--capture", capture
        )
        assert result.returncode == 0, result.stderr
        yield home
    finally:
        end_mesh(home)


@contextmanager
def running(argv: Sequence[str], log: Path, **how: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A process and its children, until here."""
    with log.open("ab") as output:
        process = subprocess.Popen(argv, stderr=output, start_new_session=True, **how)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def machine_argv(folder: Path, addresses: Sequence[str], *more: str) -> list[str]:
    own = [part for address in addresses for part in ("--address", address)]
    return [sys.executable, "-m", "meshbus.cli.main", "workload", "run", str(folder), *own, *more]


def configure(home: Home, folder: Path) -> None:
    result = meshbus("workload", "configure", "vm", "--home", str(home.path), "-o", str(folder))
    assert result.returncode == 0, result.stderr


def entries(home: Home) -> list[dict[str, Any]]:
    with MeshApi(home) as api:
        path = "/apis/networking.istio.io/v1/namespaces/default/workloadentries"
        found: list[dict[str, Any]] = api.get(path)["items"]
    return found


def get(connect: Callable[[], socket.socket], url: str, host: str) -> tuple[int, dict[str, Any]]:
    """Status and document of one request."""
    connection = http.client.HTTPConnection(host)
    with closing(connection):
        try:
            connection.sock = connect()
            connection.sock.settimeout(10)
            connection.request("GET", url, headers={"host": host})
            answer = connection.getresponse()
            body = answer.read()
        except OSError:
            return 0, {}
    return answer.status, json.loads(body) if answer.status == 200 else {}


def by_proxy(address: str, host: str) -> tuple[int, dict[str, Any]]:
    """What an application gets whose `http_proxy` is here."""
    return get(lambda: socket.create_connection((address, 15080)), f"http://{host}/", host)


def check_entry(home: Home, addresses: Sequence[str], folder: Path) -> None:
    """The mesh and the proxy know all addresses, the preferred one first."""
    (entry,) = entries(home)
    assert entry["spec"]["address"] == addresses[0]
    further = entry["metadata"]["annotations"].get("standalone.meshbus.io/further-addresses", "")
    assert further == ",".join(addresses[1:])
    node = json.loads((folder / "bootstrap.json").read_text())["node"]
    assert node["metadata"]["INSTANCE_IPS"] == ",".join(addresses)


def check_names(server: tuple[str, int], addresses: Sequence[str]) -> None:
    """Mesh DNS has the machine's addresses of each family."""
    for kind, six in ((A, False), (AAAA, True)):
        found = ask(server, "vm-each.default.svc.cluster.local", kind).addresses
        assert found == [address for address in addresses if (":" in address) == six]


def says_who_calls(document: dict[str, Any], account: str) -> None:
    assert f"sa/{account}" in document["headers"]["x-forwarded-client-cert"], "mutual TLS"


@pytest.mark.parametrize("families", CASES, ids="-".join)
def test_a_machine_by_http_proxy(families: list[str], tmp_path: Path) -> None:
    addresses = [ENVOY[family] for family in families]
    application = APPLICATION[families[0]]
    folder, log = tmp_path / "m", tmp_path / "run.log"
    env = {**os.environ, "MESHBUS_BIND_ADDRESS": application, "VERSION": "vm"}
    with mesh(tmp_path, families, "proxy") as home:
        configure(home, folder)
        own = [*addresses, application]
        loopback.add_addresses(own)
        try:
            with (
                running([sys.executable, str(APP), "http:8080"], log, env=env) as app,
                running(
                    machine_argv(
                        folder, addresses, "--capture", "proxy", "--application", application
                    ),
                    log,
                ) as machine,
            ):
                client = status_of(home).instances["default/client-0"].addresses[0]
                until(lambda: by_proxy(client, "vm:8080")[0] == 200, "it is called")
                says_who_calls(by_proxy(client, "vm:8080")[1], "client")
                check_entry(home, addresses, folder)
                state = home.state()
                assert state is not None
                check_names((network_of(state).loopback, state.ports["dns"]), addresses)
                # Its Envoy listens on each of its addresses.
                for address in addresses:
                    host = host_port(address, 8080)
                    direct = get(lambda a=address: connection_to(a, 8080), "/", host)  # type: ignore[misc]
                    assert direct[0] == 200, address
                until(lambda: by_proxy(addresses[0], "hello:8080")[0] == 200, "it calls")
                says_who_calls(by_proxy(addresses[0], "hello:8080")[1], "vm")
                app.kill()
                until(lambda: by_proxy(client, "vm:8080")[0] == 503, "its health is seen")
                machine.terminate()
                assert machine.wait(30) == 0
                assert entries(home) == []
        finally:
            loopback.remove_addresses(own)


def connection_to(address: str, port: int) -> socket.socket:
    return socket.create_connection((address, port), timeout=10)


class Relay:
    """Takes connections at an address on to another one: the way of a machine to the API."""

    def __init__(self, at: str, to: tuple[str, int]) -> None:
        self._to = to
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        starting = asyncio.start_server(self._serve, at, 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection(*self._to)
        await asyncio.gather(self._copy(reader, other_writer), self._copy(other_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@contextmanager
def own_network(state: HomeState, network: HomeNetwork) -> Iterator[str]:
    """A network namespace beside those of instances, with the rules of a pod."""
    addresses = network.instance(OUTSIDE).inbound
    asyncio.run(netns.make_namespace(state, OUTSIDE, addresses, STANDARD_PORTS))
    try:
        yield netns.namespace_name(state.id, OUTSIDE)
    finally:
        asyncio.run(netns.remove_namespace(state.id, OUTSIDE))


def captured(namespace: str, network: HomeNetwork, name: str, six: bool) -> tuple[int, Any]:
    """What an application in a namespace gets from a service, by its address of a family."""
    kind = AAAA if six else A
    host = f"{name}.default.svc.cluster.local"
    (address,) = ask((network.bridges[0], 53), host, kind).addresses

    def connect() -> socket.socket:
        made = netns.socket_in(namespace, socket.AF_INET6 if six else socket.AF_INET)
        made.settimeout(10)
        made.connect((address, 8080))
        return made

    return get(connect, "/", f"{name}:8080")


@pytest.mark.parametrize("families", CASES, ids="-".join)
def test_a_machine_whose_traffic_is_captured(families: list[str], tmp_path: Path) -> None:
    folder, log = tmp_path / "m", tmp_path / "run.log"
    with mesh(tmp_path, families, "netns") as home:
        configure(home, folder)
        state = home.state()
        assert state is not None
        network = network_of(state)
        addresses = network.instance(OUTSIDE).inbound
        relay = Relay(network.bridges[0], (network.loopback, state.ports["api"]))
        about = json.loads((folder / "machine.json").read_text())
        about["api"] |= {
            "url": f"https://{host_port(network.bridges[0], relay.port)}",
            "name": "localhost",
        }
        (folder / "machine.json").write_text(json.dumps(about))
        # On IPv6 alone the application is not on IPv4 either.
        bind = "0.0.0.0" if families == ["IPv4"] else "::"
        env = {**os.environ, "MESHBUS_BIND_ADDRESS": bind, "VERSION": "vm"}
        with closing(relay), own_network(state, network) as namespace:
            enter = ("ip", "netns", "exec", namespace)
            run = [*enter, *machine_argv(folder, addresses)]
            with (
                running([*enter, sys.executable, str(APP), "http:8080"], log, env=env) as app,
                running(run, log, group=PROXY_UID) as machine,
            ):
                client = instance_namespace(home, state, "client")
                for six in [family == "IPv6" for family in families]:
                    until(lambda s=six: captured(client, network, "vm", s)[0] == 200, "called")  # type: ignore[misc]
                    says_who_calls(captured(client, network, "vm", six)[1], "client")
                    until(lambda s=six: captured(namespace, network, "hello", s)[0] == 200, "calls")  # type: ignore[misc]
                    says_who_calls(captured(namespace, network, "hello", six)[1], "vm")
                check_entry(home, addresses, folder)
                check_names((network.bridges[0], 53), addresses)
                # Each of its addresses is captured.
                for address in addresses:
                    host = host_port(address, 8080)
                    direct = get(lambda a=address: connection_to(a, 8080), "/", host)  # type: ignore[misc]
                    assert direct[0] == 200, address
                app.kill()
                six = families[0] == "IPv6"
                until(lambda: captured(client, network, "vm", six)[0] == 503, "health is seen")
                machine.terminate()
                assert machine.wait(30) == 0
                assert entries(home) == []


def instance_namespace(home: Home, state: HomeState, name: str) -> str:
    book = json.loads((home.path / "addresses.json").read_text())
    return netns.namespace_name(state.id, book["taken"][f"default/{name}-0"])
