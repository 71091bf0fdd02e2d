"""Which carrier a gateway uses, and keys that its replicas share: `transport`, `ticket_keys`."""

import base64
import binascii
import importlib.util
from pathlib import Path

from meshbus.runtime.settings import SettingsError
from meshbus_xds_gateway.carrier import TICKET_KEY_BYTES, Carrier
from meshbus_xds_gateway.carrier_grpc import GrpcCarrier


def native_is_installed() -> bool:
    """Whether the extension `meshbus_native` is there."""
    return importlib.util.find_spec("meshbus_native") is not None


def make_carrier(transport: str) -> Carrier:
    """A carrier for `transport`: `native`, `grpc`, or `auto` (native where it is installed).

    Raises:
        SettingsError: `native` is asked for and not installed.
    """
    if transport == "grpc" or (transport == "auto" and not native_is_installed()):
        return GrpcCarrier()
    if not native_is_installed():
        raise SettingsError(
            "MESHBUS_XDS_GATEWAY_TRANSPORT: native is not installed here; "
            "`make native` builds it where there is a Rust toolchain, or use grpc"
        )
    # Imported here: the module needs the extension.
    from meshbus_xds_gateway.carrier_native import NativeCarrier

    return NativeCarrier()


def read_ticket_keys(path: str) -> tuple[bytes, ...]:
    """Keys of TLS session tickets in a file: base64, one a line, the newest first.

    An empty path gives none: the carrier has keys of its own.

    Raises:
        SettingsError: It cannot be read, others may read it, or it holds something else.
    """
    if not path:
        return ()
    setting = "MESHBUS_XDS_GATEWAY_TICKET_KEYS"
    try:
        if Path(path).stat().st_mode & 0o077:
            raise SettingsError(f"{setting}: {path} may be read by others: chmod 600 {path}")
        lines = Path(path).read_text("ascii").split()
        keys = tuple(base64.b64decode(line, validate=True) for line in lines)
    except (OSError, UnicodeDecodeError, binascii.Error) as error:
        raise SettingsError(f"{setting}: {path} cannot be read: {type(error).__name__}") from error
    if not keys or any(len(key) != TICKET_KEY_BYTES for key in keys):
        raise SettingsError(
            f"{setting}: {path}: a base64 key of {TICKET_KEY_BYTES} bytes a line is needed "
            f"(head -c {TICKET_KEY_BYTES} /dev/urandom | base64 -w0)"
        )
    return keys
