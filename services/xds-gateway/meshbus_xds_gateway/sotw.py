"""State-of-the-world xDS: the same session, another wire.

Clusters and listeners are always sent whole; of endpoints, routes and secrets only what changed.
"""

import hashlib
from dataclasses import dataclass, field

from meshbus.compile.resources import Resource
from meshbus_xds_gateway.session import Session
from meshbus_xds_gateway.session_state import Push
from meshbus_xds_gateway.verdicts import Refusal
from meshbus_xds_gateway.wire import SotwRequest, decode_sotw, sotw_response

WILDCARD = "*"


@dataclass
class _Whole:
    """What the client has of one type."""

    nonce: str = ""
    names: set[str] = field(default_factory=set)
    wildcard: bool = False
    taken: dict[str, Resource] = field(default_factory=dict)
    sent: dict[str, Resource] = field(default_factory=dict)


class SotwProtocol:
    """One state-of-the-world stream; the counterpart of `DeltaProtocol`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._types: dict[str, _Whole] = {}

    @staticmethod
    def decode(data: bytes) -> SotwRequest:
        """The request in a message.

        Raises:
            ProtocolError: It is no request.
        """
        return decode_sotw(data)

    def receive(self, request: SotwRequest, now: float) -> Refusal | None:
        """Take one request; gives the refusal that it completes.

        Raises:
            ProtocolError: The client breaks the protocol or a limit.
        """
        type_url = request.type_url
        first = type_url not in self._types
        whole = self._types.setdefault(type_url, _Whole())
        refusal = None
        if not first and request.response_nonce:
            if request.response_nonce != whole.nonce:
                return None  # it answers an older response: another request follows
            if request.error_detail is not None:
                refusal = self._session.nack(
                    type_url, whole.nonce, request.error_detail.message, now
                )
                whole.sent = dict(whole.taken)
            else:
                self._session.ack(type_url, whole.nonce)
                whole.taken = dict(whole.sent)
        names = set(request.names)
        wildcard = WILDCARD in names
        names.discard(WILDCARD)
        if not names and self._session.has_wildcard(type_url) and (first or whole.wildcard):
            wildcard = True
        self._subscribe(type_url, whole, names, wildcard, first)
        return refusal

    def _subscribe(
        self, type_url: str, whole: _Whole, names: set[str], wildcard: bool, first: bool
    ) -> None:
        gone, added = whole.names - names, names - whole.names
        stops = whole.wildcard and not wildcard
        if gone or stops:
            self._session.unsubscribe(type_url, sorted(gone), wildcard=stops)
        if first or added or (wildcard and not whole.wildcard):
            self._session.subscribe(type_url, sorted(added), wildcard=wildcard)
        if not wildcard:
            for held in (whole.taken, whole.sent):
                for name in [n for n in held if n not in names]:
                    del held[name]
        whole.names, whole.wildcard = names, wildcard

    def encode(self, push: Push) -> bytes | None:
        """The response of a push; None when there is nothing to say in this protocol."""
        whole = self._types[push.type_url]
        if not self._session.has_wildcard(push.type_url):
            if not push.resources:
                self._session.ack(push.type_url, push.nonce)
                return None
            whole.nonce = push.nonce
            return _response(push.type_url, push.nonce, push.resources)
        whole.nonce = push.nonce
        for resource in push.resources:
            whole.sent[resource.name] = resource
        for name in push.removed:
            whole.sent.pop(name, None)
        return _response(push.type_url, push.nonce, tuple(whole.sent.values()))


def _response(type_url: str, nonce: str, resources: tuple[Resource, ...]) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for resource in resources:
        digest.update(f"{resource.name}\0{resource.version}\0".encode())
    return sotw_response(type_url, digest.hexdigest(), nonce, resources)
