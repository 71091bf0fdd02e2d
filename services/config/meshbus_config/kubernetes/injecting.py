"""The mutating webhook: pods that are created in the mesh get their sidecar.

Settings are the values that the chart has written, a file, and the mesh config and ProxyConfig
objects that are followed; all are in memory when a pod comes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from meshbus.api.yaml_text import NotReadableError, read_yaml
from meshbus.inject import InjectionError, Injector
from meshbus.inject.admission import admit_pod
from meshbus.inject.helm_set import merge_values
from meshbus.inject.selectors import selects
from meshbus.model.rows import ConfigObject
from meshbus_config.kubernetes.webhooks import AdmissionRequest, Answer

log = structlog.get_logger("injection")


class Injecting:
    """Answers what is to be added to a pod."""

    def __init__(
        self,
        values: str,
        *,
        root_namespace: str,
        mesh: Callable[[], Mapping[str, Any]],
        proxy_configs: Callable[[], list[ConfigObject]],
    ) -> None:
        """
        Args:
            values: File with values of the chart; it is read again when it changes.
            mesh: The mesh config in force.
            proxy_configs: The ProxyConfig objects in force.
        """
        self._file = Path(values)
        self._root = root_namespace
        self._mesh = mesh
        self._proxy_configs = proxy_configs
        self._seen: tuple[int, int, int] = (0, 0, 0)
        self._held_mesh: Mapping[str, Any] = {}
        self._injector: Injector | None = None
        self.problem: str | None = "the values of injection are not read yet"
        """Why the present settings cannot be used; the last good ones are then. None: nothing."""

    def refresh(self) -> None:
        """Take settings that have changed."""
        mesh = self._mesh()
        try:
            found = self._file.stat()
            # A mounted ConfigMap is another file when it changes; its times may be the same.
            seen = (found.st_mtime_ns, found.st_ino, found.st_size)
            if self._injector is not None and seen == self._seen and mesh is self._held_mesh:
                return
            values = read_yaml(self._file.read_text()) or {}
            if not isinstance(values, dict):
                raise InjectionError("", "the values of injection are no map")
            self._injector = Injector(values, mesh)
            self._seen, self._held_mesh = seen, mesh
            self.problem = None
        except OSError as error:
            self.problem = f"{self._file}: {error.strerror}"
        except (NotReadableError, InjectionError) as error:
            if self.problem != str(error):
                log.error("settings of injection cannot be used", error=str(error))
            self.problem = str(error)

    def why_not_ready(self) -> str | None:
        """What hinders injection; None: nothing."""
        self.refresh()
        return self.problem if self._injector is None else None

    async def answer(self, request: AdmissionRequest) -> Answer:
        """The patch of a pod."""
        if request.operation != "CREATE" or request.kind.kind != "Pod" or request.subresource:
            return Answer(True)
        self.refresh()
        if self._injector is None:
            return Answer(False, f"injection: {self.problem}", "InternalError", 500)
        pod = request.document()
        try:
            admission = admit_pod(
                self._injector,
                pod,
                request.namespace,
                path=request.path,
                proxy_config=self._proxy_config(pod, request.namespace),
            )
        except InjectionError as error:
            log.info("refused", namespace=request.namespace, name=request.name, error=str(error))
            return Answer(False, f"injection: {error}", "Invalid", 422)
        if admission.reason:
            log.debug("not injected", namespace=request.namespace, reason=admission.reason)
        patch = admission.patch
        return Answer(
            True, patch=msgspec.json.encode(patch) if patch else b"", warnings=admission.warnings
        )

    def _proxy_config(self, pod: Mapping[str, Any], namespace: str) -> dict[str, Any]:
        labels = (pod.get("metadata") or {}).get("labels") or {}
        return effective_proxy_config(self._proxy_configs(), labels, namespace, self._root)


def effective_proxy_config(
    objects: list[ConfigObject], labels: Mapping[str, str], namespace: str, root: str
) -> dict[str, Any]:
    """Fields of the mesh config's ProxyConfig that ProxyConfig objects set for a pod: of the mesh,
    over them those of its namespace, over them those that choose it; of equals the older counts.

    Source: https://istio.io/latest/docs/reference/config/networking/proxy-config/
    """
    ranks: dict[int, ConfigObject] = {}
    for row in sorted(objects, key=lambda row: (row.created, row.name)):
        selector = row.spec.get("selector") or {}
        chosen = bool(selector.get("matchLabels"))
        if row.namespace == namespace and chosen:
            if selects(selector, labels):
                ranks.setdefault(2, row)
        elif row.namespace == namespace and namespace != root:
            ranks.setdefault(1, row)
        elif row.namespace == root and not chosen:
            ranks.setdefault(0, row)
    config: dict[str, Any] = {}
    for _, row in sorted(ranks.items()):
        fields: dict[str, Any] = {}
        if row.spec.get("concurrency") is not None:
            fields["concurrency"] = row.spec["concurrency"]
        if row.spec.get("environmentVariables"):
            fields["proxyMetadata"] = row.spec["environmentVariables"]
        if row.spec.get("image"):
            fields["image"] = row.spec["image"]
        config = merge_values(config, fields)
    return config
