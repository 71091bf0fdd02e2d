"""WasmPlugin and TrafficExtension: filters that chains name, and what fills them, by ECDS.

Modules are rows: the policy service fetches them. Until the first one of an object has come its
filter is in no chain; one that cannot be had is stood in for as its failStrategy says: everything
is refused, or let through.
Source: https://istio.io/latest/docs/reference/config/proxy_extensions/, Istio's order of filters.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from envoy.config.core.v3 import extension_pb2
from envoy.config.listener.v3 import listener_components_pb2 as lc_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.http.wasm.v3 import wasm_pb2 as http_wasm_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2
from envoy.extensions.filters.network.wasm.v3 import wasm_pb2 as network_wasm_pb2
from envoy.extensions.wasm.v3 import wasm_pb2
from google.protobuf import wrappers_pb2

from meshbus.compile.engine import Reader
from meshbus.compile.findings import Finding, Part
from meshbus.compile.resources import ECDS, TYPE_PREFIX, Resource, encode, resource_of
from meshbus.compile.settings import mesh
from meshbus.compile.targets import Labels, Target, target_of
from meshbus.compile.values import ads, any_of
from meshbus.compile.written import entries, fields, number
from meshbus.model.keys import Key
from meshbus.model.module_sources import module_key, source_of, wasm_of
from meshbus.model.rows import ConfigObject, WasmChunk, WasmModule
from meshbus.model.world import Query

AUTHN, AUTHZ, STATS, LAST = "AUTHN", "AUTHZ", "STATS", ""
PHASES = (AUTHN, AUTHZ, STATS, LAST)
CLIENT, SERVER = "CLIENT", "SERVER"
"""Sides: what a workload calls, also what a gateway passes on; and what calls it."""
HTTP, NETWORK, LUA = "http", "network", "lua"
RUNTIME = "envoy.wasm.runtime.v8"
PREFIX = "extensions.istio.io/trafficextension/"
TRANSLATED = "~istio-translated-wasmplugin"
"""Behind the names of WasmPlugins, as in Istio 1.31, so that no TrafficExtension has them."""
_POLICIES = {
    "FAIL_OPEN": wasm_pb2.FailurePolicy.FAIL_OPEN,
    "FAIL_RELOAD": wasm_pb2.FailurePolicy.FAIL_RELOAD,
}
_NO_PRIORITY = -(2**31) - 1
_WASM = (http_wasm_pb2.Wasm.DESCRIPTOR.full_name, http_rbac_pb2.RBAC.DESCRIPTOR.full_name)
_TYPES = {
    HTTP: _WASM,
    NETWORK: (
        network_wasm_pb2.Wasm.DESCRIPTOR.full_name,
        network_rbac_pb2.RBAC.DESCRIPTOR.full_name,
    ),
    LUA: (lua_pb2.Lua.DESCRIPTOR.full_name,),
}


class Extension(NamedTuple):
    """One object, as far as chains depend on it."""

    key: Key
    phase: str
    kind: str
    match: tuple[tuple[str, tuple[int, ...]], ...]
    """(side or empty, ports or none) of the traffic it sees; none: all."""

    @property
    def name(self) -> str:
        """Of the filter and its resource."""
        return extension_name(self.key)

    def sees(self, side: str, port: int) -> bool:
        """Whether it sees traffic of a side at a port."""
        if not self.match:
            return True
        return any(
            mode in ("", side) and (not ports or port in ports) for mode, ports in self.match
        )

    def is_on(self, side: str) -> bool:
        """Whether it sees any traffic of a side."""
        return not self.match or any(mode in ("", side) for mode, _ in self.match)


class _Head(NamedTuple):
    extension: Extension
    target: Target
    order: tuple[Any, ...]


def extension_name(key: Key) -> str:
    """The name of an object's filter."""
    suffix = TRANSLATED if key.kind == "wasmplugins" else ""
    return f"{PREFIX}{key.namespace}.{key.name}{suffix}"


def extension_heads(reader: Reader, namespace: str) -> tuple[_Head, ...]:
    """Node: the objects of a namespace."""
    out = []
    for table in ("cfg.trafficextensions", "cfg.wasmplugins"):
        for entry in reader.entries(Query(table, "namespace", namespace)):
            row: ConfigObject = entry.row
            if row.deletion is not None or _is_awaited(reader, entry.key, row):
                continue
            spec = row.spec
            phase = str(spec.get("phase") or "")
            part = wasm_of(row)
            kind = LUA if part is None else NETWORK if part.get("type") == "NETWORK" else HTTP
            match = tuple(
                (_side(item), tuple(number(p.get("number")) for p in entries(item.get("ports"))))
                for item in entries(spec.get("match"))
            )
            made = Extension(entry.key, phase if phase in PHASES else LAST, kind, match)
            priority = spec.get("priority")
            first = priority if isinstance(priority, int) else _NO_PRIORITY
            order = (-first, row.created, row.name, row.namespace, row.kind)
            out.append(_Head(made, target_of(spec), order))
    return tuple(out)


def _is_awaited(reader: Reader, key: Key, row: ConfigObject) -> bool:
    """Its first module is being fetched: until then traffic goes on as it was."""
    return source_of(row) is not None and reader.get(module_key(key, row.uid)) is None


def _side(selector: Mapping[str, Any]) -> str:
    mode = str(selector.get("mode") or "")
    return mode if mode in (CLIENT, SERVER) else ""


def extensions_of(reader: Reader, namespace: str, labels: Labels) -> tuple[Extension, ...]:
    """Those of a workload, in the order of its phases: higher priority first, then the older."""
    root = reader.node(mesh).root_namespace
    found = [
        head
        for owner in dict.fromkeys((root, namespace))
        for head in reader.node(extension_heads, owner)
        if head.target.concerns(labels, namespace == owner)
    ]
    found.sort(key=lambda head: (PHASES.index(head.extension.phase), head.order))
    return tuple(head.extension for head in found)


# --------------------------------------------------------------------------- references in chains


def http_filters(
    extensions: Sequence[Extension], phases: Iterable[str], side: str, port: int
) -> list[hcm_pb2.HttpFilter]:
    """Filters of these phases in an HTTP chain."""
    out = []
    wanted = tuple(phases)
    for extension in extensions:
        if extension.phase in wanted and extension.kind != NETWORK and extension.sees(side, port):
            made = hcm_pb2.HttpFilter(name=extension.name)
            made.config_discovery.config_source.CopyFrom(ads())
            made.config_discovery.type_urls.extend(_urls(extension.kind))
            out.append(made)
    return out


def network_filters(
    extensions: Sequence[Extension], phases: Iterable[str], side: str, port: int
) -> list[lc_pb2.Filter]:
    """Filters of these phases in a TCP chain."""
    out = []
    wanted = tuple(phases)
    for extension in extensions:
        if extension.phase in wanted and extension.kind == NETWORK and extension.sees(side, port):
            made = lc_pb2.Filter(name=extension.name)
            made.config_discovery.config_source.CopyFrom(ads())
            made.config_discovery.type_urls.extend(_urls(extension.kind))
            out.append(made)
    return out


def _urls(kind: str) -> list[str]:
    return [TYPE_PREFIX + name for name in _TYPES[kind]]


# --------------------------------------------------------------------------- what fills them


def extension_resource(reader: Reader, key: Key, kind: str) -> Part:
    """Node: the configuration of one object's filter."""
    row = reader.get(key)
    findings: tuple[Finding, ...] = ()
    if not isinstance(row, ConfigObject):
        return Part(())
    part = wasm_of(row)
    config: Any
    if part is None:
        code = str(fields(row.spec.get("lua")).get("inlineCode") or "")
        config = lua_pb2.Lua()
        config.default_source_code.inline_string = code
    else:
        plugin = wasm_pb2.PluginConfig(name=extension_name(key))
        problem = _fill_code(reader, key, row, plugin.vm_config)
        if problem:
            config = _stand_in(kind, str(part.get("failStrategy") or ""))
            path = "spec.url" if row.kind == "WasmPlugin" else "spec.wasm.url"
            findings = (Finding(key, path, problem),)
        else:
            _fill(plugin, part)
            config = (network_wasm_pb2 if kind == NETWORK else http_wasm_pb2).Wasm(config=plugin)
    name = extension_name(key)
    extension = extension_pb2.TypedExtensionConfig(name=name, typed_config=any_of(config))
    return Part((encode(reader, ECDS, name, extension, (key,)),), findings)


def _fill(plugin: wasm_pb2.PluginConfig, part: Mapping[str, Any]) -> None:
    plugin.root_id = str(part.get("pluginName") or "")
    plugin.failure_policy = _POLICIES.get(
        str(part.get("failStrategy") or ""), wasm_pb2.FailurePolicy.FAIL_CLOSED
    )
    if "pluginConfig" in part:
        text = msgspec.json.encode(part["pluginConfig"], order="deterministic").decode()
        plugin.configuration.CopyFrom(any_of(wrappers_pb2.StringValue(value=text)))
    plugin.vm_config.runtime = RUNTIME
    for variable in entries(fields(part.get("vmConfig")).get("env")):
        name = str(variable.get("name") or "")
        if variable.get("valueFrom") == "HOST":
            plugin.vm_config.environment_variables.host_env_keys.append(name)
        else:
            value = str(variable.get("value") or "")
            plugin.vm_config.environment_variables.key_values[name] = value


def _fill_code(reader: Reader, key: Key, row: ConfigObject, machine: wasm_pb2.VmConfig) -> str:
    """Put the module in; why there is none."""
    part = wasm_of(row) or {}
    source = source_of(row)
    if source is None:
        machine.code.local.filename = str(part.get("url") or "").removeprefix("file://")
        return ""
    module = reader.get(module_key(key, row.uid))
    if not isinstance(module, WasmModule):
        return "the module has not been fetched yet"
    if module.elsewhere:
        machine.code.remote.http_uri.uri = source.url
        machine.code.remote.http_uri.cluster = "_"
        machine.code.remote.http_uri.timeout.seconds = 30
        machine.code.remote.sha256 = source.sha256
        return ""
    if not module.sha256:
        return f"the module cannot be had: {module.error}"
    parts = []
    for index in range(module.chunks):
        chunk = reader.get(Key(key.cluster, "wasm", "chunks", "", module.sha256, str(index)))
        if not isinstance(chunk, WasmChunk):
            return "the module is not there as a whole"
        parts.append(chunk.data)
    machine.code.local.inline_bytes = b"".join(parts)
    return ""


def stand_in(resource: Resource) -> Resource | None:
    """What a proxy gets in the place of a filter that it refuses and has no earlier form of: by the
    failStrategy; for a script one that does nothing. None: it is no filter of these objects.

    A filter without any configuration would answer 500 to everything.
    """
    if resource.type_url != ECDS or not resource.name.startswith(PREFIX):
        return None
    extension = extension_pb2.TypedExtensionConfig.FromString(resource.body)
    held = extension.typed_config
    made: Any = None
    if held.Is(lua_pb2.Lua.DESCRIPTOR):
        made = lua_pb2.Lua()
    for kind, module in ((HTTP, http_wasm_pb2), (NETWORK, network_wasm_pb2)):
        if held.Is(module.Wasm.DESCRIPTOR):
            policy = module.Wasm.FromString(held.value).config.failure_policy
            made = _stand_in(kind, wasm_pb2.FailurePolicy.Name(policy))
    if made is None:
        return None
    extension.typed_config.CopyFrom(any_of(made))
    body = extension.SerializeToString(deterministic=True)
    return resource_of(ECDS, resource.name, body, resource.origins)


def _stand_in(kind: str, strategy: str) -> Any:
    """A filter that lets everything through, or nothing."""
    filters: Any = network_rbac_pb2 if kind == NETWORK else http_rbac_pb2
    out = filters.RBAC(stat_prefix="wasm.") if kind == NETWORK else filters.RBAC()
    if strategy != "FAIL_OPEN":
        out.rules.CopyFrom(rbac_pb2.RBAC(action=rbac_pb2.RBAC.ALLOW))
    return out


__all__ = [
    "Extension",
    "extension_resource",
    "extensions_of",
    "http_filters",
    "network_filters",
    "stand_in",
]
