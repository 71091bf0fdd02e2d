"""What machines say of themselves: what is refused, and what their entries say."""

from typing import Any

import pytest
from meshbus_config.errors import ApiError
from meshbus_config.machine_entries import Beat, check, entry_document
from meshbus_config.machine_users import Machine

from meshbus.compile.registry.instances import instance_of_entry
from meshbus.model.rows import ConfigObject

MACHINE = Machine("shop", "vm", "vm-1", "vm")


def object_of(kind: str, spec: dict[str, Any], **metadata: Any) -> ConfigObject:
    return ConfigObject(
        api_version="networking.istio.io/v1",
        kind=kind,
        namespace="shop",
        name="vm",
        uid="u",
        generation=1,
        created=1.0,
        spec=spec,
        **metadata,
    )


GROUP = object_of("WorkloadGroup", {"template": {"serviceAccount": "vm"}})


@pytest.mark.parametrize(
    ("beat", "says"),
    [
        ({"address": "vm.example"}, "address: 'vm.example' is no address"),
        ({"further_addresses": ["x"]}, r"furtherAddresses\[0\]: 'x' is no address"),
        ({"further_addresses": ["10.0.0.2"]}, "one of each family"),
        ({"further_addresses": ["fd00::1", "fd00::2"]}, "one of each family"),
        ({"application_address": "x"}, "applicationAddress: 'x' is no address"),
        ({"group": "other"}, "the machine is of group vm"),
    ],
)
def test_a_beat_that_makes_no_entry_is_refused(beat: dict[str, Any], says: str) -> None:
    with pytest.raises(ApiError, match=says):
        check(MACHINE, GROUP, Beat(**{"group": "vm", "address": "10.0.0.1", **beat}))


def test_a_machine_of_both_families_is_an_instance_of_both() -> None:
    beat = Beat("vm", "fd00::1", ["10.0.0.1"], capture="proxy", http_proxy_port=15080)
    check(MACHINE, GROUP, beat)
    document = entry_document(MACHINE, GROUP, beat)
    notes = document["metadata"]["annotations"]
    entry = object_of("WorkloadEntry", document["spec"], annotations=notes)
    instance = instance_of_entry(entry, "Kubernetes", None)
    assert instance is not None
    assert instance.addresses == ["fd00::1", "10.0.0.1"]
    assert instance.dual_stack
    assert instance.http_proxy_address == "fd00::1"
