"""EnvoyFilter: which patches a proxy follows, and its resources with them.

A layer of a proxy without EnvoyFilters is not touched; with them the layers of a type are patched
together, so that a patch that matched nothing can be told. One bad patch never breaks another.
Source: https://istio.io/latest/docs/reference/config/networking/envoy-filter/
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from meshbus.api.envoy_types import message_type
from meshbus.compile.connections import HCM
from meshbus.compile.engine import Reader
from meshbus.compile.envoy_filter_1_4 import filter_of
from meshbus.compile.envoy_filter_patches import (
    GATEWAY,
    INBOUND,
    OUTBOUND,
    Patch,
    may_match,
    patch_cluster,
    patch_listener,
    patch_routes,
    serves,
    stage,
)
from meshbus.compile.findings import NotCompiledError, Report
from meshbus.compile.layers import layer_of
from meshbus.compile.proxy_keys import ROUTER, ProxyKeys
from meshbus.compile.quarantine import EVERYTHING, left_out, place_of, told
from meshbus.compile.resources import CDS, ECDS, LDS, RDS, TYPE_PREFIX, Resource, encode
from meshbus.compile.settings import mesh
from meshbus.compile.shared_parts import SharedPart, merged
from meshbus.compile.targets import target_of
from meshbus.compile.visibility import Ref, age, istio_objects
from meshbus.model.keys import Key

Patches = tuple[tuple[Key, int], ...]
"""Patches by object and index, in order."""

Without = tuple[tuple[Key, frozenset[str]], ...]
"""Objects, and the names of resources that their patches are not applied to; `*`: any."""

VERSION = "1.31.0"
"""What `proxyVersion` is matched against when a proxy does not say its version: the release whose
resources ours are like."""
_TYPES = {
    "LISTENER": LDS,
    "FILTER_CHAIN": LDS,
    "LISTENER_FILTER": LDS,
    "NETWORK_FILTER": LDS,
    "HTTP_FILTER": LDS,
    "ROUTE_CONFIGURATION": RDS,
    "VIRTUAL_HOST": RDS,
    "HTTP_ROUTE": RDS,
    "CLUSTER": CDS,
    "EXTENSION_CONFIG": ECDS,
}
BOOTSTRAP = "BOOTSTRAP"
MATCHES_NOTHING = "matches nothing of this proxy"
_WHOLE = frozenset({"LISTENER", "CLUSTER", "ROUTE_CONFIGURATION", "EXTENSION_CONFIG"})
_NO_NAMES: frozenset[str] = frozenset()
_OLD_INSERTIONS = {
    "": "INSERT_FIRST",
    "FIRST": "INSERT_FIRST",
    "LAST": "ADD",
    "BEFORE": "INSERT_BEFORE",
    "AFTER": "INSERT_AFTER",
}


# --------------------------------------------------------------------------- which


def patches_of(reader: Reader, key: Key) -> tuple[Patch, ...]:
    """Node: the patches of one EnvoyFilter, in order; its old `filters` come last."""
    row = reader.get(key)
    return () if row is None else patches_in(Ref(key, row))


def patches_in(ref: Ref) -> tuple[Patch, ...]:
    """The patches of an EnvoyFilter."""
    key, row = ref
    out = []
    for index, item in enumerate(row.spec.get("configPatches") or ()):
        match = item.get("match") or {}
        inner = match.get("listener") or match.get("routeConfiguration") or match.get("cluster")
        patch = item.get("patch") or {}
        out.append(
            Patch(
                key,
                f"spec.configPatches[{index}]",
                str(item.get("applyTo") or ""),
                str(match.get("context") or "ANY"),
                dict(inner or {}),
                str(patch.get("operation") or ""),
                dict(patch.get("value") or {}),
                str(patch.get("filterClass") or ""),
            )
        )
    old = enumerate(row.spec.get("filters") or ())
    out += [_old_patch(key, f"spec.filters[{index}]", item) for index, item in old]
    return tuple(patch._replace(number=index) for index, patch in enumerate(out))


def _old_patch(key: Key, path: str, item: Mapping[str, Any]) -> Patch:
    """A filter as Istio 1.4 inserted it."""
    listener = item.get("listenerMatch") or {}
    position = item.get("insertPosition") or {}
    http = item.get("filterType") == "HTTP"
    beside = {"name": str(position.get("relativeTo") or "")}
    inner = {"name": HCM, "subFilter": beside} if http else beside
    protocol = str(listener.get("listenerProtocol") or "ALL")
    return Patch(
        key,
        path,
        "HTTP_FILTER" if http else "NETWORK_FILTER",
        str(listener.get("listenerType") or "ANY"),
        {
            "portNumber": listener.get("portNumber") or 0,
            "address": listener.get("address") or [],
            "filterChain": {"filter": inner, "protocol": "" if protocol == "ALL" else protocol},
        },
        _OLD_INSERTIONS.get(str(position.get("index") or ""), ""),
        filter_of(str(item.get("filterName") or ""), item.get("filterConfig") or {}, http=http),
    )


class Chosen(NamedTuple):
    """The patches of the EnvoyFilters that select a proxy, by object and index."""

    fit: Patches
    """Those of resources, that can be about it."""
    started: Patches
    """The same of its bootstrap."""
    unfit: Patches
    """Those that are for other kinds of proxies, other versions, or other metadata."""


def chosen_patches(reader: Reader, proxy: ProxyKeys) -> Chosen:
    """Patches of EnvoyFilters of the root namespace and a proxy's own that select it."""
    root = reader.node(mesh).root_namespace
    near = [
        ref
        for namespace in dict.fromkeys((root, proxy.namespace))
        for ref in reader.node(namespace_filters, namespace)
    ]
    fit, unfit = chosen_of(near, proxy, root, lambda ref: reader.node(patches_of, ref.key))
    places = [(patch, (patch.source, patch.number)) for patch in fit]
    return Chosen(
        tuple(place for patch, place in places if patch.apply_to != BOOTSTRAP),
        tuple(place for patch, place in places if patch.apply_to == BOOTSTRAP),
        tuple((patch.source, patch.number) for patch in unfit),
    )


def chosen_of(
    near: Iterable[Ref],
    proxy: ProxyKeys,
    root: str,
    patches: Callable[[Ref], tuple[Patch, ...]] = patches_in,
) -> tuple[tuple[Patch, ...], tuple[Patch, ...]]:
    """Patches of those EnvoyFilters that select a proxy, by priority, root first, older first:
    those that can be about it, and the others."""
    chosen = [ref for ref in near if _selects(ref, proxy)]
    chosen.sort(
        key=lambda r: (int(r.row.spec.get("priority") or 0), r.row.namespace != root, age(r))
    )
    fit: list[Patch] = []
    unfit: list[Patch] = []
    for ref in chosen:
        items = ref.row.spec.get("configPatches") or ()
        for index, patch in enumerate(patches(ref)):
            same = index >= len(items) or _same_proxy(items[index].get("match") or {}, proxy)
            fits = same and _concerns_some(patch, proxy.type)
            (fit if fits else unfit).append(patch)
    return tuple(fit), tuple(unfit)


def namespace_filters(reader: Reader, namespace: str) -> tuple[Ref, ...]:
    """Node: EnvoyFilters of a namespace, older first."""
    return istio_objects(reader, "envoyfilters", namespace)


def _selects(ref: Ref, proxy: ProxyKeys) -> bool:
    spec = ref.row.spec
    if spec.get("targetRefs"):
        return target_of(spec).concerns(proxy.labels, ref.row.namespace == proxy.namespace)
    labels = (spec.get("workloadSelector") or {}).get("labels") or spec.get("workloadLabels") or {}
    return set(proxy.labels).issuperset((str(k), str(v)) for k, v in labels.items())


def _same_proxy(match: Mapping[str, Any], proxy: ProxyKeys) -> bool:
    wanted = match.get("proxy") or {}
    held = dict(proxy.metadata)
    pattern = str(wanted.get("proxyVersion") or "")
    if pattern:
        try:
            if not re.search(pattern, held.get("ISTIO_VERSION", VERSION)):
                return False
        except re.error:
            return False
    return all(held.get(str(k)) == str(v) for k, v in (wanted.get("metadata") or {}).items())


def spoilt_patches(reader: Reader, proxy: ProxyKeys, chosen: Patches) -> dict[str, Without]:
    """By type: which objects of these patches are left out at a proxy, as Envoy refuses them."""
    keys = tuple(dict.fromkeys(key for key, _ in chosen))
    out: dict[str, Without] = {}
    for key, by_type in reader.node(left_out, keys, place_of(proxy)) if keys else ():
        for type_url, names in by_type:
            out[type_url] = (*out.get(type_url, ()), (key, names))
    return out


def patched_types(reader: Reader, chosen: Patches) -> frozenset[str]:
    """Types of resources that patches are about."""
    found = {_TYPES.get(reader.node(patches_of, key)[i].apply_to, "") for key, i in chosen}
    return frozenset(found - {""})


def unfit_patches(reader: Reader, chosen: Patches) -> SharedPart:
    """Node: no resources; that these patches do nothing at a proxy."""
    report = Report()
    for key, index in chosen:
        patches = reader.node(patches_of, key)
        if index < len(patches):
            report.add(key, f"{patches[index].path}.match", MATCHES_NOTHING)
    return SharedPart(layer_of({}), report.findings())


# --------------------------------------------------------------------------- patching


def patched_part(
    reader: Reader,
    asks: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...],
    type_url: str,
    role: str,
    chosen: Patches,
    without: Without,
) -> SharedPart:
    """Node: all parts of one type of a proxy, patched. `asks`: the nodes of the parts; `role`: the
    type of the proxy; `without`: what is left out because Envoy refuses it."""
    parts: list[SharedPart] = [reader.node(node, *args) for node, args in asks]
    whole = merged(parts)
    report = Report()
    report.extend(whole.findings)
    resources = dict(whole.resources)
    patches = [
        patch
        for key, index in chosen
        if index < len(held := reader.node(patches_of, key))
        and _TYPES.get((patch := held[index]).apply_to) == type_url
    ]
    spoilt = dict(without)
    for source, names in without:
        report.add(source, "spec", told(names))
    for patch in sorted(patches, key=stage):
        spared = spoilt.get(patch.source, _NO_NAMES)
        if EVERYTHING in spared:
            continue
        with report.guard(patch.source, patch.path):
            if not _apply(reader, resources, patch, type_url, role, spared) and not spared:
                report.add(patch.source, f"{patch.path}.match", MATCHES_NOTHING)
    return SharedPart(layer_of(resources), report.findings())


def _concerns_some(patch: Patch, role: str) -> bool:
    """Some side of a proxy is meant."""
    sides = (GATEWAY,) if role == ROUTER else (INBOUND, OUTBOUND)
    return any(patch.concerns(side) for side in sides)


def _apply(
    reader: Reader,
    resources: dict[str, Resource],
    patch: Patch,
    type_url: str,
    role: str,
    spared: frozenset[str],
) -> bool:
    """Apply a patch to what it matches, but for `spared` names. False: it matches nothing."""
    if patch.apply_to in _WHOLE and patch.adds:
        return _add(reader, resources, patch, type_url, spared)
    if type_url == ECDS:
        raise NotCompiledError(
            f"{patch.path}.patch.operation", f"{patch.operation} is not for an EXTENSION_CONFIG"
        )
    changed: dict[str, Resource | None] = {}
    for name, resource in resources.items():
        if name in spared or (type_url == CDS and not may_match(name, patch.match)):
            continue
        message = _message_of(resource)
        if not patch.concerns(_side(type_url, name, message, role)):
            continue
        if patch.apply_to in _WHOLE and patch.operation == "REMOVE":
            picked = serves if type_url == CDS else _listener_matches
            if picked(message, patch.match):
                changed[name] = None
        elif _PATCHERS[type_url](message, patch):
            origins = {*resource.origins, patch.source}
            if message.name != name:
                raise NotCompiledError(f"{patch.path}.patch.value.name", "names do not change")
            changed[name] = encode(reader, type_url, name, message, origins)
    for name, held in changed.items():
        if held is None:
            del resources[name]
        else:
            resources[name] = held
    return bool(changed)


def _message_of(resource: Resource) -> Any:
    found = message_type(resource.type_url.removeprefix(TYPE_PREFIX))
    assert found is not None, resource.type_url
    return found.FromString(resource.body)


_PATCHERS: dict[str, Callable[[Any, Patch], bool]] = {
    LDS: patch_listener,
    RDS: patch_routes,
    CDS: patch_cluster,
}


def _add(
    reader: Reader,
    resources: dict[str, Resource],
    patch: Patch,
    type_url: str,
    spared: frozenset[str],
) -> bool:
    message = patch.message()
    if not message.name:
        raise NotCompiledError(f"{patch.path}.patch.value.name", "a name is needed")
    if message.name in spared:
        return False
    if message.name in resources:
        raise NotCompiledError(f"{patch.path}.patch.value.name", f"{message.name} is there already")
    resources[message.name] = encode(reader, type_url, message.name, message, {patch.source})
    return True


def _listener_matches(listener: Any, match: Mapping[str, Any]) -> bool:
    port = int(match.get("portNumber") or 0)
    named = not match.get("name") or match["name"] == listener.name
    return named and (not port or port == listener.address.socket_address.port_value)


def _side(type_url: str, name: str, message: Any, role: str) -> str:
    if role == ROUTER:
        return GATEWAY
    if type_url == LDS:
        return INBOUND if message.traffic_direction == 1 else OUTBOUND
    return INBOUND if name.startswith(("inbound|", "Inbound")) else OUTBOUND
