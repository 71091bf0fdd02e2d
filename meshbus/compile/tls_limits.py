"""Which versions, cipher suites and curves TLS may use: `meshMTLS` and `tlsDefaults` of MeshConfig,
and what a server of a Gateway says itself.

Source: istio.mesh.v1alpha1 MeshConfig.TLSConfig, networking ServerTLSSettings.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from envoy.extensions.transport_sockets.tls.v3 import common_pb2

from meshbus.api.tls import CIPHER_SUITES, CURVES, FORGOTTEN_CURVES
from meshbus.compile.findings import NotCompiledError

TLS_1_2 = common_pb2.TlsParameters.TLSv1_2
TLS_1_3 = common_pb2.TlsParameters.TLSv1_3
_VERSIONS = {
    "": common_pb2.TlsParameters.TLS_AUTO,
    "TLS_AUTO": common_pb2.TlsParameters.TLS_AUTO,
    "TLSV1_0": common_pb2.TlsParameters.TLSv1_0,
    "TLSV1_1": common_pb2.TlsParameters.TLSv1_1,
    "TLSV1_2": TLS_1_2,
    "TLSV1_3": TLS_1_3,
}
MESH_SUITES = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
)
"""What servers of the mesh accept below TLS 1.3, unless `meshMTLS` says otherwise."""


class TlsLimits(NamedTuple):
    """One TLSConfig of MeshConfig."""

    minimum: int = common_pb2.TlsParameters.TLS_AUTO
    cipher_suites: tuple[str, ...] = ()
    """Below TLS 1.3; empty: the proxy's own."""
    curves: tuple[str, ...] = ()


NO_LIMITS = TlsLimits()


def limits_of(settings: Mapping[str, Any]) -> TlsLimits:
    """The limits of a TLSConfig in JSON form. Names that are not known are left out: a proxy would
    refuse all of the listener for one of them."""
    return TlsLimits(
        _VERSIONS.get(str(settings.get("minProtocolVersion") or ""), TlsLimits().minimum),
        known(settings.get("cipherSuites"), CIPHER_SUITES),
        known(settings.get("ecdhCurves"), CURVES - FORGOTTEN_CURVES),
    )


def known(names: Any, allowed: frozenset[str]) -> tuple[str, ...]:
    """The names that are allowed, each once, in order."""
    found: Iterable[Any] = names if isinstance(names, list | tuple) else ()
    return tuple(dict.fromkeys(str(name) for name in found if name in allowed))


def limit_mesh_server(params: common_pb2.TlsParameters, limits: TlsLimits) -> None:
    """TLS 1.2 to 1.3 unless `meshMTLS` says otherwise. Clients are not limited: a server that is no
    proxy may know nothing newer than 1.2, and what is negotiated is the server's choice."""
    params.tls_minimum_protocol_version = limits.minimum or TLS_1_2
    params.tls_maximum_protocol_version = TLS_1_3
    params.cipher_suites.extend(limits.cipher_suites or MESH_SUITES)


def limit_client(params: common_pb2.TlsParameters, limits: TlsLimits) -> None:
    """Towards servers outside the mesh: `tlsDefaults`."""
    params.tls_minimum_protocol_version = limits.minimum or TLS_1_2
    params.tls_maximum_protocol_version = TLS_1_3
    params.cipher_suites.extend(limits.cipher_suites)
    params.ecdh_curves.extend(limits.curves)


def limit_server(
    params: common_pb2.TlsParameters, tls: Mapping[str, Any], defaults: TlsLimits, path: str
) -> None:
    """For clients outside the mesh: what the server says, else `tlsDefaults`.

    Raises:
        NotCompiledError: A version is not known.
    """
    least = str(tls.get("minProtocolVersion") or "")
    most = str(tls.get("maxProtocolVersion") or "")
    for name, version in (("minProtocolVersion", least), ("maxProtocolVersion", most)):
        if version not in _VERSIONS:
            raise NotCompiledError(f"{path}.{name}", f"unknown TLS version {version}")
    params.tls_minimum_protocol_version = _VERSIONS[least] or defaults.minimum or TLS_1_2
    params.tls_maximum_protocol_version = _VERSIONS[most]
    if least in ("TLSV1_0", "TLSV1_1") and not most:
        params.tls_maximum_protocol_version = TLS_1_3
    suites = known(tls.get("cipherSuites"), CIPHER_SUITES)
    params.cipher_suites.extend(suites or defaults.cipher_suites)
    params.ecdh_curves.extend(defaults.curves)
