"""Metrics of the telemetry service, read as Prometheus would."""

import json
from collections import Counter

import httpx
from prometheus_client.parser import text_string_to_metric_families

from meshbus.local.home import Home, HomeError


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self._samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def total(self, name: str, label: str) -> Counter[str]:
        """The samples of a metric, added up by one label."""
        found: Counter[str] = Counter()
        for sample in self._samples:
            if sample.name == name:
                found[sample.labels.get(label, "")] += int(sample.value)
        return found


def metrics_of(home: Home) -> Metrics:
    """Scrape the telemetry service of a home.

    Raises:
        HomeError: It does not answer.
    """
    try:
        about = json.loads((home.services / "admin-telemetry.json").read_text())
        answer = httpx.get(f"http://{about['address']}/metrics", trust_env=False, timeout=5)
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise HomeError(f"the telemetry service does not answer: {error}") from error
    return Metrics(answer.text)
