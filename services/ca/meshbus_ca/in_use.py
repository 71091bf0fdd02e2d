"""Which certificates may still be in use."""

from collections.abc import Iterable
from dataclasses import dataclass

from meshbus.model.requests import Issued


@dataclass(frozen=True, slots=True)
class _Leaf:
    root: str
    signer: str
    issued: float
    not_after: float


class InUse:
    """Remembers the latest certificate of each holder.

    What was issued before this process began is taken from the ledger (`complete`); until that is
    read, something is taken to be in use for as long as it may live.
    """

    def __init__(self, began: float, longest_s: float) -> None:
        """`longest_s`: no certificate lives longer."""
        self._leaves: dict[tuple[str, ...], _Leaf] = {}
        self._unknown_until = began + longest_s

    def complete(self, earlier: Iterable[Issued]) -> None:
        """All that was issued before this process began, oldest first."""
        since, self._leaves = self._leaves, {}
        for record in earlier:
            self.note(record)
        self._leaves.update(since)
        self._unknown_until = 0.0

    def note(self, record: Issued) -> None:
        """One was issued. A holder without a name (pod) keeps all of its certificates."""
        holder: tuple[str, ...] = (record.asker, record.pod, record.identity, record.subject)
        if not record.pod or record.asker == "csr":
            holder = (*holder, record.serial)
        self._leaves[holder] = _Leaf(record.root, record.signer, record.issued, record.not_after)

    def below(self, root: str, now: float) -> int:
        """Those below a root; one for all that is not known."""
        self.forget(now)
        known = sum(leaf.root == root for leaf in self._leaves.values())
        return known + (now < self._unknown_until)

    def signers(self, now: float) -> frozenset[str] | None:
        """Fingerprints of what has signed certificates in use; None: not all are known yet."""
        self.forget(now)
        if now < self._unknown_until:
            return None
        return frozenset(leaf.signer for leaf in self._leaves.values())

    def gateway_until(self, pod: str, now: float) -> float:
        """When the last certificate that a gateway was given for a workload ends."""
        ends = [
            leaf.not_after
            for (asker, name, *_), leaf in self._leaves.items()
            if asker == "xds-gateway" and name == pod
        ]
        return max([*ends, self._unknown_until if not ends else now])

    def workloads(self, now: float) -> bool:
        """A gateway holds certificates."""
        self.forget(now)
        return any(holder[0] == "xds-gateway" for holder in self._leaves)

    def services_before(self, moment: float, now: float) -> tuple[str, ...]:
        """Pods of services whose certificate, and with it their roots, is older than a moment."""
        self.forget(now)
        own = ("/sa/meshbus-policy", "/sa/meshbus-telemetry")
        unknown = ("issued before the ca started",) if now < self._unknown_until else ()
        return unknown + tuple(
            holder[1]
            for holder, leaf in self._leaves.items()
            if leaf.issued < moment and holder[2].endswith(own)
        )

    def forget(self, now: float) -> None:
        """Those that have ended."""
        ended = [holder for holder, leaf in self._leaves.items() if leaf.not_after <= now]
        for holder in ended:
            del self._leaves[holder]
