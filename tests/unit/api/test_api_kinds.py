"""The registry of kinds agrees with itself and with those who name kinds."""

import msgspec
import pytest

from meshbus.api.kinds import (
    KindInfo,
    all_kinds,
    by_name,
    by_plural,
    groups,
    kind_of,
    plural_of,
    table_of,
)
from meshbus.compile.offline import object_of_document


def test_names_are_unique() -> None:
    places = [(i.group, v, i.plural) for i in all_kinds() for v in i.versions]
    assert len(places) == len(set(places))
    short = [name for i in all_kinds() for name in i.short_names]
    assert len(short) == len(set(short))
    assert not set(short) & {i.plural for i in all_kinds()}


def test_kinds_of_one_plural_have_tables_of_their_own() -> None:
    tables = [info.table for info in all_kinds()]
    assert len(tables) == len(set(tables))
    istio = kind_of("networking.istio.io/v1", "Gateway")
    assert istio is not None
    assert istio.table == "gateways"
    other = msgspec.structs.replace(istio, group="gateway.networking.k8s.io")
    assert other.table == "gateways.gateway.networking.k8s.io"
    assert table_of("networking.istio.io/v1beta1", "Gateway") == "gateways"
    assert table_of("example.com/v1", "Thing") == "things"


@pytest.mark.parametrize("info", all_kinds(), ids=lambda i: f"{i.group}/{i.kind}")
def test_every_kind_is_found(info: KindInfo) -> None:
    assert info.versions[0] == info.version
    for version in info.versions:
        assert by_plural(info.group, version, info.plural) is info
        assert kind_of(f"{info.group}/{version}" if info.group else version, info.kind) is info
    assert by_name(f"{info.kind}.{info.group}") is info
    assert info.plural == plural_of(info.kind)
    shape = info.shape()
    assert shape is None or issubclass(shape, msgspec.Struct)


@pytest.mark.parametrize("info", all_kinds(), ids=lambda i: f"{i.group}/{i.kind}")
def test_offline_compile_puts_objects_where_the_api_does(info: KindInfo) -> None:
    document = {
        "apiVersion": info.api_version,
        "kind": info.kind,
        "metadata": {"name": "a", "namespace": "b"},
    }
    assert object_of_document(document).namespace == ("b" if info.namespaced else "")


def test_istio_is_served_in_all_its_versions() -> None:
    assert groups()["networking.istio.io"] == ("v1", "v1beta1", "v1alpha3")
    vs = by_name("vs")
    assert vs is not None
    assert vs.kind == "VirtualService"
    assert kind_of("networking.istio.io/v1", "Nothing") is None


def test_kinds_of_the_platform_are_known_and_not_served() -> None:
    deployment = kind_of("apps/v1", "Deployment")
    assert deployment is not None
    assert not deployment.served
    assert by_plural("apps", "v1", "deployments") is None
    assert "apps" not in groups()
