"""Services ask for families of addresses that the mesh has."""

from typing import Any

import pytest
from meshbus_config.errors import ApiError
from meshbus_config.service_families import check_families

from meshbus.api.kinds import kind_of


def asked(families: tuple[str, ...], **spec: Any) -> list[str]:
    """Paths that are refused, and why."""
    info = kind_of("v1", "Service")
    assert info is not None
    try:
        check_families(info, {"metadata": {"name": "a"}, "spec": spec}, families)
    except ApiError as error:
        return [f"{cause.field}: {cause.message}" for cause in error.causes if error.code == 422]
    return []


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"ipFamilies": ["IPv6"]},
        {"ipFamilyPolicy": "SingleStack"},
        {"ipFamilyPolicy": "PreferDualStack"},
        {"type": "ExternalName", "externalName": "x", "ipFamilies": ["IPv4"]},
    ],
)
def test_what_is_there(spec: dict[str, Any]) -> None:
    assert asked(("IPv6",), **spec) == []


def test_what_is_not_there() -> None:
    both = {"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"}
    assert asked(("IPv4", "IPv6"), **both) == []
    assert asked(("IPv6",), **both) == [
        "spec.ipFamilies[1]: IPv4: this mesh has IPv6 alone",
        "spec.ipFamilyPolicy: RequireDualStack: this mesh has IPv6 alone",
    ]
