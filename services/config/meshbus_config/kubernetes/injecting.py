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
from meshbus.inject.openshift import identity_of
from meshbus.inject.proxy_configs import ProxyWishes, proxy_wishes
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
        bootstrap_filters: Callable[[], list[ConfigObject]],
        notes_of: Callable[[str], Mapping[str, str]],
    ) -> None:
        """
        Args:
            values: File with values of the chart; it is read again when it changes.
            mesh: The mesh config in force.
            proxy_configs: The ProxyConfig objects in force.
            bootstrap_filters: EnvoyFilters in force that patch bootstraps.
            notes_of: Annotations of a namespace, as far as they concern the mesh.
        """
        self._file = Path(values)
        self._root = root_namespace
        self._mesh = mesh
        self._proxy_configs = proxy_configs
        self._bootstrap_filters = bootstrap_filters
        self._notes_of = notes_of
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
                wishes=self._wishes(pod, request.namespace),
                envoy_filters=self._bootstrap_filters(),
                identity=identity_of(self._notes_of(request.namespace)),
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

    def _wishes(self, pod: Mapping[str, Any], namespace: str) -> ProxyWishes:
        labels = (pod.get("metadata") or {}).get("labels") or {}
        return proxy_wishes(self._proxy_configs(), labels, namespace, self._root)


def patches_bootstrap(row: ConfigObject) -> bool:
    """Whether an EnvoyFilter is about what proxies start with."""
    patches = row.spec.get("configPatches") or ()
    return any(isinstance(p, dict) and p.get("applyTo") == "BOOTSTRAP" for p in patches)
