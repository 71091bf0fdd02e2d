"""Which Secrets and ConfigMaps the objects of a cluster name. An object is looked through when it
changes, not when another does."""

from collections import Counter

from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus_config.kubernetes.objects import CredentialName, credentials_of


class NamedCredentials:
    """Names, and how many objects name each."""

    def __init__(self) -> None:
        self._of: dict[Key, frozenset[CredentialName]] = {}
        self._counts: Counter[CredentialName] = Counter()
        self._moved = False

    def put(self, key: Key, row: ConfigObject | None) -> None:
        """What an object says now; None: it is gone, or not ours."""
        named = credentials_of(iter((row,))) if row is not None else frozenset()
        before = self._of.pop(key, frozenset())
        if named:
            self._of[key] = named
        for name in named - before:
            self._counts[name] += 1
            self._moved |= self._counts[name] == 1
        for name in before - named:
            self._counts[name] -= 1
            if not self._counts[name]:
                del self._counts[name]
                self._moved = True

    def take_moved(self) -> list[CredentialName] | None:
        """All names in order, when they are others than when this was asked last; else None."""
        if not self._moved:
            return None
        self._moved = False
        return sorted(self._counts)
