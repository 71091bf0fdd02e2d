"""Contents of Kubernetes Secrets that Gateways name: asked from config, sealed on the way, kept in
memory while a connected proxy needs them."""

import asyncio
import base64
import binascii
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from meshbus.compile.credentials import SecretNeed
from meshbus.compile.resources import Resource
from meshbus.model.keys import Key
from meshbus.model.requests import CREDENTIAL, CredentialReply, CredentialRequest
from meshbus.runtime.calls import CallError, call
from meshbus.runtime.sealed import SealError, recipient
from meshbus.runtime.service import Context
from meshbus_xds_gateway.secret_resources import UnusableSecretError, credential_secret

_RETRY_S, _MAX_RETRY_S = 0.2, 10.0


@dataclass
class _Credential:
    """Content of one Secret at one version of its row."""

    users: int = 0
    data: dict[str, bytes] | None = None
    resources: dict[SecretNeed, Resource | None] = field(default_factory=dict)
    refused: bool = False
    """The last question was not answered with a content."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Credentials:
    """Secrets that connected proxies need, by key. `changed` is called with a key whose content is
    another one now."""

    def __init__(
        self,
        context: Context[Any],
        tasks: asyncio.TaskGroup,
        changed: Callable[[Key], None],
    ) -> None:
        self._context = context
        self._tasks = tasks
        self._changed = changed
        self._held: dict[Key, _Credential] = {}

    def hold(self, key: Key) -> None:
        """A connected proxy needs this Secret; `release` undoes it."""
        credential = self._held.setdefault(key, _Credential())
        credential.users += 1
        if credential.task is None:
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
        """The Secret's row is another one: ask again. Until the answer, the old content serves."""
        credential = self._held.get(key)
        if credential is not None:
            credential.moved.set()

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

    async def _keep(self, key: Key, credential: _Credential) -> None:
        clock, log = self._context.clock, self._context.log
        retry_s = _RETRY_S
        while True:
            credential.moved.clear()
            try:
                data = await self._ask(key)
            except CallError as error:
                log.warning("no content of a Secret", secret=str(key), error=error.message)
                if not credential.refused:
                    credential.refused = True
                    self._changed(key)
                await clock.sleep(retry_s * random.uniform(0.5, 1))  # noqa: S311
                retry_s = min(retry_s * 2, _MAX_RETRY_S)
                continue
            retry_s, credential.refused = _RETRY_S, False
            if data != credential.data:
                credential.data = data
                credential.resources = {}
                self._changed(key)
            await credential.moved.wait()

    async def _ask(self, key: Key) -> dict[str, bytes]:
        own = recipient()
        request = CredentialRequest(key.namespace, key.name, own.public_key)
        reply = await call(self._context.bus, CREDENTIAL, request, CredentialReply, timeout=5)
        try:
            fields = msgspec.json.decode(own.open(reply.sealed), type=dict[str, str])
            return {name: base64.b64decode(text) for name, text in fields.items()}
        except (SealError, msgspec.MsgspecError, binascii.Error) as error:
            raise CallError("internal", f"the content cannot be read: {error}") from error
