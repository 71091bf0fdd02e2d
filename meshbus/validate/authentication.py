"""Rules of Policy and MeshPolicy (Istio 1.4).

Source: https://istio.io/v1.4/docs/reference/config/security/istio.authentication.v1alpha1/
"""

from msgspec import UnsetType

from meshbus.api.authentication import Jwt, Policy, PolicyStringMatch, TargetSelector
from meshbus.validate.formats import FORMATS
from meshbus.validate.malformed import independent
from meshbus.validate.matches import regex_problem
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import is_label
from meshbus.validate.report import Findings
from meshbus.validate.request_authentication import is_key_set
from meshbus.validate.targets import check_labels

_DEFAULT = "default"


@independent
def check_policy(spec: Policy, name: ObjectName, out: Findings) -> None:
    """A policy of a namespace or of services."""
    if not spec.targets and name.name != _DEFAULT:
        message = "a policy without targets is that of its namespace: its name must be 'default'"
        out.error("metadata.name", message)
    if spec.targets and name.name == _DEFAULT:
        message = "policy with name 'default' cannot specify any target"
        out.error("spec.targets", message, "Conflict")
    for index, target in enumerate(spec.targets):
        _check_target(target, f"spec.targets[{index}]", out)
    _check_methods(spec, out)


@independent
def check_mesh_policy(spec: Policy, name: ObjectName, out: Findings) -> None:
    """The policy of the mesh."""
    if name.name != _DEFAULT:
        out.error("metadata.name", "the policy of the mesh must have the name 'default'")
    if spec.targets:
        out.error("spec.targets", "the policy of the mesh cannot specify any target", "Conflict")
    _check_methods(spec, out)


@independent
def _check_target(target: TargetSelector, path: str, out: Findings) -> None:
    if not is_label(target.name):
        message = f"{target.name!r} must be the short name of a service"
        out.error(f"{path}.name", message)
    check_labels(target.labels, f"{path}.labels", out)
    for index, port in enumerate(target.ports):
        at = f"{path}.ports[{index}]"
        if isinstance(port.number, UnsetType) and isinstance(port.name, UnsetType):
            out.required(at, "number or name must be set")
        if isinstance(port.number, int) and not 1 <= port.number <= 65535:
            out.error(f"{at}.number", f"{port.number}: port must be between 1-65535")
        if isinstance(port.name, str) and not is_label(port.name):
            out.error(f"{at}.name", f"{port.name!r} is not the name of a port")


@independent
def _check_methods(spec: Policy, out: Findings) -> None:
    issuers: set[str] = set()
    for index, peer in enumerate(spec.peers):
        path = f"spec.peers[{index}]"
        if isinstance(peer.mtls, UnsetType) and isinstance(peer.jwt, UnsetType):
            out.warn(path, "neither mtls nor jwt is set: it asks for nothing")
        if not isinstance(peer.jwt, UnsetType):
            _check_jwt(peer.jwt, f"{path}.jwt", issuers, out)
    for index, origin in enumerate(spec.origins):
        path = f"spec.origins[{index}]"
        if isinstance(origin.jwt, UnsetType):
            out.required(f"{path}.jwt", "jwt must be set")
        else:
            _check_jwt(origin.jwt, f"{path}.jwt", issuers, out)


@independent
def _check_jwt(jwt: Jwt, path: str, issuers: set[str], out: Findings) -> None:
    if not jwt.issuer:
        out.required(f"{path}.issuer")
    elif jwt.issuer in issuers:
        out.error(f"{path}.issuer", f"issuer {jwt.issuer!r} is used twice", "Duplicate")
    issuers.add(jwt.issuer)
    if jwt.jwks_uri and (problem := FORMATS["jwks-uri"](jwt.jwks_uri)):
        out.error(f"{path}.jwksUri", problem)
    if jwt.jwks and not is_key_set(jwt.jwks):
        out.error(f"{path}.jwks", "is not a JSON Web Key Set")
    for field, values in (
        ("audiences", jwt.audiences),
        ("jwtHeaders", jwt.jwt_headers),
        ("jwtParams", jwt.jwt_params),
    ):
        for index, value in enumerate(values):
            if not value:
                out.required(f"{path}.{field}[{index}]", "must not be empty")
    for index, rule in enumerate(jwt.trigger_rules):
        at = f"{path}.triggerRules[{index}]"
        for field, matches in (
            ("excludedPaths", rule.excluded_paths),
            ("includedPaths", rule.included_paths),
        ):
            for number, match in enumerate(matches):
                _check_path(match, f"{at}.{field}[{number}]", out)


@independent
def _check_path(match: PolicyStringMatch, path: str, out: Findings) -> None:
    if not (match.exact or match.prefix or match.suffix or match.regex):
        out.required(path, "exact, prefix, suffix or regex must be set, and not empty")
    if match.regex and (problem := regex_problem(match.regex)):
        out.error(f"{path}.regex", problem)
