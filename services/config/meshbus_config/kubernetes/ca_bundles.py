"""The CA by which the API server trusts our webhooks, in their configurations: kept what it is.

Every replica does it; the same bundle written twice is one.
"""

import asyncio
import base64
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from meshbus.kube.client import KubeClient, KubeError, object_path
from meshbus.kube.reflector import Name, Reflector, Source
from meshbus.model.revisions import REVISION_LABEL
from meshbus.runtime.kubernetes import Kubernetes

_GROUP, _VERSION = "admissionregistration.k8s.io", "v1"
_PLURALS = ("validatingwebhookconfigurations", "mutatingwebhookconfigurations")
_PART_OF = "app.kubernetes.io/part-of=meshbus"
_JSON_PATCH = "application/json-patch+json"
_RETRY_S = 2.0


class _Client(msgspec.Struct):
    bundle: str = msgspec.field(name="caBundle", default="")


class _Webhook(msgspec.Struct):
    name: str
    client: _Client = msgspec.field(name="clientConfig", default_factory=_Client)


class _Configuration(msgspec.Struct):
    webhooks: list[_Webhook] = []


_configurations = msgspec.json.Decoder(_Configuration)


class _Sink:
    def __init__(self, bundles: "CaBundles", plural: str) -> None:
        self._bundles = bundles
        self._plural = plural

    def put(self, name: Name, value: _Configuration) -> None:
        self._bundles.held[self._plural, name[1]] = value
        self._bundles.wake()

    def delete(self, name: Name) -> None:
        self._bundles.held.pop((self._plural, name[1]), None)

    def malformed(self, name: Name, error: str) -> None:
        """One that cannot be read is not ours to mend."""


class CaBundles:
    """Keeps the bundles of the webhooks of our revision."""

    def __init__(self, kubernetes: Kubernetes, roots: Callable[[], str], log: Any) -> None:
        self._client: KubeClient = kubernetes.client
        self._labels = f"{_PART_OF},{REVISION_LABEL}={kubernetes.revision}"
        self._roots = roots
        self._log = log
        self._wake = asyncio.Event()
        self.held: dict[tuple[str, str], _Configuration] = {}
        """Configurations of ours, by (plural, name)."""

    def wake(self) -> None:
        """The roots or a configuration have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for plural in _PLURALS:
                source = Source(object_path(_GROUP, _VERSION, plural), labels=self._labels)
                reflector = Reflector(
                    self._client, source, _configurations.decode, _Sink(self, plural)
                )
                group.create_task(reflector.run())
            while True:
                await self._wake.wait()
                self._wake.clear()
                for (plural, name), held in list(self.held.items()):
                    patch = list(self._patch(held))
                    if patch:
                        await self._write(object_path(_GROUP, _VERSION, plural, "", name), patch)

    def _patch(self, held: _Configuration) -> Iterable[dict[str, Any]]:
        bundle = base64.b64encode(self._roots().encode()).decode()
        for index, webhook in enumerate(held.webhooks):
            if webhook.client.bundle != bundle:
                # Whoever has reordered the webhooks meanwhile makes the test fail, not the order.
                yield {"op": "test", "path": f"/webhooks/{index}/name", "value": webhook.name}
                place = f"/webhooks/{index}/clientConfig/caBundle"
                yield {"op": "add", "path": place, "value": bundle}

    async def _write(self, path: str, patch: list[dict[str, Any]]) -> None:
        try:
            await self._client.send("PATCH", path, patch, content_type=_JSON_PATCH)
        except KubeError as error:
            self._log.warning("caBundle not written yet", path=path, error=str(error))
            await asyncio.sleep(_RETRY_S)
            self._wake.set()
