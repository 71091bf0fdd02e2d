"""The mesh config of ConfigMap `istio`, as it is followed."""

import json

from meshbus_config.kubernetes.objects import read_mesh_config


def test_it_is_protobuf_json() -> None:
    networks = "networks: {a: {gateways: [{address: 10.0.0.1, port: '15443', locality: r}]}}"
    mesh = "access_log_encoding: 1\ndefaultConfig: {tracing: {sampling: '5'}}"
    body = {"metadata": {"name": "istio"}, "data": {"mesh": mesh, "meshNetworks": networks}}
    read = read_mesh_config(json.dumps(body).encode())
    assert not read.problems
    assert read.spec == {
        "accessLogEncoding": "JSON",
        "defaultConfig": {"tracing": {"sampling": 5.0}},
    }
    assert read.networks is not None
    (gateway,) = read.networks.row.spec["networks"]["a"]["gateways"]
    assert gateway["port"] == 15443
