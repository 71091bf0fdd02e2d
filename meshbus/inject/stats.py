"""Which statistics Envoy keeps and how they are told apart, from annotations and ProxyConfig.

Source: https://istio.io/latest/docs/ops/configuration/telemetry/envoy-stats/
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from meshbus.api.mesh.proxy_config import MeshProxyConfig
from meshbus.inject import annotations as a

_ALWAYS = ("cluster_manager", "listener_manager", "server", "cluster.xds-gateway", "istio", "wasm")
"""Those that are kept in any case: the proxy's state, and the mesh's own metrics."""
_TO_END = (
    {"suffix": "downstream_cx_active"},
    {"suffix": "downstream_rq_active"},
    {"safe_regex": {"regex": r"cluster\.[iI]nbound.*\.upstream_rq_(active|total)"}},
)
"""Kept too: who is still connected tells whether a proxy may end."""


def stats_config(notes: Mapping[str, str], proxy: MeshProxyConfig) -> dict[str, Any]:
    """`stats_config` of the bootstrap; empty where all statistics are kept as Envoy keeps them."""
    matcher = proxy.proxy_stats_matcher
    given: Mapping[str, Any] = {} if matcher is UNSET else matcher
    prefixes = [*(given.get("inclusionPrefixes") or ()), *_words(notes, a.STATS_PREFIXES)]
    suffixes = [*(given.get("inclusionSuffixes") or ()), *_words(notes, a.STATS_SUFFIXES)]
    regexps = [*(given.get("inclusionRegexps") or ()), *_words(notes, a.STATS_REGEXPS)]
    config: dict[str, Any] = {}
    if prefixes or suffixes or regexps:
        patterns: list[dict[str, Any]] = [{"prefix": word} for word in (*_ALWAYS, *prefixes)]
        patterns += [*_TO_END, *({"suffix": word} for word in suffixes)]
        patterns += [{"safe_regex": {"regex": word}} for word in regexps]
        config["stats_matcher"] = {"inclusion_list": {"patterns": patterns}}
    names = [*proxy.extra_stat_tags, *_words(notes, a.EXTRA_TAGS)]
    if tags := [_tag(name) for name in dict.fromkeys(names) if name]:
        config["stats_tags"] = tags
    if buckets := json.loads(notes.get(a.STATS_BUCKETS, "{}")):
        config["histogram_bucket_settings"] = [
            {"match": {"prefix": prefix}, "buckets": numbers} for prefix, numbers in buckets.items()
        ]
    return config


def _words(notes: Mapping[str, str], name: str) -> list[str]:
    return [word.strip() for word in notes.get(name, "").split(",") if word.strip()]


def _tag(name: str) -> dict[str, str]:
    """What takes a tag out of the name of a statistic, as extensions of Istio write it there:
    `NAME=.=VALUE;.;`.

    Source: Istio, tools/packaging/common/envoy_bootstrap.json.
    """
    literal = re.sub(r"([.^$*+?()\[\]{}|\\])", r"\\\1", name)
    return {"tag_name": name, "regex": rf"({literal}=\.=(.*?);\.;)"}
