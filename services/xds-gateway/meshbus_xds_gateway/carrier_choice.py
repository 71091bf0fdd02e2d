"""Which carrier a gateway uses: the setting `transport`."""

import importlib.util

from meshbus.runtime.settings import SettingsError
from meshbus_xds_gateway.carrier import Carrier
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
