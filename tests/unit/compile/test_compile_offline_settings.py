"""Where an offline world has its mesh config from."""

import pytest

from meshbus.compile.engine import Engine
from meshbus.compile.offline import world_of_documents
from meshbus.compile.proxy_headers import headers_of
from meshbus.compile.settings import mesh
from meshbus.validate import validate_object


def config_map(text: str, name: str = "istio", namespace: str = "istio-system"):
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"mesh": text}}


def mesh_config(**spec):
    metadata = {"name": "mesh"}
    return {
        "apiVersion": "mesh.istio.io/v1alpha1",
        "kind": "MeshConfig",
        "metadata": metadata,
        "spec": spec,
    }


MAPPED = config_map("defaultConfig: {gatewayTopology: {numTrustedProxies: 2}}")
WRITTEN = mesh_config(defaultConfig={"gatewayTopology": {"numTrustedProxies": 3}})
GIVEN = {"defaultConfig": {"gatewayTopology": {"numTrustedProxies": 4}}}


@pytest.mark.parametrize(
    ("documents", "given", "hops"),
    [
        ([MAPPED], None, 2),
        ([MAPPED, WRITTEN], None, 3),
        ([WRITTEN, MAPPED], None, 3),
        ([MAPPED, WRITTEN], GIVEN, 4),
        ([MAPPED], {}, 0),
        ([config_map("a: [")], None, 0),
        ([config_map("text")], None, 0),
        ([config_map(MAPPED["data"]["mesh"], namespace="default")], None, 0),
    ],
)
def test_mesh_config_is_given_or_an_object_or_in_the_config_map(documents, given, hops):
    engine = Engine(world_of_documents(documents, given))
    assert headers_of(engine.get(mesh).proxy_config).trusted_hops == hops


def test_a_mesh_config_that_a_standalone_mesh_does_not_read_is_warned_of():
    assert [w.path for w in validate_object(MAPPED).warnings] == ["data[mesh]"]
    assert not validate_object(config_map("a: b", "other")).warnings
