"""What policies decided, read off entries of access logs. Pure.

Envoy says which rule refused a request in the response's details, and what rules that run dry would
have done in dynamic metadata.
Source: Envoy, RBAC filters (`rbac_access_denied_matched_policy`, shadow rules) and JWT filter.
"""

from typing import Any, NamedTuple

from envoy.config.core.v3 import base_pb2

from meshbus.mixer.workloads import Peer
from meshbus_telemetry.entries import DESTINATION, Reporter
from meshbus_telemetry.parties import UNKNOWN, Directory, Party

RBAC, TOKEN, PROVIDER = "rbac", "token", "provider"
_RBAC_DETAILS = "rbac_access_denied_matched_policy["
_PASSED_ON = "via_upstream"
_CAUSES = (("jwt_authn_access_denied", TOKEN), ("ext_authz_denied", PROVIDER))
_FILTERS = ("envoy.filters.http.rbac", "envoy.filters.network.rbac")
_DRY = (("DENY", "istio_dry_run_deny_"), ("ALLOW", "istio_dry_run_allow_"))
_COMMON, _HINT = "envoy.common", "access_log_hint"
MAX_TEXT = 256


class DryRun(NamedTuple):
    """What a policy that runs dry would have refused."""

    action: str
    rule: str
    """The one that matched; empty: that none did."""


class Access(NamedTuple):
    """One request, or one connection, where it is let in or not."""

    at: Party
    port: int
    source: Party
    protocol: str
    """`http` or `tcp`."""
    method: str
    path: str
    """Without its query."""
    host: str
    status: int
    cause: str
    """RBAC, TOKEN or PROVIDER: what refused it; empty: it was let in."""
    rule: str
    """The rule that refused it; empty: that no rule allowed it did, or it was not RBAC."""
    dry_run: tuple[DryRun, ...]
    audited: bool = False
    """A rule of an AUDIT policy matched."""


def access_of(entry: Any, reporter: Reporter, directory: Directory, http: bool) -> Access | None:
    """What an entry of an access log says about access; None: the reporter only passed it on."""
    common = entry.common_properties
    details = (
        entry.response.response_code_details if http else common.connection_termination_details
    )
    cause, rule = _refusal(details)
    if reporter.side != DESTINATION and not cause:
        return None
    tls = common.tls_properties.peer_certificate_properties
    uri = next((name.uri for name in tls.subject_alt_name if name.uri), "")
    remote = common.downstream_direct_remote_address or common.downstream_remote_address
    request = entry.request if http else None
    left = common.metadata.filter_metadata
    return Access(
        reporter.party,
        common.downstream_local_address.socket_address.port_value,
        directory.peer(Peer(uri, tls.subject, str(remote.socket_address.address))),
        "http" if http else "tcp",
        _METHODS.get(request.request_method, "") if request is not None else "",
        _path(request.original_path or request.path) if request is not None else "",
        request.authority[:MAX_TEXT] if request is not None else "",
        int(entry.response.response_code.value) if http else 0,
        cause,
        rule,
        _dry_run(left) if left else (),
        _audited(left) if left else False,
    )


def _refusal(details: str) -> tuple[str, str]:
    if details == _PASSED_ON:
        return "", ""
    if details.startswith(_RBAC_DETAILS):
        rule = details[len(_RBAC_DETAILS) :].removesuffix("]")
        return RBAC, "" if rule == "none" else rule
    return next(((cause, "") for prefix, cause in _CAUSES if details.startswith(prefix)), ("", ""))


_METHODS = {value: name for name, value in base_pb2.RequestMethod.items() if value}


def _path(path: str) -> str:
    return path.partition("?")[0].partition("#")[0][:MAX_TEXT]


def _dry_run(metadata: Any) -> tuple[DryRun, ...]:
    out = []
    for name in _FILTERS:
        if name not in metadata:
            continue
        fields = metadata[name].fields
        for action, prefix in _DRY:
            result = f"{prefix}shadow_engine_result"
            if result in fields and fields[result].string_value == "denied":
                rule = f"{prefix}shadow_effective_policy_id"
                out.append(DryRun(action, fields[rule].string_value if rule in fields else ""))
    return tuple(out)


def _audited(metadata: Any) -> bool:
    """Envoy's RBAC with action LOG leaves a hint for who writes logs."""
    if _COMMON not in metadata:
        return False
    fields = metadata[_COMMON].fields
    return _HINT in fields and bool(fields[_HINT].bool_value)


def identity_of(party: Party) -> str:
    """`TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT` of who called; empty: nobody knows."""
    name = party.principal
    return (
        name.removeprefix("spiffe://") if name != UNKNOWN and name.startswith("spiffe://") else ""
    )
