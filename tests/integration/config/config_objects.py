"""Objects that the tests write."""

from typing import Any


def reviews_service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "reviews"},
        "spec": {
            "ports": [{"name": "http", "port": 9080, "protocol": "TCP"}],
            "selector": {"app": "reviews"},
        },
    }


def reviews_virtual_service() -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "reviews", "labels": {"team": "books"}},
        "spec": {
            "hosts": ["reviews"],
            "http": [{"route": [{"destination": {"host": "reviews", "subset": "v1"}}]}],
        },
    }
