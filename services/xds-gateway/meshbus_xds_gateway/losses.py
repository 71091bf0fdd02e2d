"""What of people's objects has no effect, told to them: as losses of the report."""

from meshbus.compile.envoy_filter import MATCHES_NOTHING
from meshbus.compile.findings import Finding
from meshbus.model.keys import Key
from meshbus.model.status import ConfigLoss
from meshbus_xds_gateway.classes import Classes

MAX_LOSSES = 200
_MAX_MESSAGE = 500


def object_key(key: Key) -> str:
    """`cfg.virtualservices/default/reviews`."""
    return f"{key.table}/{key.namespace}/{key.name}"


class Losses:
    """Keeps the losses of the present classes, counted anew only when they have moved."""

    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self._version = -1
        self._sequence = 0
        self._held: list[ConfigLoss] = []

    def at(self, sequence: int) -> list[ConfigLoss]:
        """The losses, in order of object; `sequence`: the model version of the classes."""
        if self._classes.version != self._version:
            self._version, self._sequence = self._classes.version, sequence
            self._held = self._counted(sequence)
        elif sequence != self._sequence and self._held:
            # They hold of the newer version as well: nobody found anything else in it.
            self._sequence = sequence
            self._held = [
                ConfigLoss(o.object_key, o.path, o.message, o.proxies, o.example, sequence)
                for o in self._held
            ]
        return self._held

    def _counted(self, sequence: int) -> list[ConfigLoss]:
        counts: dict[Finding, int] = {}
        examples: dict[Finding, str] = {}
        for held, finding in self._classes.findings():
            if finding.object.plane != "cfg" or not held.members:
                continue
            counts[finding] = counts.get(finding, 0) + len(held.members)
            first = min(client.id for client in held.members)
            examples[finding] = min(first, examples.get(finding, first))
        out = []
        for finding in sorted(counts):
            patch = finding.message == MATCHES_NOTHING
            if patch and counts[finding] < self._classes.followers(finding.object):
                continue  # it matches something elsewhere, which is all that a patch is for
            out.append(
                ConfigLoss(
                    object_key(finding.object),
                    finding.path,
                    finding.message[:_MAX_MESSAGE],
                    counts[finding],
                    examples[finding],
                    sequence,
                )
            )
            if len(out) == MAX_LOSSES:
                break
        return out
