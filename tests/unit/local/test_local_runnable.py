"""What a mesh on one machine takes of manifests."""

from meshbus.local.manifests import Document
from meshbus.local.runnable import split_runnable


def test_containers_are_left_out_and_said_so() -> None:
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}
    documents = [Document("all.yaml", 0, 1, deployment), Document("all.yaml", 1, 9, service)]
    taken, left = split_runnable(documents)
    assert taken == documents[1:]
    assert left[0].startswith("all.yaml:1: Deployment d is left out")
