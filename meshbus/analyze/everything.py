"""All analyzers, one after the other."""

from collections.abc import Collection, Iterable

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
    surroundings,
    telemetries,
    virtual_services,
    webhooks,
)
from meshbus.analyze.messages import Analyzer, Message, suppressed
from meshbus.analyze.objects import Objects

VALIDATION = "schema.ValidationAnalyzer"
ANALYZERS: dict[str, tuple[Analyzer, ...]] = {
    "annotations.K8sAnalyzer": (annotations.places,),
    "authn.BlockedCIDRsAnalyzer": (surroundings.key_addresses,),
    "authz.AuthorizationPoliciesAnalyzer": (policies.workloads, policies.namespaces),
    "conditions.ConditionAnalyzer": (conditions.negative,),
    "deployment.ApplicationUIDAnalyzer": (services.user_ids,),
    "deployment.MultiServiceAnalyzer": (services.shared_ports,),
    "deprecation.DeprecationAnalyzer": (deprecations.fields,),
    "destinationrule.CaCertificateAnalyzer": (destination_rules.unverified,),
    "destinationrule.PodNotSelectedAnalyzer": (destination_rules.subsets,),
    "envoyfilter.EnvoyPatchAnalyzer": (envoy_filters.operations,),
    "externalcontrolplane.ExternalControlPlaneAnalyzer": (webhooks.addresses,),
    "gateway.CertificateAnalyzer": (gateways.certificates,),
    "gateway.ConflictingGatewayAnalyzer": (gateways.conflicts,),
    "gateway.IngressGatewayPortAnalyzer": (gateways.ports,),
    "gateway.SecretAnalyzer": (gateways.credentials,),
    "injection.Analyzer": (injection.namespaces,),
    "injection.ImageAnalyzer": (injection.images,),
    "injection.ImageAutoAnalyzer": (injection.automatic,),
    "k8sgateway.CRDVersionAnalyzer": (surroundings.definitions,),
    "k8sgateway.SelectorAnalyzer": (policies.gateway_selectors,),
    "meshnetworks.MeshNetworksAnalyzer": (networks.registries,),
    VALIDATION: (),
    "service.PortNameAnalyzer": (services.port_names,),
    "serviceentry.ConflictingServiceEntryProtocolAnalyzer": (service_entries.protocols,),
    "serviceentry.ProtocolAddressesAnalyzer": (service_entries.addresses,),
    "sidecar.SelectorAnalyzer": (sidecars.selectors,),
    "telemetry.DefaultSelectorAnalyzer": (telemetries.without_selector,),
    "telemetry.LightstepAnalyzer": (telemetries.lightstep,),
    "telemetry.ProviderAnalyzer": (telemetries.providers,),
    "telemetry.SelectorAnalyzer": (telemetries.selectors,),
    "virtualservice.ConflictingMeshGatewayHostsAnalyzer": (virtual_services.same_hosts,),
    "virtualservice.DestinationHostAnalyzer": (
        virtual_services.destinations,
        virtual_services.subsets_at_gateways,
    ),
    "virtualservice.DestinationRuleAnalyzer": (virtual_services.subsets,),
    "virtualservice.GatewayAnalyzer": (virtual_services.gateways,),
    "virtualservice.JWTClaimRouteAnalyzer": (virtual_services.claims,),
    "virtualservice.RegexAnalyzer": (virtual_services.expressions,),
    "webhook.Analyzer": (webhooks.overlaps,),
}
"""By the names that Istio has for them. What validation says comes from outside."""
_ORDER = {"Error": 0, "Warning": 1, "Info": 2}


def analyze(
    objects: Objects, verdicts: Iterable[Message] = (), only: Collection[str] = ()
) -> list[Message]:
    """What there is to say about the objects: errors first, each thing once.

    Args:
        objects: All documents.
        verdicts: What validation says about the documents alone.
        only: Names of the analyzers that are asked; all without.
    """
    said = list(verdicts if VALIDATION in only or not only else ())
    for name, analyzers in ANALYZERS.items():
        for analyzer in analyzers if name in only or not only else ():
            said += analyzer(objects)
    # The same words about one object are said once: of the first field.
    found = {(m.code, m.object, m.message, m.place): m for m in reversed(said)}.values()
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
