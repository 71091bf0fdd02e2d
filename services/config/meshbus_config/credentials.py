"""`x.config.credential`: contents of Secrets for the xds-gateway, sealed to a key of the asker."""

from collections.abc import Awaitable, Callable

import msgspec

from meshbus.api.kinds import by_plural
from meshbus.model.module_sources import needed_modules
from meshbus.model.requests import CredentialReply, CredentialRequest
from meshbus.model.rows import edition
from meshbus.runtime.calls import CallError
from meshbus.runtime.sealed import seal
from meshbus_config.documents import Space, open_content
from meshbus_config.secret_box import SecretKeyError

Content = Callable[[CredentialRequest], Awaitable[CredentialReply]]
_LOGIN_TYPE = "kubernetes.io/dockerconfigjson"


class Credentials:
    """Answers with the content of one Secret."""

    def __init__(self, space: Callable[[], Space], content: Content | None = None) -> None:
        """
        Args:
            content: Who has the contents of Secrets; None: the space.
        """
        self._space = space
        self.answer = content or self._answer

    async def answer_pull(self, request: CredentialRequest) -> CredentialReply:
        """The login of a registry: a Secret that an extension of its namespace names, and that is
        of the type for it.

        Raises:
            CallError: As `answer`; it is no such Secret.
        """
        space = self._space()
        wanted = f"{request.namespace}/{request.name}"
        needs = needed_modules(space.world).values()
        if not any(need.source.secret == wanted for need in needs):
            raise CallError("not-found", f"nothing names {wanted} as its imagePullSecret")
        info = by_plural("", "v1", "secrets")
        assert info is not None
        stored = space.get(info, request.namespace, request.name)
        if stored is not None and stored.row.spec.get("type") != _LOGIN_TYPE:
            raise CallError("invalid", f"Secret {wanted} is not of type {_LOGIN_TYPE}")
        return await self.answer(request)

    async def _answer(self, request: CredentialRequest) -> CredentialReply:
        """The data of a Secret.

        Raises:
            CallError: There is no such Secret; its content or the asker's key cannot be used.
        """
        info = by_plural("", "v1", "secrets")
        assert info is not None
        space = self._space()
        stored = space.get(info, request.namespace, request.name)
        if stored is None:
            raise CallError("not-found", f"no Secret {request.namespace}/{request.name}")
        try:
            content, _ = open_content(stored.row, stored.entry.key, space.box)
            data = content.get("data") or {}
            sealed = seal(request.public_key, msgspec.json.encode(data))
            return CredentialReply(sealed, edition(stored.row))
        except SecretKeyError as error:
            raise CallError("internal", str(error)) from error
        except ValueError as error:
            raise CallError("invalid", f"public_key: {error}") from error
