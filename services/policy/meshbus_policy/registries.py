"""Modules over HTTP and from registries of images (OCI, Docker).

A registry gives a manifest, the manifest names layers by digest, a layer is the module itself or an
archive with `plugin.wasm` in it. Whatever comes is checked against its digest and held to limits.
Source: OCI distribution specification; the layouts that Istio takes: "Wasm Image Specification".
"""

import base64
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from meshbus_policy.fetch import Fetcher, FetchError, Reply

MAX_MODULE_BYTES = 16 * 1024 * 1024
MAX_MANIFEST_BYTES = 1024 * 1024
MAX_INDEXES = 2
TIMEOUT_S = 60.0
MAGIC = b"\0asm"
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_RAW = ("application/vnd.module.wasm.content.layer.v1+wasm", "application/wasm")
_DEFAULT_REGISTRY = "registry-1.docker.io"
_LOGIN_NAMES = {_DEFAULT_REGISTRY: ("https://index.docker.io/v1/", "docker.io", "index.docker.io")}
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
Logins = Mapping[str, str]
"""`user:password` in base64 by registry, as in a Docker configuration."""


async def fetch_module(fetcher: Fetcher, url: str, sha256: str, logins: Logins) -> bytes:
    """The bytes of a module.

    Args:
        url: `http://`, `https://` or `oci://`.
        sha256: Of the module, or of the manifest of an image; empty: anything is good.
    Raises:
        FetchError: It cannot be had, or is not what it should be.
    """
    if url.startswith("oci://"):
        return await _Image(fetcher, url.removeprefix("oci://"), logins).module(sha256)
    if not url.startswith(("http://", "https://")):
        raise FetchError(f"{url.partition(':')[0]}: modules come by http, https or oci")
    headers = [("accept", "*/*")]
    reply = await fetcher.ask(url, TIMEOUT_S, headers=headers, max_bytes=MAX_MODULE_BYTES)
    if reply.status != 200:
        raise FetchError(f"answered {reply.status}")
    if sha256 and hashlib.sha256(reply.body).hexdigest() != sha256:
        raise FetchError("it has another sha256")
    return _checked(reply.body)


def logins_of(data: Mapping[str, str]) -> Logins:
    """Logins of a Secret of type kubernetes.io/dockerconfigjson; values are base64.

    Raises:
        FetchError: It holds none.
    """
    try:
        content = msgspec.json.decode(base64.b64decode(data[".dockerconfigjson"]))
        found = {}
        for registry, login in content["auths"].items():
            text = login.get("auth")
            if not text:
                pair = f"{login['username']}:{login['password']}"
                text = base64.b64encode(pair.encode()).decode()
            found[registry.removeprefix("https://").rstrip("/")] = str(text)
            found[registry] = str(text)
        return found
    except (KeyError, TypeError, AttributeError, ValueError, msgspec.DecodeError):
        raise FetchError("the pull secret is no Docker configuration") from None


def _checked(module: bytes) -> bytes:
    if not module.startswith(MAGIC):
        raise FetchError("it is no WebAssembly module")
    return module


class _Image:
    """One image of one registry."""

    def __init__(self, fetcher: Fetcher, reference: str, logins: Logins) -> None:
        name, _, self._digest = reference.partition("@")
        path, _, last = name.rpartition("/")
        last, colon, tag = last.partition(":")
        repository = f"{path}/{last}" if path else last
        registry, slash, rest = repository.partition("/")
        if slash and (registry == "localhost" or any(c in registry for c in ".:")):
            repository = rest
        else:
            registry = _DEFAULT_REGISTRY
            repository = repository if slash else f"library/{repository}"
        self._tag = tag if colon else "latest"
        self._fetcher = fetcher
        self._registry = registry
        self._base = f"https://{registry}/v2/{repository}"
        self._scope = f"repository:{repository}:pull"
        names = (registry, *_LOGIN_NAMES.get(registry, ()))
        self._login = next((logins[name] for name in names if name in logins), "")
        self._authorization = ""

    async def module(self, sha256: str) -> bytes:
        """The module of the image."""
        manifest = await self._manifest(self._digest or self._tag, sha256)
        for _ in range(MAX_INDEXES):
            if "manifests" not in manifest:
                break
            entries = _records(manifest["manifests"])
            if not entries:
                raise FetchError("the image has no manifest")
            chosen = next((e for e in entries if _is_wasm(e)), entries[0])
            manifest = await self._manifest(str(chosen.get("digest")), "")
        layers = _records(manifest.get("layers"))
        if not layers:
            raise FetchError("the image has no layers")
        raw = next((one for one in layers if one.get("mediaType") in _RAW), None)
        layer = raw or layers[-1]
        digest = str(layer.get("digest"))
        blob = await self._get(f"blobs/{digest}", [("accept", "*/*")], MAX_MODULE_BYTES)
        _check_digest(blob, digest)
        return _checked(blob if raw is not None else _from_archive(blob))

    async def _manifest(self, reference: str, sha256: str) -> dict[str, Any]:
        accept = [("accept", ", ".join(_MANIFESTS))]
        body = await self._get(f"manifests/{reference}", accept, MAX_MANIFEST_BYTES)
        if reference.startswith("sha256:"):
            _check_digest(body, reference)
        if sha256 and hashlib.sha256(body).hexdigest() != sha256:
            raise FetchError("the image has another sha256")
        try:
            content = msgspec.json.decode(body)
        except msgspec.DecodeError:
            content = None
        if not isinstance(content, dict):
            raise FetchError("the manifest of the image is no JSON object")
        return content

    async def _get(self, path: str, headers: Sequence[tuple[str, str]], limit: int) -> bytes:
        url = f"{self._base}/{path}"
        for _ in range(2):
            sent = list(headers)
            if self._authorization:
                sent.append(("authorization", self._authorization))
            reply = await self._fetcher.ask(url, TIMEOUT_S, headers=sent, max_bytes=limit)
            if reply.status == 200:
                return reply.body
            if reply.status != 401 or self._authorization:
                break
            self._authorization = await self._log_in(reply)
        raise FetchError(f"the registry {self._registry} answered {reply.status}")

    async def _log_in(self, reply: Reply) -> str:
        """What the registry wants to see, which it has just said."""
        challenge = reply.header("www-authenticate")
        scheme = challenge.partition(" ")[0].lower()
        basic = f"Basic {self._login}"
        if scheme == "basic" and self._login:
            return basic
        asked = dict(_CHALLENGE.findall(challenge))
        realm = asked.get("realm", "")
        if scheme != "bearer" or not realm.startswith("https://"):
            raise FetchError(f"the registry {self._registry} wants a login")
        query = {"scope": asked.get("scope") or self._scope}
        if asked.get("service"):
            query["service"] = asked["service"]
        headers = [("accept", "application/json")]
        if self._login:
            headers.append(("authorization", basic))
        answer = await self._fetcher.ask(f"{realm}?{urlencode(query)}", TIMEOUT_S, headers=headers)
        if answer.status != 200:
            raise FetchError(f"the login at {realm} failed ({answer.status})")
        try:
            token = msgspec.json.decode(answer.body)
            return f"Bearer {token.get('token') or token['access_token']}"
        except (msgspec.DecodeError, AttributeError, KeyError, TypeError):
            raise FetchError(f"the login at {realm} gave no token") from None


def _is_wasm(entry: Mapping[str, Any]) -> bool:
    platform = entry.get("platform")
    return isinstance(platform, Mapping) and "wasm" in str(platform.get("architecture"))


def _records(value: Any) -> list[Mapping[str, Any]]:
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def _check_digest(data: bytes, digest: str) -> None:
    if digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
        raise FetchError("what the registry gave has another digest")


def _from_archive(blob: bytes) -> bytes:
    """`plugin.wasm` of an archive, which may be compressed; it never grows beyond the limit."""
    try:
        if blob.startswith(b"\x1f\x8b"):
            engine = zlib.decompressobj(31)
            blob = engine.decompress(blob, MAX_MODULE_BYTES + 65536)
            if engine.unconsumed_tail:
                raise FetchError(f"the layer has more than {MAX_MODULE_BYTES} bytes")
        with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
            for member in archive:
                if member.isfile() and member.name.removeprefix("./") == "plugin.wasm":
                    found = archive.extractfile(member)
                    assert found is not None
                    return found.read(MAX_MODULE_BYTES)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise FetchError(f"the layer is no archive: {error}") from error
    raise FetchError("there is no plugin.wasm in the image")
