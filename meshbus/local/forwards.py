"""`localhost:PORT` for the ports of gateways: one small Envoy of its own.

It goes on when the supervisor dies, and needs nothing of the control plane.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from meshbus.local import bootstrap
from meshbus.local.addresses import choose_port, port_is_free
from meshbus.local.home import write_private
from meshbus.local.keeper import Keeper
from meshbus.local.network import network_of
from meshbus.local.processes import Command, runs

if TYPE_CHECKING:
    from meshbus.local.instance import Instance
    from meshbus.local.machine import Machine

STATE_FILE = "forwards.json"
NAME = "forwards"


class Forwards:
    """The forwards of a home. Local ports are kept in its folder, so that they stay."""

    def __init__(self, machine: "Machine", fixed: Mapping[str, int]) -> None:
        self._machine = machine
        self._fixed = fixed
        self._folder = machine.home.run / NAME
        self._hosts = network_of(machine.state).loopbacks
        self._targets: dict[int, list[tuple[str, int]]] = {}
        self._keeper: Keeper | None = None
        self.ports: dict[str, int] = {}
        """Local port by `NAMESPACE/WORKLOAD:PORT`."""

    def follow(self, instances: Iterable["Instance"]) -> None:
        """Make the forwards those of the gateways among these instances: the ready ones of each,
        or all while none is."""
        wanted: dict[str, list[Instance]] = {}
        for instance in instances:
            if not instance.spec.spec.gateway:
                continue
            for port in instance.spec.spec.ports:
                name = f"{instance.spec.namespace}/{instance.spec.workload}:{port.port}"
                wanted.setdefault(name, []).append(instance)
        self.ports = ports = {name: self._port_of(name) for name in sorted(wanted)}
        if not all(instance.looked for held in wanted.values() for instance in held):
            return  # adopted just now: what leads to them goes on as it is
        targets = {
            ports[name]: [
                (instance.addresses.inbound[0], int(name.rpartition(":")[2]))
                for instance in [i for i in held if i.ready] or held
            ]
            for name, held in wanted.items()
        }
        if targets == self._targets:
            return
        others = targets.keys() != self._targets.keys()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for local, places in targets.items():
            if places != self._targets.get(local):
                content = bootstrap.render(bootstrap.forward_targets(local, places))
                write_private(self._folder / bootstrap.forward_file(local), content)
        self._targets = targets
        if others:
            self._restart()

    def _port_of(self, name: str) -> int:
        held = self.ports.get(name) or self._fixed.get(name)
        if held:
            return held
        kept = self._kept().get(name)
        if kept and (self._runs_already() or self._is_free(kept)):
            return kept
        taken = [*self._machine.state.ports.values(), *self.ports.values()]
        port = choose_port(taken, self._is_free)
        self.ports[name] = port
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_private(self._folder / STATE_FILE, msgspec.json.encode({**self._kept(), name: port}))
        return port

    def _is_free(self, port: int) -> bool:
        return all(port_is_free(port, host) for host in self._hosts)

    def _runs_already(self) -> bool:
        record = self._machine.records.get(NAME)
        return record is not None and runs(record)

    def _kept(self) -> dict[str, int]:
        try:
            text = (self._folder / STATE_FILE).read_bytes()
            return msgspec.json.decode(text, type=dict[str, int])
        except (OSError, msgspec.MsgspecError):
            return {}

    def _restart(self) -> None:
        """A keeper whose command differs ends the process of before, and one that is equal takes
        it over."""
        if self._keeper is not None:
            self._keeper.release()
            self._keeper = None
        if not self._targets:
            return
        folder = str(self._folder.absolute())
        document = bootstrap.forward_bootstrap(sorted(self._targets), folder, self._hosts)
        content = bootstrap.render(document)
        write_private(self._folder / bootstrap.BOOTSTRAP_FILE, content)
        command = Command(
            NAME,
            bootstrap.envoy_argv(self._machine.envoy),
            {"MESHBUS_FORWARDS": hashlib.sha256(content).hexdigest()[:16]},
            self._folder,
            self._machine.home.logs / f"{NAME}.log",
        )
        self._keeper = Keeper(self._machine.state.id, self._machine.records, lambda: command)
        self._keeper.start()

    async def stop(self) -> None:
        """End the forwards."""
        if self._keeper is not None:
            await self._keeper.stop()
