"""How many connections a listener takes at once: `connectionSettings.listenerConnectionLimit`.

Envoy reads it from its runtime, by the name of the listener. Listeners come by xDS, so their limits
do: one resource of runtime values, which a proxy asks for when its bootstrap has a layer for it.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/listeners/runtime
"""

from typing import Any

from envoy.service.runtime.v3 import rtds_pb2

from meshbus.compile.engine import Reader
from meshbus.compile.findings import Part
from meshbus.compile.names import LISTENER_LIMITS
from meshbus.compile.resources import RTDS, encode
from meshbus.compile.shared_parts import SharedPart, merged


def listener_limits(reader: Reader, listeners: tuple[Any, ...], most: int) -> SharedPart:
    """Node: the limit, for each listener of parts.

    Args:
        listeners: `Ask`s of parts of listeners.
    """
    names = sorted({name for ask in listeners for name in ask.read(reader).resources})
    runtime = rtds_pb2.Runtime(name=LISTENER_LIMITS)
    runtime.layer.update(
        {f"envoy.resource_limits.listener.{name}.connection_limit": most for name in names}
    )
    return merged([Part((encode(reader, RTDS, LISTENER_LIMITS, runtime),))])
