"""Templates for applications that speak xDS themselves, through gRPC.

`grpc-simple` writes gRPC's bootstrap, which calls the gateway without a proxy of its own.
`grpc-agent` puts an Envoy in the place of Istio's agent: it carries the application's xDS stream,
over a socket in a volume they share, to the gateway, with TLS and the pod's token.
Source: https://istio.io/latest/blog/2021/proxyless-grpc/ and gRPC A27.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from meshbus.inject.bootstrap import ROOTS_FILE, ROOTS_FOLDER, TOKEN_FILE, TOKEN_FOLDER
from meshbus.inject.context import PodContext
from meshbus.inject.sidecar import grpc_proxy_overlay, token_volumes
from meshbus.inject.values import text

_FOLDER = "/var/lib/grpc/data"
_FILE = f"{_FOLDER}/bootstrap.json"
_XDS_FOLDER = "/etc/istio/xds"
XDS_SOCKET = f"{_XDS_FOLDER}/XDS"


def grpc_bootstrap(
    context: PodContext, server: Mapping[str, Any], labels: Mapping[str, str]
) -> str:
    """gRPC's bootstrap; `$(NAME)` is what the pod turns out to be."""
    namespace = "$(POD_NAMESPACE)"
    document = {
        "xds_servers": [{**server, "server_features": ["xds_v3"]}],
        "node": {
            "id": f"sidecar~$(INSTANCE_IP)~$(POD_NAME).{namespace}~{namespace}.svc.cluster.local",
            "metadata": {
                "GENERATOR": "grpc",
                "NAMESPACE": namespace,
                "SERVICE_ACCOUNT": "$(SERVICE_ACCOUNT)",
                "INSTANCE_IPS": "$(INSTANCE_IP)",
                "LABELS": {**context.labels, **labels},
                "CLUSTER_ID": context.cluster,
            },
        },
        "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
    }
    return json.dumps(document, separators=(",", ":"))


def grpc_simple_overlay(context: PodContext) -> dict[str, Any]:
    """Template `grpc-simple`."""
    host, port = context.xds_gateway
    # The gateway serves nobody without a token. Source: gRFC A97.
    roots = {"ca_certificate_file": f"{ROOTS_FOLDER}/{ROOTS_FILE}"}
    token = {"jwt_token_file": f"{TOKEN_FOLDER}/{TOKEN_FILE}"}
    server = {
        "server_uri": f"dns:///{host}:{port}",
        "channel_creds": [{"type": "tls", "config": roots}],
        "call_creds": [{"type": "jwt_token_file", "config": token}],
    }
    document = grpc_bootstrap(context, server, {})
    volumes, mounts = token_volumes(context)
    writer = {
        "name": "grpc-bootstrap-init",
        "image": text(context.value("proxy_init", "grpcImage")) or "busybox:1.37",
        "env": [
            *_fields(),
            # Through the environment, whose `$(NAME)` are replaced: nothing is quoted twice.
            {"name": "GRPC_BOOTSTRAP", "value": document},
        ],
        "command": ["sh", "-c", f'printf "%s" "$GRPC_BOOTSTRAP" > {_FILE}'],
        "volumeMounts": [{"name": "grpc-io-proxyless-bootstrap", "mountPath": _FOLDER}],
    }
    return {
        "metadata": {"annotations": _no_rewriting()},
        "spec": {
            "initContainers": [writer],
            "containers": [
                _application(name, "grpc-io-proxyless-bootstrap", _FOLDER, _FILE, mounts=mounts)
                for name in context.app_containers
            ],
            "volumes": [{"name": "grpc-io-proxyless-bootstrap", "emptyDir": {}}, *volumes],
        },
    }


def grpc_agent_overlay(context: PodContext) -> dict[str, Any]:
    """Template `grpc-agent`."""
    overlay = grpc_proxy_overlay(context, XDS_SOCKET)
    server = {"server_uri": f"unix://{XDS_SOCKET}", "channel_creds": [{"type": "insecure"}]}
    document = grpc_bootstrap(context, server, overlay["metadata"]["labels"])
    applications = [
        _application(name, "istio-xds", _XDS_FOLDER, "", document)
        for name in context.app_containers
    ]
    overlay["spec"]["containers"] = [*applications, *overlay["spec"]["containers"]]
    overlay["metadata"]["annotations"].update(_no_rewriting())
    return overlay


def _no_rewriting() -> dict[str, str]:
    return {"sidecar.istio.io/rewriteAppHTTPProbers": "false"}


def _fields() -> list[dict[str, Any]]:
    paths = {
        "INSTANCE_IP": "status.podIP",
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "SERVICE_ACCOUNT": "spec.serviceAccountName",
    }
    return [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in paths.items()
    ]


def _application(
    name: str,
    volume: str,
    folder: str,
    file: str,
    document: str = "",
    mounts: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    where: list[dict[str, Any]] = [{"name": "GRPC_XDS_BOOTSTRAP", "value": file}]
    if document:
        where = [*_fields(), {"name": "GRPC_XDS_BOOTSTRAP_CONFIG", "value": document}]
    return {
        "name": name,
        "env": [*where, {"name": "GRPC_XDS_EXPERIMENTAL_SECURITY_SUPPORT", "value": "true"}],
        "volumeMounts": [{"name": volume, "mountPath": folder}, *mounts],
    }
