"""The configuration of a nats-server for one mesh: streams on disk, a user for every service."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from meshbus.bus.permissions import permissions_of

MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
"""Of one message. An object over it is refused before it is sent: the server would cut the line."""


class ServerFiles(NamedTuple):
    """Files of a server's TLS, as it finds them."""

    certificate: str
    key: str
    roots: str
    """Of the other servers of its cluster."""


class Peers(NamedTuple):
    """The servers of a cluster."""

    name: str
    port: int
    hosts: Sequence[str]
    """Where each is found, itself too."""


def render_server_config(
    *,
    users: Mapping[str, str],
    store: Path,
    port: int,
    host: str = "127.0.0.1",
    sync_always: bool = True,
    ports_file_dir: Path | None = None,
    server_name: str = "meshbus",
    tls: ServerFiles | None = None,
    peers: Peers | None = None,
    monitor: str = "",
) -> str:
    """The text of a nats-server configuration file. It holds public keys only.

    Args:
        users: Public NKey by identity of `meshbus.bus.permissions.IDENTITIES`.
        store: Directory of the streams.
        port: Where clients connect; -1 lets the server choose.
        sync_always: Each write is on disk before it is acknowledged. Where MODEL is the only copy
            of what people wrote, anything less may lose it with the power.
        ports_file_dir: Where the server writes the ports that it chose.
        server_name: `$NAME` is a variable of the server's environment.
        tls: Clients must speak TLS 1.3 where it is given, and peers prove themselves.
        monitor: HOST:PORT of health; empty: none.
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
        "server_name": server_name,
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
    if monitor:
        config["http"] = monitor
    if tls is not None:
        config["tls"] = {
            "cert_file": tls.certificate,
            "key_file": tls.key,
            "min_version": "1.3",
            "timeout": 5,
        }
    if peers is not None and len(peers.hosts) > 1:
        cluster: dict[str, object] = {
            "name": peers.name,
            "port": peers.port,
            "routes": [f"nats://{host}:{peers.port}" for host in peers.hosts],
        }
        if tls is not None:
            cluster["tls"] = {
                "cert_file": tls.certificate,
                "key_file": tls.key,
                "ca_file": tls.roots,
                "verify": True,
                "timeout": 5,
            }
        config["cluster"] = cluster
    text = json.dumps(config, indent=2) + "\n"
    # The server takes variables where no quotes are.
    return re.sub(r'"server_name": "(\$[A-Z_]+)"', r'"server_name": \1', text)
