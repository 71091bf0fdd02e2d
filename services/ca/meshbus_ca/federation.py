"""Trust of other trust domains: what `caCertificates` of MeshConfig asks for, got and kept.

Roots that are given stand at once; bundles of endpoints are fetched again and again. What was got
last stays, however long its endpoint is away: only who takes the entry out takes the trust away.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import structlog
from prometheus_client import CollectorRegistry, Gauge

from meshbus.model.rows import MeshConfigRow, Trust
from meshbus.runtime.clock import Clock
from meshbus_ca.bundle_client import fetch
from meshbus_ca.bundles import Bundle, BundleError, joined, read_roots

EXTRA = "+"
"""Name of the row with further roots of the own trust domain."""
MIN_REFRESH_S = 1.0
RETRY_S, MAX_RETRY_S = 5.0, 300.0

log = structlog.get_logger("ca")


class Anchor(NamedTuple):
    """One entry of `caCertificates`."""

    pem: str
    url: str
    trust_domain: str
    """Empty: the own one."""


def anchors_of(spec: Mapping[str, Any]) -> tuple[Anchor, ...]:
    """Entries of a MeshConfig, one for each trust domain that they are for, and the authorities of
    its `defaultConfig`.

    Source: istio.mesh.v1alpha1 MeshConfig.CertificateData, ProxyConfig.caCertificatesPem.
    """
    found: dict[Anchor, None] = {}
    entries = spec.get("caCertificates")
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict):
            continue
        pem, url = str(entry.get("pem") or ""), str(entry.get("spiffeBundleUrl") or "")
        for domain in entry.get("trustDomains") or ("",):
            if pem or url:
                found[Anchor(pem, url, str(domain))] = None
    proxy = spec.get("defaultConfig")
    authorities = proxy.get("caCertificatesPem") if isinstance(proxy, dict) else None
    for pem in authorities if isinstance(authorities, list) else ():
        if pem and isinstance(pem, str):
            found[Anchor(pem, "", "")] = None
    return tuple(found)


class Got(NamedTuple):
    """The last answer of an endpoint."""

    bundle: Bundle
    at: float


class Problem(NamedTuple):
    """Why an endpoint gave nothing."""

    message: str
    since: float


class Federation:
    """Follows a MeshConfig; `rows` are those that should be there."""

    def __init__(
        self,
        clock: Clock,
        trust_domain: str,
        metrics: CollectorRegistry,
        changed: Callable[[], None],
        *,
        refresh_s: float,
        web_roots: str,
    ) -> None:
        """`refresh_s`: at most so long between two looks at an endpoint."""
        self._clock = clock
        self._trust_domain = trust_domain
        self._changed = changed
        self._refresh_s = refresh_s
        self._web_roots = web_roots
        self._anchors: tuple[Anchor, ...] = ()
        self._held: Mapping[str, Trust] = {}
        self._got: dict[Anchor, Got] = {}
        self._problems: dict[Anchor, Problem] = {}
        self._seen: dict[str, float] = {}
        self._tasks: dict[Anchor, asyncio.Task[None]] = {}
        self._age = Gauge(
            "meshbus_ca_bundle_fetched_seconds",
            "When the bundle of another trust domain was last got, seconds since the epoch.",
            ["trust_domain"],
            registry=metrics,
        )

    def follow(self, row: MeshConfigRow | None, held: Mapping[str, Trust]) -> None:
        """The mesh config now, and the rows that are there by name."""
        self._held = held
        anchors = anchors_of(row.spec) if row is not None else ()
        if anchors == self._anchors:
            return
        self._anchors = anchors
        for anchor in [a for a in self._tasks if a not in anchors]:
            self._tasks.pop(anchor).cancel()
            self._got.pop(anchor, None)
            self._problems.pop(anchor, None)
        for anchor in anchors:
            if anchor.url and anchor not in self._tasks:
                self._tasks[anchor] = asyncio.create_task(self._keep(anchor))

    async def run(self) -> None:
        """Until cancelled; ends what it has begun."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def rows(self) -> dict[str, Trust]:
        """Rows by name: the trust domain, or `EXTRA`."""
        out: dict[str, Trust] = {}
        for domain in dict.fromkeys(a.trust_domain for a in self._anchors):
            name = self._name(domain)
            made = self._row(domain, self._held.get(name))
            if made is not None:
                out[name] = made
        return out

    def _name(self, domain: str) -> str:
        return domain if domain and domain != self._trust_domain else EXTRA

    def _row(self, domain: str, held: Trust | None) -> Trust | None:
        pems, sequence, fetched, waiting = [], 0, 0.0, False
        for anchor in self._anchors:
            if anchor.trust_domain != domain:
                continue
            if anchor.pem:
                try:
                    pems.append(read_roots(anchor.pem))
                except BundleError as error:
                    self._problems[anchor] = Problem(str(error), 0.0)
            elif anchor in self._got:
                got = self._got[anchor]
                pems.append(got.bundle.roots_pem)
                sequence, fetched = max(sequence, got.bundle.sequence), max(fetched, got.at)
            else:
                waiting = True
        if waiting and held is not None:
            # After a restart, or while the endpoint is away: what was got last.
            pems.append(held.roots_pem)
            sequence, fetched = max(sequence, held.sequence), max(fetched, held.fetched)
        if not pems:
            return None
        roots = joined(part for pem in pems for part in _each(pem))
        return Trust(domain or self._trust_domain, roots, sequence=sequence, fetched=fetched)

    def status(self) -> list[dict[str, Any]]:
        """What is known of each trust domain, for people."""
        rows = self.rows()
        out = []
        for name, row in sorted(rows.items()):
            out.append(
                {
                    "trustDomain": row.trust_domain,
                    "roots": row.roots_pem.count("BEGIN CERTIFICATE"),
                    "sequence": row.sequence,
                    "fetched": self._seen.get(name, row.fetched),
                    "problem": self._problem(name),
                }
            )
        missing = {self._name(a.trust_domain) for a in self._anchors} - rows.keys()
        out += [
            {
                "trustDomain": name,
                "roots": 0,
                "sequence": 0,
                "fetched": 0.0,
                "problem": self._problem(name) or "not got yet",
            }
            for name in sorted(missing)
        ]
        return out

    def _problem(self, name: str) -> str:
        said = [
            problem.message
            for anchor, problem in self._problems.items()
            if self._name(anchor.trust_domain) == name
        ]
        return "; ".join(said)

    async def _keep(self, anchor: Anchor) -> None:
        retry_s = min(RETRY_S, self._refresh_s)
        while True:
            now = self._clock.now()
            try:
                bundle = await asyncio.to_thread(
                    fetch,
                    anchor.url,
                    anchor.trust_domain or self._trust_domain,
                    self._known(anchor),
                    self._web_roots,
                )
                self._check(anchor, bundle)
            except BundleError as error:
                if anchor not in self._problems:
                    log.warning("a bundle cannot be got", url=anchor.url, error=str(error))
                self._problems[anchor] = Problem(str(error), now)
                self._changed()
                await self._clock.sleep(retry_s)
                retry_s = min(2 * retry_s, MAX_RETRY_S, self._refresh_s)
                continue
            retry_s = min(RETRY_S, self._refresh_s)
            self._problems.pop(anchor, None)
            self._seen[self._name(anchor.trust_domain)] = now
            self._age.labels(anchor.trust_domain).set(now)
            before = self._got.get(anchor)
            if before is None or before.bundle != bundle:
                log.info("bundle got", trust_domain=anchor.trust_domain, sequence=bundle.sequence)
                self._got[anchor] = Got(bundle, now)
                self._changed()
            hint_s = bundle.refresh_hint_s or self._refresh_s
            await self._clock.sleep(max(min(hint_s, self._refresh_s), MIN_REFRESH_S))

    def _known(self, anchor: Anchor) -> str:
        """Roots of its trust domain, where some were given: with those that were got since."""
        given = [a.pem for a in self._anchors if a.pem and a.trust_domain == anchor.trust_domain]
        if not given:
            return ""
        held = self._held.get(self._name(anchor.trust_domain))
        return "\n".join([*given, held.roots_pem if held else ""])

    def _check(self, anchor: Anchor, bundle: Bundle) -> None:
        held = self._got.get(anchor)
        known = held.bundle.sequence if held else 0
        if bundle.sequence and bundle.sequence < known:
            raise BundleError(f"an older bundle: {bundle.sequence}, {known} is known")


def _each(pem: str) -> list[str]:
    end = "-----END CERTIFICATE-----\n"
    return [part + end for part in pem.split(end) if part.strip()]
