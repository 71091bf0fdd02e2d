"""Rules of WasmPlugin and TrafficExtension.

Source: https://istio.io/latest/docs/reference/config/proxy_extensions/
"""

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from meshbus.api.extensions import TrafficExtension, TrafficSelector, VmConfig, WasmPlugin
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_targets


@independent
def check(spec: WasmPlugin, name: ObjectName, out: Findings) -> None:
    """Everything but the shape of a WasmPlugin."""
    check_targets(spec.selector, spec.target_ref, spec.target_refs, out)
    _check_environment(spec.vm_config, "spec.vmConfig", out)
    _check_match(spec.match, out)


@independent
def check_traffic_extension(spec: TrafficExtension, name: ObjectName, out: Findings) -> None:
    """Everything but the shape of a TrafficExtension."""
    check_targets(spec.selector, UNSET, spec.target_refs, out)
    _check_match(spec.match, out)
    if not isinstance(spec.wasm, UnsetType):
        _check_environment(spec.wasm.vm_config, "spec.wasm.vmConfig", out)


@independent
def _check_match(selectors: Sequence[TrafficSelector], out: Findings) -> None:
    for index, selector in enumerate(selectors):
        seen: set[int] = set()
        for number, port in enumerate(selector.ports):
            if port.number in seen:
                path = f"spec.match[{index}].ports[{number}].number"
                out.error(path, f"Duplicate value {port.number}", "Duplicate")
            seen.add(port.number)


@independent
def _check_environment(machine: VmConfig | UnsetType, path: str, out: Findings) -> None:
    if isinstance(machine, UnsetType):
        return
    seen: set[str] = set()
    for index, variable in enumerate(machine.env):
        at = f"{path}.env[{index}]"
        if variable.name in seen:
            out.error(f"{at}.name", f"Duplicate value {variable.name!r}", "Duplicate")
        seen.add(variable.name)
        if not isinstance(variable.value, UnsetType) and variable.value_from != "INLINE":
            out.error(f"{at}.value", "value may only be set when valueFrom is INLINE", "Conflict")
