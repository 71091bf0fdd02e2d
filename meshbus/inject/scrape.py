"""Prometheus' annotations of a pod: the application's metrics are served with the proxy's.

Source: https://istio.io/latest/docs/ops/integrations/prometheus/#option-1-metrics-merging
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from meshbus.inject.annotations import MERGE_METRICS, SCRAPE_TARGETS, truth
from meshbus.inject.status_listener import METRICS_PATH, Scrape

SCRAPE_VARIABLE = "ISTIO_PROMETHEUS_ANNOTATIONS"
_SCRAPE, _PORT, _PATH = "prometheus_io_scrape", "prometheus_io_port", "prometheus_io_path"


def merge_scraping(
    annotations: dict[str, str], port: int, *, by_default: bool
) -> dict[str, str] | None:
    """Point the annotations to the proxy, in place.

    Args:
        port: Where the proxy serves merged metrics.
        by_default: What the mesh says of merging.

    Returns:
        The application's own: `scrape`, `port`, `path`, `targets`; None if there are none, or the
        pod stays as it is.
    """
    if not _wanted(annotations, by_default):
        return None
    found = {_same(name): value for name, value in annotations.items()}
    if found.get(_PORT) == str(port):
        # Somebody who knows the proxy's port wrote it.
        return None
    own = {
        word: found[name]
        for word, name in (("scrape", _SCRAPE), ("path", _PATH), ("port", _PORT))
        if found.get(name)
    }
    if targets := annotations.get(SCRAPE_TARGETS):
        own["targets"] = targets
    for name in [name for name in annotations if _same(name) in (_SCRAPE, _PORT, _PATH)]:
        del annotations[name]
    annotations.update(
        {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(port),
            "prometheus.io/path": METRICS_PATH,
        }
    )
    return own or None


def restore_scraping(annotations: dict[str, str], own: Mapping[str, Any] | None) -> None:
    """Undo `merge_scraping`, in place."""
    if annotations.get("prometheus.io/path") != METRICS_PATH:
        return
    for word in ("scrape", "port", "path"):
        del annotations[f"prometheus.io/{word}"]
        if own and own.get(word):
            annotations[f"prometheus.io/{word}"] = str(own[word])


def scrapes_of(own: Mapping[str, str] | None) -> list[Scrape]:
    """What the proxy adds to its own metrics."""
    if not own:
        return []
    scrapes = []
    for part in filter(None, own.get("targets", "").split(",")):
        port, _, path = part.strip().partition(":")
        scrapes.append(Scrape(int(port), path or "/metrics"))
    port = own.get("port", "")
    if not scrapes and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535:
        path = own.get("path") or "/metrics"
        scrapes.append(Scrape(int(port), path if path.startswith("/") else f"/{path}"))
    return scrapes


def scraping_text(own: Mapping[str, str]) -> str:
    """The value of the variable."""
    return json.dumps(own, separators=(",", ":"))


def _wanted(annotations: Mapping[str, str], by_default: bool) -> bool:
    for name, value in annotations.items():
        if _same(name) == _SCRAPE and (wish := truth(value)) is not None and not wish:
            return False
    wish = truth(annotations.get(MERGE_METRICS, ""))
    return by_default if wish is None else wish


def _same(name: str) -> str:
    """Prometheus takes `prometheus.io/port` and `prometheus_io_port` for one."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)
