"""Kinds of extensions.istio.io.

Source: https://istio.io/latest/docs/reference/config/proxy_extensions/
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta

from meshbus.api.selectors import PolicyTargetReference, TargetRefs, WorkloadSelector
from meshbus.api.shape import Free, Int32, Maybe, Port, Shape

PluginPhase = Literal["UNSPECIFIED_PHASE", "AUTHN", "AUTHZ", "STATS"]
WorkloadMode = Literal["UNDEFINED", "CLIENT", "SERVER", "CLIENT_AND_SERVER"]
ModuleUrl = Annotated[str, Meta(min_length=1, extra={"format": "module-url"})]
Sha256 = Annotated[str, Meta(pattern=r"(^$|^[a-f0-9]{64}$)")]
PullPolicy = Literal["UNSPECIFIED_POLICY", "IfNotPresent", "Always"]
PullSecret = Annotated[str, Meta(min_length=1, max_length=253)]
PluginName = Annotated[str, Meta(min_length=1, max_length=256)]


class EnvVar(Shape, frozen=True, kw_only=True):
    """A variable of the module's environment."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    """Its name."""
    value_from: Literal["INLINE", "HOST"] = "INLINE"
    """Where its value comes from."""
    value: Maybe[Annotated[str, Meta(max_length=2048)]] = UNSET
    """Its value, if INLINE."""


class VmConfig(Shape, frozen=True, kw_only=True):
    """The machine that a module runs in."""

    env: Annotated[list[EnvVar], Meta(max_length=256)] = []
    """Its environment."""


class PortSelector(Shape, frozen=True, kw_only=True):
    """A port."""

    number: Port
    """Port number."""


class TrafficSelector(Shape, frozen=True, kw_only=True):
    """Traffic that a module sees."""

    mode: WorkloadMode = "UNDEFINED"
    """Side; both if undefined."""
    ports: list[PortSelector] = []
    """Ports; all if empty."""


class WasmPlugin(Shape, frozen=True, kw_only=True):
    """A WebAssembly module in proxies."""

    selector: Maybe[WorkloadSelector] = UNSET
    """Workloads it concerns."""
    target_ref: Maybe[PolicyTargetReference] = UNSET
    """Resource it is attached to."""
    target_refs: TargetRefs = UNSET
    """Resources it is attached to."""
    url: ModuleUrl
    """Where the module is: `oci://`, `http://`, `https://` or `file://`."""
    sha256: Sha256 = ""
    """Hash of the module."""
    image_pull_policy: PullPolicy = "UNSPECIFIED_POLICY"
    """When it is fetched again."""
    image_pull_secret: Maybe[PullSecret] = UNSET
    """Secret for the registry."""
    verification_key: str = ""
    """Not carried out by any release of Istio."""
    plugin_config: Maybe[Free] = UNSET
    """Configuration of the module."""
    plugin_name: Maybe[PluginName] = UNSET
    """Root id of the module."""
    phase: PluginPhase = "UNSPECIFIED_PHASE"
    """Where in the chain it stands."""
    priority: Int32 | None = None
    """Order in its phase; higher is earlier."""
    fail_strategy: Literal["FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD"] = "FAIL_CLOSE"
    """What happens if it fails."""
    vm_config: Maybe[VmConfig] = UNSET
    """The machine it runs in."""
    match: list[TrafficSelector] = []
    """Traffic it sees; all if empty."""
    type: Literal["UNSPECIFIED_PLUGIN_TYPE", "HTTP", "NETWORK"] = "UNSPECIFIED_PLUGIN_TYPE"
    """Kind of filter."""


class WasmConfig(Shape, frozen=True, kw_only=True):
    """A WebAssembly module."""

    url: ModuleUrl
    """Where the module is."""
    sha256: Sha256 = ""
    """Hash of the module."""
    image_pull_policy: PullPolicy = "UNSPECIFIED_POLICY"
    """When it is fetched again."""
    image_pull_secret: Maybe[PullSecret] = UNSET
    """Secret for the registry."""
    verification_key: str = ""
    """Not carried out by any release of Istio."""
    plugin_config: Maybe[Free] = UNSET
    """Configuration of the module."""
    plugin_name: Maybe[PluginName] = UNSET
    """Root id of the module."""
    fail_strategy: Literal["FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD"] = "FAIL_CLOSE"
    """What happens if it fails."""
    vm_config: Maybe[VmConfig] = UNSET
    """The machine it runs in."""
    type: Literal["UNSPECIFIED_PLUGIN_TYPE", "HTTP", "NETWORK"] = "UNSPECIFIED_PLUGIN_TYPE"
    """Kind of filter."""


class LuaConfig(Shape, frozen=True, kw_only=True):
    """A Lua script."""

    inline_code: Annotated[str, Meta(min_length=1, max_length=65536)]
    """The script: `envoy_on_request`, `envoy_on_response`."""


class TrafficExtension(Shape, frozen=True, kw_only=True):
    """A module or script in proxies."""

    required_together = (("wasm", "lua"),)

    selector: Maybe[WorkloadSelector] = UNSET
    """Workloads it concerns."""
    target_refs: TargetRefs = UNSET
    """Resources it is attached to."""
    phase: Literal["UNSPECIFIED", "AUTHN", "AUTHZ", "STATS"] = "UNSPECIFIED"
    """Where in the chain it stands."""
    priority: Int32 | None = None
    """Order in its phase; higher is earlier."""
    match: list[TrafficSelector] = []
    """Traffic it sees; all if empty."""
    wasm: Maybe[WasmConfig] = UNSET
    """A module."""
    lua: Maybe[LuaConfig] = UNSET
    """A script."""
