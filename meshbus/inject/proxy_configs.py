"""ProxyConfig objects: what proxies start with, of the mesh, a namespace, or chosen workloads.

Source: https://istio.io/latest/docs/reference/config/networking/proxy-config/ and Istio's
EffectiveProxyConfig (pilot/pkg/model/proxy_config.go).
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from meshbus.inject.helm_set import merge_values
from meshbus.inject.selectors import is_empty, selects
from meshbus.model.rows import ConfigObject

_FIELDS = {
    "concurrency": "concurrency",
    "environmentVariables": "proxyMetadata",
    "image": "image",
}
"""Fields of ProxyConfig and those of the mesh config that they go over."""

_WHOLE = ("connectionSettings",)
"""Fields of an annotation that stand in place of the mesh's, with all that is in them."""


class ProxyWishes(NamedTuple):
    """What the objects say of one proxy, as fields of the mesh config's ProxyConfig."""

    general: Mapping[str, Any] = {}
    """Those of the mesh, and over them those of its namespace."""
    chosen: Mapping[str, Any] = {}
    """Those whose selector picks it."""

    def over(self, default: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """What the proxy starts with.

        Args:
            default: `defaultConfig` of the mesh config, over which everything goes.
            own: Its annotation `proxy.istio.io/config`: over the general, under the chosen.
        """
        merged = merge_values(merge_values(merge_values(default, self.general), own), self.chosen)
        return {**merged, **{name: own[name] for name in _WHOLE if name in own}}


NO_WISHES = ProxyWishes()
"""No object concerns it."""


def proxy_wishes(
    objects: Iterable[ConfigObject], labels: Mapping[str, str], namespace: str, root: str
) -> ProxyWishes:
    """What the objects say of the proxy of a workload. Of several in one place the older has its
    fields, the others those that it leaves out. A selector in the root namespace is for workloads
    there.

    Args:
        root: The namespace whose objects are for the whole mesh.
    """
    mesh: list[ConfigObject] = []
    own: list[ConfigObject] = []
    chosen: list[ConfigObject] = []
    for row in sorted(objects, key=lambda row: (row.created, row.name)):
        selector = row.spec.get("selector") or {}
        if row.namespace == namespace and not is_empty(selector):
            if selects(selector, labels):
                chosen.append(row)
        elif is_empty(selector) and row.namespace == root:
            mesh.append(row)
        elif is_empty(selector) and row.namespace == namespace:
            own.append(row)
    return ProxyWishes(merge_values(_merged(mesh), _merged(own)), _merged(chosen))


def _merged(rows: list[ConfigObject]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for row in reversed(rows):
        out = merge_values(out, _fields(row.spec))
    return out


def _fields(spec: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "concurrency": "concurrency",
        "image": "image",
        "environmentVariables": "proxyMetadata",
    }
    return {to: spec[name] for name, to in names.items() if spec.get(name) is not None}
