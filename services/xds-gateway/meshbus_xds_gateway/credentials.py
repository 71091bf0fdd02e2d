"""Contents of Kubernetes Secrets that objects name: asked from config, sealed on the way, kept in
memory while a connected proxy needs them. Authorities in a ConfigMap are no secret: its row has
them."""

import asyncio
import base64
import binascii
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from meshbus.compile.credential_names import CONFIG_MAPS
from meshbus.compile.credentials import SecretNeed, authorities_in
from meshbus.compile.resources import Resource
from meshbus.model.keys import Key
from meshbus.model.requests import CREDENTIAL, CredentialReply, CredentialRequest
from meshbus.model.rows import ConfigObject, edition
from meshbus.runtime.calls import CallError, call
from meshbus.runtime.clock import happens_within
from meshbus.runtime.sealed import SealError, recipient
from meshbus.runtime.service import Context
from meshbus_xds_gateway.secret_resources import UnusableSecretError, credential_secret

_RETRY_S, _MAX_RETRY_S = 0.2, 10.0


@dataclass
class _Credential:
    """Content of one Secret or ConfigMap at one version of its row."""

    users: int = 0
    data: dict[str, bytes] | None = None
    resources: dict[SecretNeed, Resource | None] = field(default_factory=dict)
    refused: bool = False
    """The last question was not answered with a content."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Credentials:
    """Secrets and ConfigMaps that connected proxies need, by key. `changed` is called with a key
    whose content is another one now."""

    def __init__(
        self,
        context: Context[Any],
        tasks: asyncio.TaskGroup,
        changed: Callable[[Key], None],
        row: Callable[[Key], ConfigObject | None],
    ) -> None:
        """
        Args:
            row: The row of a Secret or ConfigMap, as this gateway knows it.
        """
        self._context = context
        self._tasks = tasks
        self._changed = changed
        self._row = row
        self._held: dict[Key, _Credential] = {}

    def hold(self, key: Key) -> None:
        """A connected proxy needs this; `release` undoes it."""
        credential = self._held.setdefault(key, _Credential())
        credential.users += 1
        if key.kind == CONFIG_MAPS:
            self._read(key, credential)
        elif credential.task is None:
            credential.task = self._tasks.create_task(self._keep(key, credential))

    def release(self, key: Key) -> None:
        """A proxy needs it no longer. Its content is dropped with the last one."""
        credential = self._held[key]
        credential.users -= 1
        if credential.users == 0:
            del self._held[key]
            if credential.task is not None:
                credential.task.cancel()

    def row_changed(self, key: Key) -> None:
        """The row is another one: read it, or ask again. Until the answer, the old content
        serves."""
        credential = self._held.get(key)
        if credential is None:
            return
        if key.kind != CONFIG_MAPS:
            credential.moved.set()
        elif self._read(key, credential):
            self._changed(key)

    def resource(self, need: SecretNeed) -> Resource | None:
        """The resource for a need; None while it is asked for, or when it cannot be used."""
        credential = self._held.get(need.key) if need.key is not None else None
        if credential is None or credential.data is None:
            return None
        if need not in credential.resources:
            try:
                made = credential_secret(need.name, need.part, credential.data, need.origins)
            except UnusableSecretError as error:
                self._context.log.warning(
                    "a Secret cannot be used", secret=str(need.key), reason=str(error)
                )
                made = None
            credential.resources[need] = made
        return credential.resources[need]

    def failed(self, need: SecretNeed) -> bool:
        """There is nothing to deliver, and it is not just a matter of waiting for an answer."""
        credential = self._held.get(need.key) if need.key is not None else None
        if credential is None:
            return False
        return credential.refused if credential.data is None else self.resource(need) is None

    def _read(self, key: Key, credential: _Credential) -> bool:
        """Take the authorities of a ConfigMap from its row. False: they are what they were."""
        row = self._row(key)
        data = authorities_in(row.spec) if row is not None else {}
        credential.refused = not data
        if not data or data == credential.data:
            return False
        credential.data = data
        credential.resources = {}
        return True

    async def _keep(self, key: Key, credential: _Credential) -> None:
        retry_s = _RETRY_S
        while True:
            credential.moved.clear()
            try:
                data, of = await self._ask(key)
            except CallError as error:
                self._context.log.warning(
                    "no content of a Secret", secret=str(key), error=error.message
                )
                if not credential.refused:
                    credential.refused = True
                    self._changed(key)
            else:
                credential.refused = False
                row = self._row(key)
                current = row is None or of in ("", edition(row))
                # Another edition than the row's is better than none, but never put into the place
                # of one: who answered may be behind.
                if data != credential.data and (current or credential.data is None):
                    credential.data = data
                    credential.resources = {}
                    self._changed(key)
                if current:
                    await credential.moved.wait()
                    retry_s = _RETRY_S
                    continue
            pause_s = retry_s * random.uniform(0.5, 1)  # noqa: S311
            if await happens_within(self._context.clock, credential.moved, pause_s):
                retry_s = _RETRY_S
            else:
                retry_s = min(retry_s * 2, _MAX_RETRY_S)

    async def _ask(self, key: Key) -> tuple[dict[str, bytes], str]:
        """The content of a Secret, and which edition it is."""
        own = recipient()
        request = CredentialRequest(key.namespace, key.name, own.public_key)
        reply = await call(self._context.bus, CREDENTIAL, request, CredentialReply, timeout=5)
        try:
            fields = msgspec.json.decode(own.open(reply.sealed), type=dict[str, str])
            data = {name: base64.b64decode(text) for name, text in fields.items()}
        except (SealError, msgspec.MsgspecError, binascii.Error) as error:
            raise CallError("internal", f"the content cannot be read: {error}") from error
        return data, reply.edition
