"""What of manifests a mesh on one machine can run."""

from collections.abc import Sequence

from meshbus.api.kinds import kind_of
from meshbus.local.manifests import Document


def split_runnable(documents: Sequence[Document]) -> tuple[list[Document], list[str]]:
    """Documents for the API, and a line for each that a mesh on one machine has no use for
    (Deployments and other kinds of a cluster)."""
    taken, left = [], []
    for document in documents:
        content = document.content
        info = kind_of(str(content.get("apiVersion", "")), str(content.get("kind", "")))
        if info is not None and not info.served:
            name = (content.get("metadata") or {}).get("name", "")
            left.append(
                f"{document.file}:{document.line}: {info.kind} {name} is left out: nothing here "
                "starts containers; describe the process as a Workload "
                "(standalone.meshbus.io/v1alpha1)"
            )
        else:
            taken.append(document)
    return taken, left
