"""All analyzers, one after the other."""

from collections.abc import Iterable

from meshbus.analyze import (
    annotations,
    conditions,
    deprecations,
    destination_rules,
    envoy_filters,
    gateways,
    injection,
    networks,
    policies,
    service_entries,
    services,
    sidecars,
    telemetries,
    virtual_services,
    webhooks,
)
from meshbus.analyze.messages import Analyzer, Message, suppressed
from meshbus.analyze.objects import Objects

ANALYZERS: tuple[Analyzer, ...] = (
    annotations.places,
    conditions.negative,
    deprecations.fields,
    destination_rules.unverified,
    destination_rules.subsets,
    envoy_filters.operations,
    gateways.ports,
    gateways.credentials,
    gateways.certificates,
    gateways.conflicts,
    injection.namespaces,
    injection.images,
    injection.automatic,
    networks.registries,
    policies.workloads,
    policies.namespaces,
    policies.gateway_selectors,
    service_entries.addresses,
    service_entries.protocols,
    services.port_names,
    services.shared_ports,
    services.user_ids,
    sidecars.selectors,
    telemetries.selectors,
    telemetries.without_selector,
    telemetries.providers,
    telemetries.lightstep,
    virtual_services.destinations,
    virtual_services.subsets,
    virtual_services.gateways,
    virtual_services.same_hosts,
    virtual_services.subsets_at_gateways,
    virtual_services.claims,
    webhooks.overlaps,
    webhooks.addresses,
)
_ORDER = {"Error": 0, "Warning": 1, "Info": 2}


def analyze(objects: Objects, verdicts: Iterable[Message] = ()) -> list[Message]:
    """What there is to say about the objects: errors first, each thing once.

    Args:
        verdicts: What validation says about the documents alone.
    """
    found = dict.fromkeys(verdicts)
    for analyzer in ANALYZERS:
        found.update(dict.fromkeys(analyzer(objects)))
    quiet = {
        (one.reference, message.code)
        for message in found
        for one in objects.written(message.place)
        if suppressed(one, message.code)
    }
    kept = [
        message
        for message in found
        if message.place >= 0 or message.code == "IST0126"
        if (message.object, message.code) not in quiet
    ]
    return sorted(kept, key=lambda m: (_ORDER[m.level], m.code, m.object, m.message))
