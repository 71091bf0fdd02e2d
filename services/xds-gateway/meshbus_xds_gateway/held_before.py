"""What clients have that come back: `initial_resource_versions`, against what they should have.

A client that has all of it uploads a name and a version of everything, in an order of its own; with
resources of its workload alone among thousands that it shares no two uploads are the same bytes.
They are compared as protobuf holds them, without a text for each name and version in Python.
"""

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from meshbus.compile.layers import Layer, remembered
from meshbus.compile.names import LOCAL_CLUSTER
from meshbus_xds_gateway.by_name import UnknownContent
from meshbus_xds_gateway.content import Content, NameSet, content_of, names_of


class KnownVersions(Mapping[str, str]):
    """Versions by name, as uploaded."""

    __slots__ = ("__weakref__", "_message", "_read", "_same")

    def __init__(self, message: Any) -> None:
        """Takes over a `DeltaDiscoveryRequest`: what else it says is cleared."""
        for field, _ in message.ListFields():
            if field.name != "initial_resource_versions":
                message.ClearField(field.name)
        self._message = message
        self._read: dict[str, str] | None = None
        """As Python reads it, where that was needed."""
        self._same: weakref.ref[Content] | None = None
        """The last content of which these were the versions; equal uploads may be one object."""

    def __getitem__(self, name: str) -> str:
        return self._versions()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._versions())

    def __len__(self) -> int:
        return len(self._message.initial_resource_versions)

    def _versions(self) -> dict[str, str]:
        if self._read is None:
            self._read = dict(self._message.initial_resource_versions)
        return self._read

    def are_those_of(self, content: Content) -> bool:
        """They are the versions of everything in a content, and of nothing else."""
        if self._same is not None and self._same() is content:
            return True
        if len(self) != len(content):
            return False
        if not content.layers:
            return True
        held = self._message.initial_resource_versions
        shared = max(content.layers, key=len)
        # Layers of one workload are small; the large one is asked as a whole, without them.
        own = {n: r.version for x in content.layers if x is not shared for n, r in x.items()}
        if any(held.get(name) != version for name, version in own.items()):
            return False
        for name in own:
            del held[name]
        same: bool = self._message == _upload_of(shared)
        held.update(own)
        if same:
            self._same = weakref.ref(content)
        return same


def _upload_of(layer: Layer) -> Any:
    """What a client uploads that has a layer."""
    return remembered(
        layer.derived,
        "upload",
        (),
        lambda: discovery_pb2.DeltaDiscoveryRequest(
            initial_resource_versions={n: r.version for n, r in layer.items()}
        ),
    )


def _as_uploaded(known: Mapping[str, str]) -> KnownVersions:
    if isinstance(known, KnownVersions):
        return known
    return KnownVersions(discovery_pb2.DeltaDiscoveryRequest(initial_resource_versions=dict(known)))


def held_by(type_url: str, wanted: Content, known: Mapping[str, str]) -> Content:
    """The content of a client that takes all of a type; `wanted` itself when it has that."""

    def compare() -> Content:
        found = {name: wanted.get(name) for name in known}
        return content_of(
            (
                Layer(
                    (
                        name,
                        resource
                        if resource is not None and resource.version == known[name]
                        else UnknownContent(type_url, name, known[name]),
                    )
                    for name, resource in found.items()
                ),
            )
        )

    upload = _as_uploaded(known)
    if upload.are_those_of(wanted):
        return wanted
    return remembered(wanted.derived, "held", (upload,), compare)


def covered_by(wanted: Content, known: Mapping[str, str], names: NameSet) -> NameSet:
    """Those of the names of which a client has what it should have. An Envoy asks for clusters once
    it knows about its own kind: who has endpoints of some was told before that there is none."""
    alone = LOCAL_CLUSTER in names and LOCAL_CLUSTER not in wanted

    def compare() -> NameSet:
        kept = []
        for name in names:
            resource = wanted.get(name)
            if resource is None:
                had = alone and name == LOCAL_CLUSTER and name not in known
            else:
                had = known.get(name) == resource.version
            if had:
                kept.append(name)
        return names if len(kept) == len(names) else names_of(kept)

    upload = _as_uploaded(known)
    same = len(names) == len(wanted) + alone and upload.are_those_of(wanted)
    if same and names >= wanted.names():
        return names
    return remembered(wanted.derived, "covered", (upload, names), compare)
