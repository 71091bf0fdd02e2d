"""The streams, as JetStream's API takes them. All times are nanoseconds."""

from typing import Any

from meshbus.bus.interface import CERTS, EVENTS, LEASE, MODEL, MODEL_H, STATUS

_DAY_NS = 86_400 * 1_000_000_000
_MIB = 1024 * 1024
CERTS_DAYS = 90
"""How long the record of an issued certificate is kept."""
TOMBSTONE_TTL_S = 86_400
"""How long a deletion stays readable, so that a reader that was away learns of it."""


def stream_configs(replicas: int = 1) -> list[dict[str, Any]]:
    """What `STREAM.CREATE` gets, in order of creation.

    MODEL keeps 8 versions of a key, so that one that is overwritten while a snapshot is read is
    not missing from it; `discard: new`, because losing the oldest rows silently is worse than
    refusing the newest loudly; no direct get, because reads come from the leader. Keys with a
    time to live stand in streams with a history of 1: an expiring value would uncover the one
    before it.
    """
    return [
        {
            "name": MODEL,
            "subjects": ["m.>"],
            "retention": "limits",
            "storage": "file",
            "num_replicas": replicas,
            "max_msgs_per_subject": 8,
            "max_bytes": 1024 * _MIB,
            "discard": "new",
            "allow_direct": False,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
            "allow_atomic": True,
        },
        {
            "name": MODEL_H,
            "mirror": {"name": MODEL},
            "retention": "limits",
            "storage": "file",
            "num_replicas": 1,
            "max_msgs_per_subject": -1,
            "max_age": 7 * _DAY_NS,
            "max_bytes": 1024 * _MIB,
            "discard": "old",
            "allow_direct": True,
            "compression": "s2",
        },
        {
            "name": STATUS,
            "subjects": ["s.>"],
            "retention": "limits",
            "storage": "memory",
            "num_replicas": replicas,
            "max_msgs_per_subject": 1,
            "max_bytes": 256 * _MIB,
            "discard": "old",
            "allow_msg_ttl": True,
        },
        {
            "name": LEASE,
            "subjects": ["lease.>"],
            "retention": "limits",
            "storage": "file",
            "num_replicas": replicas,
            "max_msgs_per_subject": 1,
            "max_bytes": 8 * _MIB,
            "discard": "new",
            "allow_direct": False,
            "allow_msg_ttl": True,
        },
        {
            "name": EVENTS,
            "subjects": ["events.>"],
            "retention": "limits",
            "storage": "file",
            "num_replicas": replicas,
            "max_age": 7 * _DAY_NS,
            "max_bytes": 512 * _MIB,
            "discard": "old",
        },
        {
            "name": CERTS,
            "subjects": ["certs.>"],
            "retention": "limits",
            "storage": "file",
            "num_replicas": replicas,
            "max_age": CERTS_DAYS * _DAY_NS,
            "max_bytes": 1024 * _MIB,
            "discard": "old",
            "deny_delete": True,
            "deny_purge": True,
            "compression": "s2",
        },
    ]
