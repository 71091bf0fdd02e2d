"""`x.config.credential`: contents of Secrets for the xds-gateway, sealed to a key of the asker."""

from collections.abc import Callable

import msgspec

from meshbus.api.kinds import by_plural
from meshbus.model.requests import CredentialReply, CredentialRequest
from meshbus.runtime.calls import CallError
from meshbus.runtime.sealed import seal
from meshbus_config.documents import Space, open_content
from meshbus_config.secret_box import SecretKeyError


class Credentials:
    """Answers with the content of one Secret."""

    def __init__(self, space: Callable[[], Space]) -> None:
        self._space = space

    async def answer(self, request: CredentialRequest) -> CredentialReply:
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
            return CredentialReply(seal(request.public_key, msgspec.json.encode(data)))
        except SecretKeyError as error:
            raise CallError("internal", str(error)) from error
        except ValueError as error:
            raise CallError("invalid", f"public_key: {error}") from error
