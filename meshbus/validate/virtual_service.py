"""Rules of VirtualService.

Source: https://istio.io/latest/docs/reference/config/networking/virtual-service/
"""

from collections.abc import Sequence

from meshbus.api.addresses import is_ip
from meshbus.api.networking.virtual_service import (
    HTTPRoute,
    L4MatchAttributes,
    RouteDestination,
    TLSMatchAttributes,
    TLSRoute,
    VirtualService,
)
from meshbus.validate.destinations import check_weighted
from meshbus.validate.http_headers import is_claim_match
from meshbus.validate.http_route import check_http_route
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import (
    gateway_domain_problem,
    host_is_subset,
    host_matches,
    is_label,
    subnet_problem,
    wildcard_domain_problem,
)
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_export_to, check_gateway_names, check_labels
from meshbus.validate.unreachable import find_unreachable

_MESH = "mesh"


@independent
def check(spec: VirtualService, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    at_gateway = bool(spec.gateways) and _MESH not in spec.gateways
    check_gateway_names(spec.gateways, "spec.gateways", out)
    if not spec.hosts and name.api_version.endswith("/v1alpha3"):
        # The version of Istio 1.4, which had no delegates.
        message = "hosts are required in v1alpha3; a delegate is written as networking.istio.io/v1"
        out.required("spec.hosts", message)
    elif not spec.hosts:
        _check_delegate(spec, out)
    _check_hosts(spec, at_gateway, out)
    if not (spec.http or spec.tcp or spec.tls):
        out.required("spec", "http, tcp or tls must be provided in virtual service")
    for index, http in enumerate(spec.http):
        path = f"spec.http[{index}]"
        check_http_route(http, path, out, delegate=not spec.hosts)
        if not at_gateway:
            _refuse_claims(http, path, out)
    for index, tls in enumerate(spec.tls):
        # Without gateways too, as in Istio: a sidecar may pass on what one mesh calls another by.
        named = at_gateway or not spec.gateways
        _check_tls(tls, spec.hosts, named, f"spec.tls[{index}]", out)
    for index, tcp in enumerate(spec.tcp):
        path = f"spec.tcp[{index}]"
        for number, match in enumerate(tcp.match):
            _check_l4(match, f"{path}.match[{number}]", out)
        _check_routes(tcp.route, path, out)
    check_export_to(spec.export_to, name.namespace, "spec.exportTo", out)
    find_unreachable(spec, out)


@independent
def _check_delegate(spec: VirtualService, out: Findings) -> None:
    for field, value in (("gateways", spec.gateways), ("tls", spec.tls), ("tcp", spec.tcp)):
        if value:
            out.error(f"spec.{field}", f"a delegate (no hosts) must have no {field}", "Conflict")


@independent
def _check_hosts(spec: VirtualService, at_gateway: bool, out: Findings) -> None:
    sni = any(match.sni_hosts for tls in spec.tls for match in tls.match)
    right = True
    for index, host in enumerate(spec.hosts):
        path = f"spec.hosts[{index}]"
        problem = (
            gateway_domain_problem(host, sni=sni) if at_gateway else wildcard_domain_problem(host)
        )
        if problem and not is_ip(host):
            out.error(path, problem)
            right = False
        elif not at_gateway and host == "*":
            out.error(path, "wildcard host * is not allowed for routes of the mesh; name gateways")
            right = False
    if not right:
        return
    for index, host in enumerate(spec.hosts):
        for other in spec.hosts[index + 1 :]:
            if host_matches(host, other):
                out.error("spec.hosts", f"duplicate hosts: {host} & {other}", "Duplicate")


@independent
def _refuse_claims(http: HTTPRoute, path: str, out: Findings) -> None:
    for index, match in enumerate(http.match):
        for field, headers in (
            ("headers", match.headers),
            ("withoutHeaders", match.without_headers),
        ):
            for key in headers:
                if is_claim_match(key):
                    at = f"{path}.match[{index}].{field}[{key}]"
                    out.error(at, "JWT claim based routing is only supported for gateways")


@independent
def _check_tls(tls: TLSRoute, hosts: Sequence[str], named: bool, path: str, out: Findings) -> None:
    if not tls.match:
        out.required(f"{path}.match", "TLS route must have at least one match condition")
    for index, match in enumerate(tls.match):
        at = f"{path}.match[{index}]"
        if not match.sni_hosts:
            out.required(f"{at}.sniHosts", "TLS match must have at least one SNI host")
        for number, sni in enumerate(match.sni_hosts):
            _check_sni(sni, hosts, named, f"{at}.sniHosts[{number}]", out)
        _check_l4(match, at, out)
    _check_routes(tls.route, path, out)


@independent
def _check_sni(sni: str, hosts: Sequence[str], named: bool, path: str, out: Findings) -> None:
    problem = gateway_domain_problem(sni, sni=True) if named else wildcard_domain_problem(sni)
    if problem and is_ip(sni):
        out.warn(path, f"an IP address ({sni}) as SNI goes against its standard")
    elif problem:
        out.error(path, problem)
    elif not any(host_is_subset(sni, host) for host in hosts):
        out.error(path, f"SNI host {sni!r} is not a subset of the hosts: {', '.join(hosts)}")


@independent
def _check_l4(match: L4MatchAttributes | TLSMatchAttributes, path: str, out: Findings) -> None:
    for index, subnet in enumerate(match.destination_subnets):
        if problem := subnet_problem(subnet):
            out.error(f"{path}.destinationSubnets[{index}]", problem)
    if match.source_subnet and (problem := subnet_problem(match.source_subnet)):
        out.error(f"{path}.sourceSubnet", problem)
    if match.port > 65535:
        out.error(f"{path}.port", f"{match.port}: port must be between 1-65535")
    check_labels(match.source_labels, f"{path}.sourceLabels", out)
    check_gateway_names(match.gateways, f"{path}.gateways", out)
    if match.source_namespace and not is_label(match.source_namespace):
        out.error(f"{path}.sourceNamespace", f"{match.source_namespace!r} is no namespace")


@independent
def _check_routes(routes: Sequence[RouteDestination], path: str, out: Findings) -> None:
    if not routes:
        out.required(f"{path}.route", "a route is required")
    check_weighted([(r.destination, r.weight) for r in routes], f"{path}.route", out)
