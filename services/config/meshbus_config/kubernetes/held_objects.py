"""What a cluster has, by key, kind and namespace; and for each who cares, what has changed."""

from collections.abc import Iterable, Iterator, Mapping

from meshbus.model.keys import Key
from meshbus_config.kubernetes.objects import Judged

_NONE: Mapping[Key, Judged] = {}


class HeldObjects(Mapping[Key, Judged]):
    """Objects by key. A look at one kind or one namespace costs what is in it."""

    def __init__(self) -> None:
        self._all: dict[Key, Judged] = {}
        self._tables: dict[str, dict[Key, Judged]] = {}
        self._namespaces: dict[str, dict[Key, Judged]] = {}

    def __getitem__(self, key: Key) -> Judged:
        return self._all[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def of_table(self, table: str) -> Mapping[Key, Judged]:
        """Those of one kind: `cfg.virtualservices`."""
        return self._tables.get(table, _NONE)

    def of_namespace(self, namespace: str) -> Mapping[Key, Judged]:
        """Those of one namespace; empty: those that have none."""
        return self._namespaces.get(namespace, _NONE)

    def namespaces(self) -> Iterable[str]:
        """Namespaces that have any."""
        return self._namespaces.keys()

    def put(self, key: Key, judged: Judged) -> None:
        """One object as it is now."""
        self._all[key] = judged
        self._tables.setdefault(key.table, {})[key] = judged
        self._namespaces.setdefault(key.namespace, {})[key] = judged

    def remove(self, key: Key) -> bool:
        """One object is gone; whether it was there."""
        if self._all.pop(key, None) is None:
            return False
        for index, value in ((self._tables, key.table), (self._namespaces, key.namespace)):
            del index[value][key]
            if not index[value]:
                del index[value]
        return True


class Inbox:
    """Keys that have changed since they were taken last."""

    def __init__(self) -> None:
        self._keys: set[Key] = set()

    def put(self, key: Key) -> None:
        """It has changed."""
        self._keys.add(key)

    def take(self) -> set[Key]:
        """Those that have changed, once."""
        taken, self._keys = self._keys, set()
        return taken
