"""What clients have that come back: `initial_resource_versions`, compared once for all that upload
the same."""

from collections.abc import Mapping

from meshbus.compile.layers import Layer, remembered
from meshbus_xds_gateway.by_name import UnknownContent
from meshbus_xds_gateway.content import Content, NameSet, content_of, names_of


class KnownVersions(dict[str, str]):
    """Versions by name, as uploaded; equal uploads may be one object."""

    __slots__ = ("__weakref__",)


def held_by(type_url: str, wanted: Content, known: Mapping[str, str]) -> Content:
    """The content of a client that takes all of a type; `wanted` itself when it has that."""

    def compare() -> Content | None:
        if len(known) == len(wanted) and all(
            _versions(layer).items() <= known.items() for layer in wanted.layers
        ):
            return None
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

    upload = known if isinstance(known, KnownVersions) else KnownVersions(known)
    return remembered(wanted.derived, "held", (upload,), compare) or wanted


def _versions(layer: Layer) -> dict[str, str]:
    return remembered(
        layer.derived, "versions", (), lambda: {n: r.version for n, r in layer.items()}
    )


def covered_by(wanted: Content, known: Mapping[str, str], names: NameSet) -> NameSet:
    """Those of the names of which a client has what it should have."""

    def compare() -> NameSet:
        if (
            len(wanted.layers) == 1
            and known.keys() == names
            and known.items() <= _versions(wanted.layers[0]).items()
        ):
            return names
        kept = []
        for name in names:
            resource = wanted.get(name)
            if resource is not None and known.get(name) == resource.version:
                kept.append(name)
        return names if len(kept) == len(names) else names_of(kept)

    upload = known if isinstance(known, KnownVersions) else KnownVersions(known)
    return remembered(wanted.derived, "covered", (upload, names), compare)
