"""A shim for `adsload bench -apply`: POSTed YAML goes to the API of a home, as `kubectl apply`.

    python bench/adsload_apply.py --home DIR [--port 7080]

Answers when the write is committed: the config service's apply returns its change id.
"""

import argparse
import json
import ssl
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml


def forwarder(api: dict[str, Any], context: ssl.SSLContext | None) -> type[BaseHTTPRequestHandler]:
    """A handler that hands bodies on to `/v1/apply`."""

    class Forward(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps([d for d in yaml.safe_load_all(text) if d]).encode()
            request = urllib.request.Request(
                f"{api['url']}/v1/apply",
                data=body,
                method="POST",
                headers={
                    "Content-Type": "application/json",
                    "Authorization": f"Bearer {api.get('token', '')}",
                },
            )
            try:
                with urllib.request.urlopen(request, context=context) as answer:
                    self._reply(answer.status, answer.read())
            except urllib.error.HTTPError as error:
                self._reply(error.code, error.read())

        def _reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing of each request."""

    return Forward


def forwarder_of(api: dict[str, Any]) -> type[BaseHTTPRequestHandler]:
    """A handler for what `api.json` of a home says."""
    context = None
    if api["url"].startswith("https"):
        context = ssl.create_default_context(cadata=api.get("ca"))
    return forwarder(api, context)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, default=7080)
    given = parser.parse_args()
    api = json.loads((given.home / "api.json").read_text())
    ThreadingHTTPServer(("127.0.0.1", given.port), forwarder_of(api)).serve_forever()


if __name__ == "__main__":
    main()
