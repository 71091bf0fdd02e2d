"""Objects that are left out where Envoys refuse what they make.

Only Envoy knows what it refuses, so what is left out is found out by who delivers (`xds-gateway`)
and read here, as rows of the table `quarantine.KIND`. The rows of an object that has changed since
say nothing.
"""

import hashlib

import msgspec

from meshbus.compile.engine import Reader
from meshbus.compile.proxy_keys import ProxyKeys
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject, Place, Quarantine

EVERYTHING = "*"
"""Instead of the name of a resource: the object is left out of all of a type."""
PLANE = "quarantine"
LEFT_OUT = "is left out: Envoy refuses it"

LeftOut = tuple[tuple[Key, tuple[tuple[str, frozenset[str]], ...]], ...]
"""Objects, and by type URL the names of resources that each is left out of."""


def quarantine_key(key: Key, place: Place) -> Key:
    """Where it says what an object is left out of at a place: what changes at one concerns no
    other."""
    return key._replace(plane=PLANE, shard="/".join(place))


def revision_of(row: ConfigObject) -> str:
    """Tells what people wrote from what they wrote before: 16 characters."""
    told = (row.uid, row.generation, row.labels, row.annotations, row.spec)
    data = msgspec.msgpack.encode(told, order="deterministic")
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def place_of(proxy: ProxyKeys) -> Place:
    """Proxies of one place take and refuse the same, and lose the same by it."""
    return (proxy.namespace, proxy.workload)


def left_out(reader: Reader, keys: tuple[Key, ...], place: Place) -> LeftOut:
    """Node: which of these objects are left out at a place, and of what."""
    out = []
    for key in keys:
        held = reader.get(quarantine_key(key, place))
        if not isinstance(held, Quarantine):
            continue
        row = reader.get(key)
        if isinstance(row, ConfigObject) and held.revision == revision_of(row):
            out.append((key, tuple(sorted(held.by_type.items()))))
    return tuple(out)


def told(names: frozenset[str]) -> str:
    """What is said of an object that is left out."""
    if EVERYTHING in names:
        return LEFT_OUT
    shown = sorted(names)
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return f"is left out of {', '.join(shown[:3])}{more}: Envoy refuses it there"
