"""EnvoyFilters whose patches depend on what others do.

Source: Istio, analysis messages IST0151 to IST0155.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from meshbus.analyze.messages import Message, about
from meshbus.analyze.objects import NETWORKING, Objects, number, record, records, text

_NOT_ADDED = ("ROUTE_CONFIGURATION", "HTTP_ROUTE")
_RELATIVE = ("REMOVE", "REPLACE", "INSERT_BEFORE", "INSERT_AFTER")
_REPLACED = ("NETWORK_FILTER", "HTTP_FILTER", "VIRTUAL_HOST")


def operations(objects: Objects) -> Iterator[Message]:
    """Operations do something, whatever the order of the objects."""
    versioned: set[str] = set()
    for one in objects.of(NETWORKING, "EnvoyFilter"):
        priority = number(one.spec.get("priority"))
        for index, config in enumerate(records(one.spec.get("configPatches"))):
            path = f"spec.configPatches[{index}].patch.operation"
            patch, applied = config.get("patch"), text(config.get("applyTo"))
            if not isinstance(patch, dict):
                break
            operation, name = text(patch.get("operation")), _name(config, patch)
            if operation in ("ADD", "REMOVE") and applied in _NOT_ADDED:
                code = "IST0153" if operation == "ADD" else "IST0154"
                yield about(one, code, f"{operation} is ignored with applyTo {applied}", path)
            elif operation == "REPLACE" and applied not in _REPLACED:
                message = f"REPLACE is for {', '.join(_REPLACED)}, not for {applied}"
                yield about(one, "IST0152", message, path)
            elif operation in _RELATIVE and not priority:
                code = "IST0155" if name in versioned else "IST0151"
                message = "depends on the order of EnvoyFilters: set a priority"
                if code == "IST0155":
                    message += ", as other patches of the filter are of one proxy version"
                yield about(one, code, message, path)
            if record(record(config.get("match")).get("proxy")).get("proxyVersion"):
                versioned.add(name)


def _name(config: Mapping[str, Any], patch: Mapping[str, Any]) -> str:
    """The filter that a patch is about."""
    value = record(patch.get("value"))
    if not value or value.get("name") is not None:
        return text(value.get("name"))
    chain = record(record(record(config.get("match")).get("listener")).get("filterChain"))
    return text(record(chain.get("filter")).get("name"))
