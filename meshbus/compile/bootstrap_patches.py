"""EnvoyFilters of `applyTo: BOOTSTRAP`: what a proxy starts with.

A bootstrap is made where proxies are started, not where they are sent their configuration: by the
injector, and by the supervisor of a machine. It is patched there. A proxy says in its metadata with
which patches it was started, so that the gateway can tell of a patch that waits for its next start.
Source: https://istio.io/latest/docs/reference/config/networking/envoy-filter/
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from google.protobuf import json_format

from meshbus.compile.engine import Reader
from meshbus.compile.envoy_filter import BOOTSTRAP, Patches, chosen_of, patches_of
from meshbus.compile.envoy_filter_patches import Patch
from meshbus.compile.findings import Finding, NotCompiledError, Report
from meshbus.compile.layers import NO_RESOURCES
from meshbus.compile.proxy_keys import ProxyKeys
from meshbus.compile.shared_parts import SharedPart
from meshbus.compile.visibility import Ref
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject

MARK = "BOOTSTRAP_PATCHES"
"""Metadata of a node: the mark of the patches it was started with."""
NO_PATCHES = "none"
WAITS = "takes effect when the proxy starts again"
_MERGES = frozenset({"MERGE", "MERGE_AND_REPLACE_LIST"})


def bootstrap_patches(
    objects: Iterable[tuple[Key, ConfigObject]], proxy: ProxyKeys, root: str
) -> tuple[Patch, ...]:
    """The patches that a proxy is started with, in order.

    Args:
        objects: EnvoyFilters, of whatever namespace.
        root: The root namespace.
    """
    near = [Ref(key, row) for key, row in objects if row.namespace in (root, proxy.namespace)]
    fit, _ = chosen_of(near, proxy, root)
    return tuple(patch for patch in fit if patch.apply_to == BOOTSTRAP)


def bootstrap_mark(patches: Iterable[Patch]) -> str:
    """Tells patches from others: equal if they do the same."""
    told = [(patch.operation, patch.value) for patch in patches]
    if not told:
        return NO_PATCHES
    return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()[:11]


def patched_bootstrap(
    document: Mapping[str, Any], patches: Iterable[Patch]
) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """A bootstrap with patches, their mark in the node's metadata; and what of them has no effect.

    Args:
        document: JSON of `envoy.config.bootstrap.v3.Bootstrap`, with the names of the proto.
    """
    patches = tuple(patches)
    if not patches:
        return dict(document), ()
    mark = {"node": {"metadata": {MARK: bootstrap_mark(patches)}}}
    out: dict[str, Any] = _over(document, mark, replace_lists=False)
    report = Report()
    for patch in patches:
        with report.guard(patch.source, patch.path):
            value = json_format.MessageToDict(_value(patch), preserving_proto_field_name=True)
            out = _over(out, value, replace_lists=patch.operation == "MERGE_AND_REPLACE_LIST")
    return out, report.findings()


def _over(held: Any, value: Any, *, replace_lists: bool) -> Any:
    """JSON of a message merged over that of another. In JSON, for what we start proxies with may
    have fields of newer Envoys than the protos here."""
    if isinstance(held, Mapping) and isinstance(value, Mapping):
        if held.get("@type") != value.get("@type"):
            return dict(value)
        merged = {
            name: _over(held[name], inner, replace_lists=replace_lists) if name in held else inner
            for name, inner in value.items()
        }
        return {**held, **merged}
    if isinstance(held, list) and isinstance(value, list) and not replace_lists:
        return [*held, *value]
    return value


def _value(patch: Patch) -> Any:
    if patch.operation not in _MERGES:
        raise NotCompiledError(
            f"{patch.path}.patch.operation", f"{patch.operation} is not for a {BOOTSTRAP}"
        )
    return patch.message()


def bootstrap_findings(reader: Reader, chosen: Patches, mark: str) -> SharedPart:
    """Node: no resources; which patches of bootstraps have no effect at a proxy that was started
    with those of a mark (empty: it does not say)."""
    report = Report()
    patches = [
        held[index] for key, index in chosen if index < len(held := reader.node(patches_of, key))
    ]
    waits = bool(mark) and mark != bootstrap_mark(patches)
    for patch in patches:
        with report.guard(patch.source, patch.path):
            _value(patch)
            if waits:
                report.add(patch.source, f"{patch.path}.patch", WAITS)
    return SharedPart(NO_RESOURCES, report.findings())
