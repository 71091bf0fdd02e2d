"""Destinations of routes and their weights."""

from collections.abc import Sequence

from msgspec import UnsetType

from meshbus.api.networking.virtual_service import Destination
from meshbus.validate.malformed import independent
from meshbus.validate.names import is_label, wildcard_domain_problem
from meshbus.validate.report import Findings


@independent
def check_destination(destination: Destination | UnsetType, path: str, out: Findings) -> None:
    """Where requests go."""
    if isinstance(destination, UnsetType):
        return
    if destination.host == "*":
        out.error(f"{path}.host", "invalid destination host *")
    elif problem := wildcard_domain_problem(destination.host):
        out.error(f"{path}.host", problem)
    if destination.subset and not is_label(destination.subset):
        out.error(f"{path}.subset", f"{destination.subset!r} is not the name of a subset")
    if not isinstance(destination.port, UnsetType):
        number = destination.port.number
        if not 1 <= number <= 65535:
            out.error(f"{path}.port.number", f"{number}: port must be between 1-65535")


@independent
def check_weighted(
    destinations: Sequence[tuple[Destination, int]], path: str, out: Findings
) -> None:
    """Destinations with their weights."""
    for index, (destination, weight) in enumerate(destinations):
        at = f"{path}[{index}]"
        check_destination(destination, f"{at}.destination", out)
        if weight < 0:
            out.error(f"{at}.weight", f"weight {weight} < 0")
    if len(destinations) > 1 and sum(weight for _, weight in destinations) == 0:
        out.error(path, "total destination weight = 0")
