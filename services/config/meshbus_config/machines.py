"""`/v1/workloads`: machines that join by a WorkloadGroup, and their entries.

An operator asks for a machine's token; the machine says where it is and whether it is healthy,
again and again. Its WorkloadEntry is made from the group's template, and goes when it is silent for
`GRACE_S`, when it says goodbye, or with its group.
Source: Istio, WorkloadGroup and "auto-registration": names, annotations, the condition Healthy.
"""

import asyncio
import contextlib
import ipaddress
import re
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from meshbus.api.kinds import kind_of
from meshbus.bus.interface import Bus
from meshbus.model.keys import Key
from meshbus.model.requests import JOIN_TOKEN, JoinTokenReply, JoinTokenRequest
from meshbus.model.rows import ConfigObject, ObjectStatus, ServiceAddress, Trust
from meshbus.runtime.calls import CallError, call
from meshbus_config import operations
from meshbus_config.answers import read_document, respond
from meshbus_config.documents import Space, status_key
from meshbus_config.errors import ApiError, bad_request, forbidden, not_found, unavailable
from meshbus_config.machine_users import Machine
from meshbus_config.mesh_api import as_api_error
from meshbus_config.object_status import Verdict, condition
from meshbus_config.operations import Preconditions
from meshbus_config.outcomes import Intent, Plan
from meshbus_config.store import Store

BEAT_S = 5.0
GRACE_S = 15.0
"""Longer than a restart of the machine's programs or of config takes."""
GROUP_ANNOTATION = "istio.io/autoRegistrationGroup"
HEALTH_ANNOTATION = "proxy.istio.io/health-checks-enabled"
CAPTURE_ANNOTATION = "standalone.meshbus.io/capture"
APPLICATION_ANNOTATION = "standalone.meshbus.io/application-address"
HTTP_PROXY_ANNOTATION = "standalone.meshbus.io/http-proxy-port"
HEALTHY = "Healthy"
MANAGER = "meshbus-machines"
_API = "networking.istio.io/v1"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_MAX_MESSAGE = 500

log = structlog.get_logger("config")


class Joining(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What an operator asks for a machine."""

    public_key: str
    """Base64 of the X25519 key that the token is sealed to."""
    name: str = ""
    """Of its entry; the group's with something random behind it if empty."""


class Beat(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What a machine says of itself."""

    group: str
    address: str
    healthy: bool = False
    message: str = ""
    capture: str = "redirect"
    """`redirect`, or `proxy`: the application uses an HTTP proxy."""
    application_address: str = ""
    http_proxy_port: int = 0


class Renewal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A fresh token, before the old one is over."""

    public_key: str


class Machines:
    """The handlers, and the task that removes who is silent. Only the leader knows who speaks."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        *,
        cluster: str,
        trust_domain: str,
        root_namespace: str,
        now: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._bus = bus
        self._cluster = cluster
        self._trust_domain = trust_domain
        self._root_namespace = root_namespace
        self._now = now
        self._monotonic = monotonic
        self._heard: dict[Key, float] = {}

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
        account = str(template.get("serviceAccount") or "default")
        reply = await self._token(namespace, account, instance, name, asked.public_key)
        trust = self._store.mirror.world.get(
            Key(self._cluster, "sec", "trust", "", self._trust_domain)
        )
        gateway = self._store.mirror.world.get(
            Key(self._cluster, "mesh", "addresses", "", "xds-gateway")
        )
        if not isinstance(trust, Trust) or not isinstance(gateway, ServiceAddress):
            raise unavailable("the ca and the xds-gateway have not said where they are yet")
        return respond(
            request,
            {
                "name": instance,
                "namespace": namespace,
                "group": name,
                "serviceAccount": account,
                "labels": _labels(group),
                "cluster": self._cluster,
                "locality": str(template.get("locality") or ""),
                "probe": group.spec.get("probe"),
                "token": {"sealed": reply.sealed, "expires": reply.expires},
                "roots": trust.roots_pem,
                "gateway": {
                    "host": gateway.host,
                    "port": gateway.port,
                    "name": f"xds-gateway.{self._root_namespace}.svc",
                },
            },
        )

    async def renew(self, request: Request) -> Response:
        """POST `/v1/workloads/{namespace}/{name}/token`: a machine, for itself."""
        machine = _machine_of(request)
        asked = _read(await read_document(request), Renewal)
        reply = await self._token(
            machine.namespace,
            machine.service_account,
            machine.instance,
            machine.instance,
            asked.public_key,
        )
        return respond(request, {"sealed": reply.sealed, "expires": reply.expires})

    async def entry(self, request: Request) -> Response:
        """PUT, DELETE `/v1/workloads/{namespace}/{name}`: a machine speaks of itself, or leaves."""
        machine = _machine_of(request)
        if not self._store.leading:
            raise unavailable("this replica does not write now")
        key = self._key(machine.namespace, machine.instance)
        if request.method == "DELETE":
            self._heard.pop(key, None)
            await self._remove(key)
            return respond(request, {"name": machine.instance, "registered": False})
        beat = _read(await read_document(request), Beat)
        _check(beat)
        plans: list[Plan] = []

        def plan(space: Space) -> list[Plan]:
            plans[:] = [self._plan(space, machine, beat)]
            return plans

        written = await self._store.write(plan, user=MANAGER)
        self._heard[key] = self._monotonic()
        return respond(
            request,
            {"name": machine.instance, "registered": True, "periodSeconds": BEAT_S},
            change=written.change,
        )

    # ------------------------------------------------------------------ entries

    def _plan(self, space: Space, machine: Machine, beat: Beat) -> Plan:
        group = self._group(machine.namespace, beat.group)
        template = dict(group.spec.get("template") or {})
        if str(template.get("serviceAccount") or "default") != machine.service_account:
            info = kind_of(_API, "WorkloadGroup")
            assert info is not None
            raise forbidden(info, beat.group, "it is for another service account")
        probe = isinstance(group.spec.get("probe"), dict)
        metadata = group.spec.get("metadata") or {}
        labels = _labels(group)
        annotations = {**(metadata.get("annotations") or {}), GROUP_ANNOTATION: beat.group}
        if probe:
            annotations[HEALTH_ANNOTATION] = "true"
        if beat.capture == "proxy":
            annotations[CAPTURE_ANNOTATION] = "proxy"
            annotations[APPLICATION_ANNOTATION] = beat.application_address
            annotations[HTTP_PROXY_ANNOTATION] = str(beat.http_proxy_port)
        owner = {
            "apiVersion": _API,
            "kind": "WorkloadGroup",
            "name": group.name,
            "uid": group.uid,
            "controller": True,
        }
        document = {
            "apiVersion": _API,
            "kind": "WorkloadEntry",
            "metadata": {
                "name": machine.instance,
                "namespace": machine.namespace,
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [owner],
            },
            "spec": {
                **template,
                "address": beat.address,
                "serviceAccount": machine.service_account,
                "labels": labels,
            },
        }
        info = kind_of(_API, "WorkloadEntry")
        assert info is not None
        intent = Intent(MANAGER, self._now(), lambda: str(uuid4()), force=True)
        made = operations.apply(space, info, machine.namespace, machine.instance, document, intent)
        if not probe:
            return made
        return self._with_health(space, made, beat)

    def _with_health(self, space: Space, made: Plan, beat: Beat) -> Plan:
        """The plan, with the condition Healthy where it differs."""
        stored = made.stored
        held = space.world.get(status_key(stored.entry.key))
        status = dict(held.status) if isinstance(held, ObjectStatus) else {}
        conditions = [c for c in status.get("conditions") or [] if isinstance(c, dict)]
        before = next((c for c in conditions if c.get("type") == HEALTHY), None)
        message = beat.message[:_MAX_MESSAGE]
        verdict = Verdict(beat.healthy, "Probed" if beat.healthy else "ProbeFailed", message)
        fresh = condition(HEALTHY, verdict, stored.row.generation, before, self._now())
        if before == fresh and held.uid == stored.row.uid:
            return made
        others = [c for c in conditions if c.get("type") != HEALTHY]
        row = ObjectStatus(
            stored.row.uid, stored.row.generation, {**status, "conditions": [*others, fresh]}
        )
        return made._replace(
            action="configured" if made.action == "unchanged" else made.action,
            writes=(*made.writes, (status_key(stored.entry.key), row)),
        )

    def _group(self, namespace: str, name: str) -> ConfigObject:
        row = self._store.mirror.world.get(
            Key(self._cluster, "cfg", "workloadgroups", namespace, name)
        )
        if not isinstance(row, ConfigObject):
            info = kind_of(_API, "WorkloadGroup")
            assert info is not None
            raise not_found(info, name)
        return row

    def _key(self, namespace: str, name: str) -> Key:
        return Key(self._cluster, "cfg", "workloadentries", namespace, name)

    async def _token(
        self, namespace: str, account: str, instance: str, workload: str, public_key: str
    ) -> JoinTokenReply:
        request = JoinTokenRequest(namespace, account, instance, workload, public_key)
        try:
            return await call(self._bus, JOIN_TOKEN, request, JoinTokenReply)
        except CallError as error:
            raise as_api_error(error) from error

    # ------------------------------------------------------------------ who is silent

    async def run(self) -> None:
        """Remove entries of machines that are silent, until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            if not self._store.leading:
                self._heard.clear()  # another replica hears them; here they begin anew
                continue
            now = self._monotonic()
            world = self._store.mirror.world
            present = {
                e.key: e.row.annotations[GROUP_ANNOTATION]
                for e in world.all("cfg.workloadentries")
                if e.row.annotations.get(GROUP_ANNOTATION)
            }
            for key in set(self._heard) - set(present):
                del self._heard[key]
            for key, group in present.items():
                heard = self._heard.setdefault(key, now)
                owner = Key(self._cluster, "cfg", "workloadgroups", key.namespace, group)
                if now - heard > GRACE_S or world.get(owner) is None:
                    with contextlib.suppress(ApiError):
                        await self._remove(key)
                        log.info("machine gone", entry=f"{key.namespace}/{key.name}")

    async def _remove(self, key: Key) -> None:
        info = kind_of(_API, "WorkloadEntry")
        assert info is not None

        def plan(space: Space) -> list[Plan]:
            if space.get(info, key.namespace, key.name) is None:
                return []
            return [
                operations.delete(
                    space, info, key.namespace, key.name, Preconditions(), self._now()
                )
            ]

        await self._store.write(plan, user=MANAGER)


def _labels(group: ConfigObject) -> dict[str, str]:
    metadata = group.spec.get("metadata") or {}
    template = group.spec.get("template") or {}
    return {**(metadata.get("labels") or {}), **(template.get("labels") or {})}


def _machine_of(request: Request) -> Machine:
    caller = request.state.user.caller
    if not isinstance(caller, Machine):
        raise ApiError(403, "Forbidden", "only the machine itself, by its join token, may say this")
    return caller


def _read(document: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise bad_request(str(error)) from error


def _check(beat: Beat) -> None:
    for field, value in (
        ("address", beat.address),
        ("applicationAddress", beat.application_address),
    ):
        if not value and field != "address":
            continue
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise bad_request(f"{field}: {value!r} is no address") from None
    if beat.capture not in ("redirect", "proxy"):
        raise bad_request("capture: redirect or proxy is needed")
    if not 0 <= beat.http_proxy_port <= 65535:
        raise bad_request("httpProxyPort: from 0 to 65535")
