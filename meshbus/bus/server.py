"""The configuration of a nats-server for one mesh: streams on disk, a user for every service."""

import json
from collections.abc import Mapping
from pathlib import Path

from meshbus.bus.permissions import permissions_of

MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
"""Of one message. An object over it is refused before it is sent: the server would cut the line."""


def render_server_config(
    *,
    users: Mapping[str, str],
    store: Path,
    port: int,
    host: str = "127.0.0.1",
    sync_always: bool = True,
    ports_file_dir: Path | None = None,
) -> str:
    """The text of a nats-server configuration file. It holds public keys only.

    Args:
        users: Public NKey by identity of `meshbus.bus.permissions.IDENTITIES`.
        store: Directory of the streams.
        port: Where clients connect; -1 lets the server choose.
        sync_always: Each write is on disk before it is acknowledged. Where MODEL is the only copy
            of what people wrote, anything less may lose it with the power.
        ports_file_dir: Where the server writes the ports that it chose.
    """
    entries = []
    for identity, public in sorted(users.items()):
        allowed = permissions_of(identity)
        entries.append(
            {
                "nkey": public,
                "permissions": {
                    "publish": {"allow": allowed.publish},
                    "subscribe": {"allow": allowed.subscribe},
                    # A server of requests answers to inboxes of others: only where it was asked.
                    "allow_responses": {"max": 1, "expires": "1m"},
                },
            }
        )
    config: dict[str, object] = {
        "server_name": "meshbus",
        "host": host,
        "port": port,
        "max_payload": MAX_PAYLOAD_BYTES,
        "max_control_line": 8192,
        "max_connections": 1000,
        "write_deadline": "10s",
        "ping_interval": "10s",
        "jetstream": {
            "store_dir": str(store),
            "sync_interval": "always" if sync_always else "5s",
        },
        "accounts": {"MESH": {"jetstream": "enabled", "users": entries}},
    }
    if ports_file_dir is not None:
        config["ports_file_dir"] = str(ports_file_dir)
    return json.dumps(config, indent=2) + "\n"
