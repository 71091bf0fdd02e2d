"""What each bus identity may do. Least privilege: a service writes its own rows and nothing else.

NATS has no proof of who wrote a message; that these permissions and the fences hold is what makes
"one writer per key range" true.
"""

from typing import NamedTuple

from meshbus.bus.interface import CERTS, EVENTS, LEASE, MODEL, MODEL_H, STATUS

IDENTITIES = ("config", "discovery", "ca", "xds-gateway", "policy", "telemetry", "local")
"""The users of a mesh. `local` is the supervisor of standalone mode."""
_STREAMS = (MODEL, MODEL_H, STATUS, LEASE, EVENTS, CERTS)

_ROWS: dict[str, tuple[str, ...]] = {
    "config": ("m.*.cfg.>", "m.*.st.>", "m.*.mesh.config.>"),
    "discovery": ("m.*.reg.>",),
    "ca": ("m.*.sec.>",),
    "xds-gateway": ("m.*.mesh.addresses.-.xds-gateway",),
    "policy": ("m.*.mesh.addresses.-.policy", "m.*.jwks.keys.>", "m.*.wasm.>"),
    "telemetry": ("m.*.mesh.addresses.-.telemetry",),
}
_READS: dict[str, tuple[str, ...]] = {
    "config": (MODEL, MODEL_H, STATUS, EVENTS),
    "discovery": (MODEL, STATUS),
    "ca": (MODEL, STATUS, CERTS),
    "xds-gateway": (MODEL, STATUS),
    "policy": (MODEL,),
    "telemetry": (MODEL,),
    "local": (MODEL,),
}
_ASKS: dict[str, tuple[str, ...]] = {
    "config": (
        "x.xds-gateway.>",
        "x.telemetry.>",
        "x.config.>",
        "x.ca.sign.config",
        "x.ca.certificates",
        "x.ca.rotation",
        "x.ca.revoke",
        "x.ca.join-token",
        "x.ca.bundle",
    ),
    "xds-gateway": ("x.ca.sign.xds-gateway", "x.config.credential"),
    "policy": ("x.ca.sign.policy", "x.config.pull-secret"),
    "telemetry": ("x.ca.sign.telemetry",),
    "local": ("x.ca.join-token",),
}


class Permissions(NamedTuple):
    """Subjects that an identity may publish to and subscribe to; all others are refused."""

    publish: list[str]
    subscribe: list[str]


def inbox_prefix(identity: str) -> str:
    """Where replies to this identity go; nobody else may listen there."""
    return f"_INBOX_{identity}"


def permissions_of(identity: str) -> Permissions:
    """The permissions of one of `IDENTITIES`.

    Raises:
        KeyError: There is no such identity.
    """
    if identity not in IDENTITIES:
        raise KeyError(identity)
    publish = [*_ROWS.get(identity, ()), *_ASKS.get(identity, ())]
    publish += [f"s.*.{identity}.>", "events.v1.>"]
    if identity in _ROWS:
        publish += [f"m.ctl.fence.{identity}", f"lease.{identity}"]
        publish.append(f"$JS.API.STREAM.MSG.GET.{LEASE}")
    if identity == "ca":
        publish.append("certs.>")
    for stream in _READS[identity]:
        publish += [
            f"$JS.API.STREAM.INFO.{stream}",
            f"$JS.API.CONSUMER.CREATE.{stream}.>",
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.>",
            f"$JS.API.CONSUMER.DELETE.{stream}.>",
            f"$JS.API.STREAM.MSG.GET.{stream}",
        ]
    if identity == "config":
        for stream in _STREAMS:
            publish += [
                f"$JS.API.STREAM.CREATE.{stream}",
                f"$JS.API.STREAM.UPDATE.{stream}",
                f"$JS.API.STREAM.INFO.{stream}",
            ]
    subscribe = [f"{inbox_prefix(identity)}.>"]
    if identity != "local":
        subscribe.append(f"x.{identity}.>")
    return Permissions(sorted(set(publish)), subscribe)
