"""`/v1/workloads`: machines that join by a WorkloadGroup, and their entries.

An operator asks for a machine's token; the machine says where it is and whether it is healthy,
again and again. Its WorkloadEntry is made from the group's template, and goes when it is silent for
`GRACE_S`, when it says goodbye, or with its group.
"""

import asyncio
import contextlib
import re
from typing import Any
from uuid import uuid4

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from meshbus.bus.interface import Bus
from meshbus.bus.mirror import WorldMirror
from meshbus.compile.own_proxy_config import own_fields
from meshbus.compile.written import fields
from meshbus.inject.helm_set import merge_values
from meshbus.inject.proxy_configs import proxy_wishes
from meshbus.model.keys import Key
from meshbus.model.requests import JOIN_TOKEN, JoinTokenReply, JoinTokenRequest
from meshbus.model.rows import ConfigObject, ServiceAddress, Trust
from meshbus.runtime.calls import CallError, call
from meshbus.validate.mesh_support import OWN_PROXY_CONFIG
from meshbus_config.answers import read_document, respond
from meshbus_config.errors import ApiError, bad_request, forbidden, not_found, unavailable
from meshbus_config.machine_entries import (
    Beat,
    Entries,
    account_of,
    check,
    check_account,
    entry_kind,
    group_kind,
    labels_of,
)
from meshbus_config.machine_presence import Presence
from meshbus_config.machine_users import Machine
from meshbus_config.mesh_api import as_api_error

BEAT_S = 5.0
GRACE_S = 15.0
"""Longer than a restart of the machine's programs or of config takes."""
TOKEN_S = 86400
"""It has to be carried to the machine, which may be off for a while."""
_LOOK_S = 1.0
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")

log = structlog.get_logger("config")


class Joining(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What an operator asks for a machine."""

    public_key: str
    """Base64 of the X25519 key that the token is sealed to."""
    name: str = ""
    """Of its entry; the group's with something random behind it if empty."""


class Renewal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A fresh token, before the old one is over."""

    public_key: str


class Machines:
    """The handlers, and the task that removes who is silent."""

    def __init__(
        self,
        entries: Entries,
        presence: Presence,
        mirror: WorldMirror,
        bus: Bus,
        *,
        cluster: str,
        trust_domain: str,
        gateway_name: str,
        gateway: tuple[str, int] | None = None,
        api_name: str = "",
    ) -> None:
        """
        Args:
            api_name: DNS name that the API's certificate proves, by the roots of the mesh; empty:
                it has one of its own, good for its address.
            gateway_name: DNS name that the xds-gateway's certificate proves.
            gateway: Host and port at which machines reach it; None: where it says.
        """
        self._entries = entries
        self._presence = presence
        self._mirror = mirror
        self._bus = bus
        self._cluster = cluster
        self._trust_domain = trust_domain
        self._gateway_name = gateway_name
        self._gateway = gateway
        self._api_name = api_name
        self._beats = 0

    def state(self) -> dict[str, Any]:
        """For `/debug`."""
        silent = self._presence.silences()
        return {
            "beats": self._beats,
            "silent_s": {f"{key.namespace}/{key.name}": round(s, 1) for key, s in silent.items()},
            "sweeps": self._entries.sweeps,
        }

    # ------------------------------------------------------------------ handlers

    async def join(self, request: Request) -> Response:
        """POST `/v1/workloads/{namespace}/{group}/join`: a token and what else a machine needs."""
        namespace, name = request.path_params["namespace"], request.path_params["name"]
        asked = _read(await read_document(request), Joining)
        group = self._group(namespace, name)
        instance = asked.name or f"{name}-{uuid4().hex[:8]}"
        if not _NAME.fullmatch(instance):
            raise bad_request(f"name: {instance!r} is not a Kubernetes name")
        template = group.spec.get("template") or {}
        account = account_of(group)
        machine = Machine(namespace, account, instance, name)
        reply = await self._token(machine, asked.public_key)
        world = self._mirror.world
        trust = self._trust()
        own = world.get(Key(self._cluster, "mesh", "addresses", "", "xds-gateway"))
        said = (own.host, own.port) if isinstance(own, ServiceAddress) else None
        gateway = self._gateway or said
        if trust is None or gateway is None:
            raise unavailable("the ca and the xds-gateway have not said where they are yet")
        return respond(
            request,
            {
                "name": instance,
                "namespace": namespace,
                "group": name,
                "serviceAccount": account,
                "labels": labels_of(group),
                "cluster": self._cluster,
                "locality": str(template.get("locality") or ""),
                "probe": group.spec.get("probe"),
                "proxyConfig": self._proxy_config(group),
                "token": {"sealed": reply.sealed, "expires": reply.expires},
                "roots": trust.roots_pem,
                "apiName": self._api_name,
                "gateway": {
                    "host": gateway[0],
                    "port": gateway[1],
                    "name": self._gateway_name,
                },
            },
        )

    async def renew(self, request: Request) -> Response:
        """POST `/v1/workloads/{namespace}/{name}/token`: a machine, for itself, as long as the
        group that let it in is there."""
        machine = _machine_of(request)
        asked = _read(await read_document(request), Renewal)
        group = self._entries.group(machine.namespace, machine.group)
        if group is None:
            message = "it is gone, and its machines get no fresh tokens"
            raise forbidden(group_kind(), machine.group, message)
        check_account(machine, group)
        reply = await self._token(machine, asked.public_key)
        trust = self._trust()
        roots = {} if trust is None else {"roots": trust.roots_pem}
        return respond(request, {"sealed": reply.sealed, "expires": reply.expires, **roots})

    async def entry(self, request: Request) -> Response:
        """PUT, DELETE `/v1/workloads/{namespace}/{name}`: a machine speaks of itself, or leaves."""
        machine = _machine_of(request)
        if not self._entries.writes:
            raise unavailable("this replica does not write now")
        key = Key(self._cluster, "cfg", "workloadentries", machine.namespace, machine.instance)
        if request.method == "DELETE":
            self._presence.forget(key)
            await self._entries.remove(key)
            return respond(request, {"name": machine.instance, "registered": False})
        beat = _read(await read_document(request), Beat)
        group = self._group(machine.namespace, beat.group)
        check(machine, group, beat)
        self._beats += 1
        self._presence.heard(key)  # also while the entry cannot be written: it is there
        change = await self._entries.put(machine, group, beat)
        return respond(
            request,
            {"name": machine.instance, "registered": True, "periodSeconds": BEAT_S},
            change=change,
        )

    def _trust(self) -> Trust | None:
        key = Key(self._cluster, "sec", "trust", "", self._trust_domain)
        row = self._mirror.world.get(key)
        return row if isinstance(row, Trust) else None

    def _group(self, namespace: str, name: str) -> ConfigObject:
        row = self._entries.group(namespace, name)
        if row is None:
            raise not_found(group_kind(), name)
        probe = row.spec.get("probe") or self._proxy_config(row).get("readinessProbe")
        return msgspec.structs.replace(row, spec={**row.spec, "probe": probe})

    def _proxy_config(self, group: ConfigObject) -> dict[str, Any]:
        """What the proxies of a group's machines start with. Its own word is in an annotation of
        the group, and over that in one of its machines.

        Source: Istio, istioctl/pkg/workload (createMeshConfig).
        """
        world = self._mirror.world
        held = [entry.row.spec for entry in world.all("mesh.config")]
        mesh: dict[str, Any] = held[0] if held else {}
        objects = [entry.row for entry in world.all("cfg.proxyconfigs")]
        root = str(mesh.get("rootNamespace") or "istio-system")
        wishes = proxy_wishes(objects, labels_of(group), group.namespace, root)
        metadata = group.spec.get("metadata") or {}
        own: dict[str, Any] = {}
        for notes in (group.annotations, metadata.get("annotations") or {}):
            own = merge_values(own, own_fields(notes.get(OWN_PROXY_CONFIG, "")))
        return wishes.over(fields(mesh.get("defaultConfig")), own)

    async def _token(self, machine: Machine, public_key: str) -> JoinTokenReply:
        request = JoinTokenRequest(
            machine.namespace,
            machine.service_account,
            machine.instance,
            machine.group,
            public_key,
            ttl_s=TOKEN_S,
            group=machine.group,
        )
        try:
            return await call(self._bus, JOIN_TOKEN, request, JoinTokenReply)
        except CallError as error:
            raise as_api_error(error) from error

    # ------------------------------------------------------------------ who is silent

    async def run(self) -> None:
        """Remove entries of machines that are silent, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._presence.run())
            tasks.create_task(self._sweep())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            if not self._entries.sweeps:
                self._presence.others_hear()
                continue
            present = self._entries.present()
            silent = self._presence.silent(present, GRACE_S)
            for key, group in present.items():
                orphan = self._entries.group(key.namespace, group) is None
                if key in silent or orphan:
                    with contextlib.suppress(ApiError):
                        await self._entries.remove(key)
                        log.info("machine gone", entry=f"{key.namespace}/{key.name}")


def _machine_of(request: Request) -> Machine:
    caller = request.state.user.caller
    if not isinstance(caller, Machine):
        raise ApiError(403, "Forbidden", "only the machine itself, by its join token, may say this")
    if not caller.group:
        raise forbidden(entry_kind(), caller.instance, "the token is of no WorkloadGroup")
    return caller


def _read(document: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise bad_request(str(error)) from error
