"""Modules of extensions from a registry of images, over TLS, with a login; limits and digests."""

import base64
import gzip
import hashlib
import http.server
import io
import json
import ssl
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from meshbus_policy import registries
from meshbus_policy.fetch import Fetcher, FetchError, networks
from meshbus_policy.registries import fetch_module, logins_of
from tiny_wasm import module

sys.path.insert(0, str(Path(__file__).parents[2] / "tasks"))

from task_certificates import LEAVES, write_certificates

MODULE = module("x", "y")
LOGIN = base64.b64encode(b"ann:secret").decode()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """A registry of one repository, `team/plugin`, which wants a login."""

    def __init__(self, folder: Path) -> None:
        self.blobs: dict[str, bytes] = {}
        self.tags: dict[str, bytes] = {}
        self.logins: list[str] = []
        self.open = False
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/token":
                    registry.logins.append(self.headers.get("authorization", ""))
                    good = registry.logins[-1] == f"Basic {LOGIN}"
                    return self._answer(200 if good else 401, json.dumps({"token": "t"}).encode())
                allowed = registry.open or self.headers.get("authorization") == "Bearer t"
                if not allowed:
                    realm = f'Bearer realm="{registry.base}/token",service="r",scope="s"'
                    return self._answer(401, b"", {"www-authenticate": realm})
                name = path.rpartition("/")[2]
                if "/manifests/" in path:
                    found = registry.tags.get(name) or registry.blobs.get(name)
                else:
                    found = registry.blobs.get(name)
                return self._answer(404 if found is None else 200, found or b"")

            def _answer(
                self, status: int, body: bytes, headers: dict[str, str] | None = None
            ) -> None:
                self.send_response(status)
                for header, value in (headers or {}).items():
                    self.send_header(header, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "localhost.pem", folder / "localhost.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.host = f"localhost:{self._server.server_port}"
        self.base = f"https://{self.host}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def put(self, layer: bytes, media_type: str, tag: str = "v1") -> bytes:
        """Store an image of one layer; its manifest."""
        self.blobs[digest(layer)] = layer
        listed = [{"mediaType": media_type, "digest": digest(layer), "size": len(layer)}]
        manifest = json.dumps({"schemaVersion": 2, "layers": listed}).encode()
        self.blobs[digest(manifest)] = self.tags[tag] = manifest
        return manifest

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates") / "c"
    LEAVES["localhost"] = ["localhost"]
    write_certificates(folder)
    return folder


@pytest.fixture
def registry(certificates: Path) -> Iterator[Registry]:
    made = Registry(certificates)
    yield made
    made.close()


@pytest.fixture
def fetcher(certificates: Path) -> Fetcher:
    return Fetcher(networks("127.0.0.0/8, ::1/128"), certificates / "root.pem", "modules_allow")


RAW = "application/vnd.module.wasm.content.layer.v1+wasm"
ARCHIVE = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def archive(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


async def test_an_artifact_with_a_login(registry: Registry, fetcher: Fetcher) -> None:
    registry.put(MODULE, RAW)
    url = f"oci://{registry.host}/team/plugin:v1"
    assert await fetch_module(fetcher, url, "", {registry.host: LOGIN}) == MODULE
    with pytest.raises(FetchError, match="login"):
        await fetch_module(fetcher, url, "", {registry.host: "d3Jvbmc="})
    with pytest.raises(FetchError):
        await fetch_module(fetcher, url, "", {})
    assert registry.logins[-1] == "", "a login is not sent to who it is not for"


async def test_an_image_an_index_and_a_digest(registry: Registry, fetcher: Fetcher) -> None:
    registry.open = True
    manifest = registry.put(archive("./plugin.wasm", MODULE), ARCHIVE)
    url = f"oci://{registry.host}/team/plugin"
    assert await fetch_module(fetcher, f"{url}:v1", "", {}) == MODULE
    exact = hashlib.sha256(manifest).hexdigest()
    assert await fetch_module(fetcher, f"{url}:v1", exact, {}) == MODULE
    assert await fetch_module(fetcher, f"{url}@sha256:{exact}", "", {}) == MODULE
    entries = [
        {"digest": "sha256:none", "platform": {"architecture": "amd64"}},
        {"digest": digest(manifest), "platform": {"architecture": "wasm"}},
    ]
    registry.tags["latest"] = json.dumps({"manifests": entries}).encode()
    assert await fetch_module(fetcher, url, "", {}) == MODULE
    with pytest.raises(FetchError, match="another sha256"):
        await fetch_module(fetcher, f"{url}:v1", "0" * 64, {})


async def test_what_is_not_what_it_should_be(
    registry: Registry, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.open = True
    url = f"oci://{registry.host}/team/plugin:v1"
    for layer, kind, reason in (
        (b"<html>", RAW, "no WebAssembly"),
        (archive("other.wasm", MODULE), ARCHIVE, "no plugin.wasm"),
        (b"nothing", ARCHIVE, "no archive"),
        (archive("plugin.wasm", b"#!/bin/sh"), ARCHIVE, "no WebAssembly"),
    ):
        registry.put(layer, kind)
        with pytest.raises(FetchError, match=reason):
            await fetch_module(fetcher, url, "", {})
    registry.put(MODULE, RAW)
    registry.blobs[digest(MODULE)] = MODULE + b"more"
    with pytest.raises(FetchError, match="digest"):
        await fetch_module(fetcher, url, "", {})
    monkeypatch.setattr(registries, "MAX_MODULE_BYTES", 10_000)
    registry.put(gzip.compress(bytes(200_000)), ARCHIVE)
    with pytest.raises(FetchError, match="more than 10000 bytes"):
        await fetch_module(fetcher, url, "", {})
    registry.put(bytes(20_000), RAW)
    with pytest.raises(FetchError, match="more than 10000 bytes"):
        await fetch_module(fetcher, url, "", {})


async def test_addresses_of_the_machine_are_not_asked(registry: Registry) -> None:
    with pytest.raises(FetchError, match="modules_allow"):
        await fetch_module(Fetcher([], None, "modules_allow"), f"{registry.base}/a.wasm", "", {})
    with pytest.raises(FetchError, match="http, https or oci"):
        await fetch_module(Fetcher([]), "ftp://a/b", "", {})


def test_logins_of_a_pull_secret() -> None:
    def secret(content: Any) -> dict[str, str]:
        text = json.dumps(content).encode()
        return {".dockerconfigjson": base64.b64encode(text).decode()}

    auths = {"https://r.example.com": {"username": "ann", "password": "secret"}, "b": {"auth": "x"}}
    found = logins_of(secret({"auths": auths}))
    assert (found["r.example.com"], found["b"]) == (LOGIN, "x")
    for bad in ({}, secret([]), secret({"auths": {"a": {}}}), {".dockerconfigjson": "!"}):
        with pytest.raises(FetchError, match="no Docker configuration"):
            logins_of(bad)
