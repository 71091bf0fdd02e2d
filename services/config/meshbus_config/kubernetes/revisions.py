"""The control planes of a cluster that share our model, and their tags: as the configurations of
their injection webhooks say.

Source: Istio, "Stable revision labels": a tag is a MutatingWebhookConfiguration with the labels
`istio.io/tag` and `istio.io/rev`.
"""

from collections.abc import Callable, Mapping

import msgspec

from meshbus.kube.reflector import Name, Source
from meshbus.model.revisions import REVISION_LABEL
from meshbus.model.rows import ConfigObject

TAG_LABEL = "istio.io/tag"
PART_OF_LABEL, PART_OF = "app.kubernetes.io/part-of", "meshbus"
WEBHOOK_CONFIGURATIONS = Source(
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", labels=REVISION_LABEL
)


class _Metadata(msgspec.Struct):
    labels: dict[str, str] = {}


class WebhookLabels(msgspec.Struct):
    """Of a MutatingWebhookConfiguration, as far as it is read."""

    metadata: _Metadata


read_webhook_labels = msgspec.json.Decoder(WebhookLabels).decode


class Revisions:
    """Whose an object is. A sink of webhook configurations."""

    def __init__(self, own: str, changed: Callable[[], None]) -> None:
        """
        Args:
            own: The revision that we are.
            changed: Called when a revision or a tag has come, gone or moved.
        """
        self.own = own
        self._changed = changed
        self._held: dict[str, Mapping[str, str]] = {}
        self.tags: dict[str, str] = {}
        """The revision of each tag."""
        self.known: frozenset[str] = frozenset({own})
        """Revisions that share our model."""

    def put(self, name: Name, value: WebhookLabels) -> None:
        """A configuration is there."""
        self._held[name[1]] = value.metadata.labels
        self._settle()

    def delete(self, name: Name) -> None:
        """It is gone."""
        if self._held.pop(name[1], None) is not None:
            self._settle()

    def malformed(self, name: Name, error: str) -> None:
        """One that cannot be read says nothing new."""

    def _settle(self) -> None:
        before = (self.known, self.tags)
        ours = [one for one in self._held.values() if one.get(PART_OF_LABEL) == PART_OF]
        self.known = frozenset({self.own, *(one[REVISION_LABEL] for one in ours)})
        self.tags = {
            one[TAG_LABEL]: one[REVISION_LABEL]
            for _, one in sorted(self._held.items())
            if one.get(TAG_LABEL)
        }
        if before != (self.known, self.tags):
            self._changed()

    def named(self, label: str) -> str:
        """The revision that a label names; a revision's own name comes before a tag of that name.
        Empty for an empty one: all of them."""
        return label if label in self.known else self.tags.get(label, label)

    def is_ours(self, labels: Mapping[str, str]) -> bool:
        """Whether we act on an object with these labels."""
        return self.named(labels.get(REVISION_LABEL, "")) in ("", self.own)

    def in_model(self, row: ConfigObject) -> ConfigObject | None:
        """The object as the model has it, labelled by revision and not by tag; None: it is for a
        control plane that is none of ours."""
        label = row.labels.get(REVISION_LABEL, "")
        revision = self.named(label)
        if revision and revision not in self.known:
            return None
        if revision == label:
            return row
        return msgspec.structs.replace(row, labels={**row.labels, REVISION_LABEL: revision})
