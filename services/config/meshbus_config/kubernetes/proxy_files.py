"""What proxies start with, in each namespace: the roots of the mesh and the files of Envoy's
bootstrap, as ConfigMaps. One replica writes; what somebody changes or deletes is written again."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from meshbus.inject.bootstrap import ROOTS_FILE, bootstrap_files
from meshbus.inject.decision import IGNORED_NAMESPACES
from meshbus.inject.sidecar import proxy_config_map
from meshbus.kube.client import APPLY_PATCH, KubeClient, KubeError, object_path
from meshbus.kube.reflector import Name, Reflector, Source
from meshbus.runtime.kubernetes import Kubernetes

ROOTS_NAME = "meshbus-ca-root-cert"
_PART = "meshbus.io/proxy-files"
_RETRY_S = 2.0


class _Data(msgspec.Struct):
    data: dict[str, str] = {}


class ProxyFiles:
    """Keeps the ConfigMaps of all namespaces what they should be."""

    def __init__(
        self,
        kubernetes: Kubernetes,
        *,
        namespaces: Callable[[], Iterable[str]],
        roots: Callable[[], str],
        leads: Callable[[], bool],
        log: Any,
    ) -> None:
        """
        Args:
            namespaces: Those of the cluster, as they are now.
            roots: Certificates of the mesh's authorities; empty: not known yet.
            leads: Whether this replica writes.
        """
        self._client: KubeClient = kubernetes.client
        self._limited = kubernetes.namespaces
        self._namespaces = namespaces
        self._roots = roots
        self._leads = leads
        self._log = log
        revision = "" if kubernetes.revision == "default" else kubernetes.revision
        self._name = proxy_config_map(revision)
        self._files = bootstrap_files()
        self._held: dict[Name, dict[str, str]] = {}
        self._wake = asyncio.Event()
        self.written = 0
        """How often one was written."""

    def wake(self) -> None:
        """Namespaces, roots or leadership have changed."""
        self._wake.set()

    # ------------------------------------------------------------------ a Sink

    def put(self, name: Name, value: _Data) -> None:
        """One of ours is there."""
        self._held[name] = value.data
        self.wake()

    def delete(self, name: Name) -> None:
        """One of ours is gone."""
        self._held.pop(name, None)
        self.wake()

    def malformed(self, name: Name, error: str) -> None:
        """One of ours is not readable: it is written again."""
        self.delete(name)

    # ------------------------------------------------------------------ running

    async def run(self) -> None:
        """Until cancelled."""
        decoder = msgspec.json.Decoder(_Data)
        reflectors: list[Reflector[_Data]] = [
            Reflector(
                self._client,
                Source(object_path("", "v1", "configmaps", place), labels=_PART),
                decoder.decode,
                self,
            )
            for place in self._limited or ("",)
        ]
        async with asyncio.TaskGroup() as group:
            for reflector in reflectors:
                group.create_task(reflector.run())
            for reflector in reflectors:
                await reflector.wait_synced()
            while True:
                await self._settle()
                # Who becomes the leader is told by nobody.
                try:
                    async with asyncio.timeout(_RETRY_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue
                self._wake.clear()

    def wanted(self) -> dict[Name, Mapping[str, str]]:
        """Data by (namespace, name)."""
        roots = self._roots()
        if not roots:
            return {}
        found: dict[Name, Mapping[str, str]] = {}
        for namespace in self._namespaces():
            if namespace not in IGNORED_NAMESPACES:
                found[namespace, ROOTS_NAME] = {ROOTS_FILE: roots}
                found[namespace, self._name] = self._files
        return found

    async def _settle(self) -> None:
        if not self._leads():
            return
        for name, data in self.wanted().items():
            if self._held.get(name) != data:
                await self._write(name, data)

    async def _write(self, name: Name, data: Mapping[str, str]) -> None:
        namespace, own = name
        labels = {_PART: "true", "app.kubernetes.io/part-of": "meshbus"}
        document = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": own, "namespace": namespace, "labels": labels},
            "data": dict(data),
        }
        path = object_path("", "v1", "configmaps", namespace, own)
        query = {"fieldManager": "meshbus", "force": "true"}
        try:
            await self._client.send("PATCH", path, document, content_type=APPLY_PATCH, query=query)
            self.written += 1
        except KubeError as error:
            # A namespace that ends takes nothing; the others do.
            self._log.debug("not written", namespace=namespace, name=own, error=str(error))
