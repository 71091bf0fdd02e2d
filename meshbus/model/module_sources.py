"""Where modules of WasmPlugin and TrafficExtension are, as their specs say it.

Source: https://istio.io/latest/docs/reference/config/proxy_extensions/wasm-plugin/
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.model.world import World

TOUCHING = frozenset({"cfg.wasmplugins", "cfg.trafficextensions", "wasm.modules"})
"""Tables that say which modules are needed, and that of the modules."""
TABLES = ("cfg.trafficextensions", "cfg.wasmplugins")


class ModuleSource(NamedTuple):
    """A module that somebody asks for."""

    url: str
    """With its scheme; `oci://` where none is written."""
    secret: str = ""
    """`NAMESPACE/NAME` of the Secret for the registry."""
    sha256: str = ""
    """What it must be; empty: anything."""


class Need(NamedTuple):
    """What an object wants to have fetched."""

    source: ModuleSource
    asked: str
    """Another text each time that it is to be fetched anew."""


def module_key(object_key: Key, uid: str) -> Key:
    """The row that says which module an object has, a `WasmModule`. It is the object's own, so that
    the module it had goes on while another one is fetched; one that is made anew has none."""
    name = f"{object_key.kind.removesuffix('s')}.{object_key.name}"
    return object_key._replace(plane="wasm", kind="modules", name=name, shard=uid)


def wasm_of(row: ConfigObject) -> Mapping[str, Any] | None:
    """The module's part of an object; None: it is a script."""
    if row.kind == "WasmPlugin":
        return row.spec
    part = row.spec.get("wasm")
    return part if isinstance(part, Mapping) else None


def source_of(row: ConfigObject) -> ModuleSource | None:
    """Where the module of an object is fetched from; None: it has none, or it is a file that the
    proxy has."""
    part = wasm_of(row)
    url = str(part.get("url") or "") if part is not None else ""
    if not url or url.startswith("file://"):
        return None
    assert part is not None
    if "://" not in url:
        url = f"oci://{url}"
    secret = str(part.get("imagePullSecret") or "")
    return ModuleSource(
        url, f"{row.namespace}/{secret}" if secret else "", str(part.get("sha256") or "")
    )


def asks_again(row: ConfigObject, source: ModuleSource) -> str:
    """Another text each time that the object wants its module fetched anew; empty: what was fetched
    once is good for ever.

    Source: Istio, `imagePullPolicy`: Always is the default of the tag `latest`.
    """
    part = wasm_of(row) or {}
    policy = str(part.get("imagePullPolicy") or "UNSPECIFIED_POLICY")
    if policy == "UNSPECIFIED_POLICY" and not source.sha256 and source.url.startswith("oci://"):
        name = source.url.rpartition("/")[2]
        if "@" not in name and (":" not in name or name.endswith(":latest")):
            policy = "Always"
    return f"{row.uid}/{row.generation}" if policy == "Always" else ""


def needed_modules(world: World) -> dict[Key, Need]:
    """What objects want, by the key of the row that says what they have."""
    found: dict[Key, Need] = {}
    for table in TABLES:
        for entry in world.all(table):
            source = source_of(entry.row)
            if source is not None:
                asked = "\n".join((*source, asks_again(entry.row, source)))
                found[module_key(entry.key, entry.row.uid)] = Need(source, asked)
    return found
