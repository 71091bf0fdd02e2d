"""Delta xDS: requests to `Session`, its pushes to bytes."""

from meshbus.compile.resources import VHDS
from meshbus_xds_gateway.content import NO_NAMES, names_of
from meshbus_xds_gateway.session import Session
from meshbus_xds_gateway.session_state import Push
from meshbus_xds_gateway.verdicts import Refusal
from meshbus_xds_gateway.wire import DeltaRequest, decode_delta, delta_response

WILDCARD = "*"


def asked_names(request: DeltaRequest) -> tuple[frozenset[str], tuple[str, ...]] | None:
    """Names that a request subscribes to and unsubscribes from; None: it does neither."""
    gone = request.unsubscribed
    names = request.names - {WILDCARD} if WILDCARD in request.names else request.names
    return (names, gone) if names or gone else None


class DeltaProtocol:
    """One delta stream. `decode` first, then `receive`; `encode` what `Session.poll` gives."""

    __slots__ = ("_opened", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._opened = NO_NAMES
        """Types that have been asked for: one set for all streams that have asked for the same."""

    @staticmethod
    def decode(data: bytes) -> DeltaRequest:
        """The request in a message.

        Raises:
            ProtocolError: It is no request.
        """
        return decode_delta(data)

    def receive(self, request: DeltaRequest, now: float) -> Refusal | None:
        """Take one request; gives the refusal that it completes.

        Raises:
            ProtocolError: The client breaks the protocol or a limit.
        """
        type_url = request.type_url
        refusal = None
        if request.response_nonce:
            if request.error_detail is not None:
                refusal = self._session.nack(
                    type_url, request.response_nonce, request.error_detail.message, now
                )
            else:
                self._session.ack(type_url, request.response_nonce)
        subscribe: frozenset[str] = request.names
        unsubscribe = request.unsubscribed
        first = type_url not in self._opened
        if first:
            self._opened = names_of(self._opened | {type_url})
        if unsubscribe:
            self._session.unsubscribe(
                type_url,
                [name for name in unsubscribe if name != WILDCARD],
                wildcard=WILDCARD in unsubscribe,
            )
        if first or subscribe:
            self._session.subscribe(
                type_url,
                subscribe - {WILDCARD} if WILDCARD in subscribe else subscribe,
                wildcard=WILDCARD in subscribe
                or (
                    first
                    # Envoy names no route configuration that it wants virtual hosts of: it takes
                    # those of all that it has.
                    and (not subscribe or type_url == VHDS)
                    and self._session.has_wildcard(type_url)
                ),
                known=request.known if first else None,
            )
        return refusal

    @staticmethod
    def encode(push: Push) -> bytes:
        """The response of a push."""
        return delta_response(push)
