"""Rules of AuthorizationPolicy.

Source: https://istio.io/latest/docs/reference/config/security/authorization-policy/
"""

from collections.abc import Mapping, Sequence

from msgspec import UNSET, UnsetType

from meshbus.api.security import (
    AuthorizationPolicy,
    AuthorizationRule,
    Condition,
    Operation,
    Source,
)
from meshbus.validate.conditions import (
    condition_problem,
    path_template_problem,
    port_problem,
    service_account_problem,
    trust_domain_problem,
)
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import subnet_problem
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_targets

_DRY_RUN = "istio.io/dry-run"
_BOOLEANS = frozenset(
    {"1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"}
)
_NOT_FOR_CUSTOM = frozenset({"source.namespace", "source.principal", "source.serviceAccount"})


@independent
def check(spec: AuthorizationPolicy, name: ObjectName, out: Findings) -> None:
    """Everything but its shape."""
    check_targets(spec.selector, spec.target_ref, spec.target_refs, out)
    _check_dry_run(spec, name, out)
    for index, rule in enumerate(spec.rules):
        _check_rule(rule, f"spec.rules[{index}]", out)
    _check_action(spec, out)


@independent
def _check_action(spec: AuthorizationPolicy, out: Findings) -> None:
    if spec.action in ("CUSTOM", "DENY") and not spec.rules:
        message = (
            f"{spec.action} action without rules is meaningless as it will never be triggered; "
            "add an empty rule `{}` if every request is meant"
        )
        out.required("spec.rules", message)
    if spec.action == "CUSTOM":
        if spec.rules and (isinstance(spec.provider, UnsetType) or not spec.provider.name):
            out.required("spec.provider.name", "`provider.name` must not be empty")
    elif not isinstance(spec.provider, UnsetType):
        out.error("spec.provider", f"must not be set with action {spec.action}", "Conflict")
    for index, rule in enumerate(spec.rules):
        path = f"spec.rules[{index}]"
        if spec.action == "CUSTOM":
            _refuse_for_custom(rule, path, out)
        if spec.action == "DENY" and _denies_all_tcp(rule):
            message = (
                "a DENY rule with only HTTP attributes denies all traffic to TCP ports; "
                "name the ports"
            )
            out.warn(path, message)


@independent
def _check_dry_run(spec: AuthorizationPolicy, name: ObjectName, out: Findings) -> None:
    value = name.annotations.get(_DRY_RUN)
    if value is None:
        return
    path = f"metadata.annotations[{_DRY_RUN}]"
    if spec.action not in ("ALLOW", "DENY"):
        out.error(path, f"only ALLOW and DENY can be run dry, not {spec.action}")
    elif value not in _BOOLEANS:
        out.error(path, f"{value!r} is neither true nor false")


@independent
def _check_rule(rule: AuthorizationRule, path: str, out: Findings) -> None:
    for index, origin in enumerate(rule.from_):
        at = f"{path}.from[{index}].source"
        if isinstance(origin.source, UnsetType):
            out.required(at, "`from.source` must not be nil")
        else:
            _check_source(origin.source, at, out)
    for index, target in enumerate(rule.to):
        at = f"{path}.to[{index}].operation"
        if isinstance(target.operation, UnsetType):
            out.required(at, "`to.operation` must not be nil")
        else:
            _check_operation(target.operation, at, out)
    for index, condition in enumerate(rule.when):
        _check_condition(condition, f"{path}.when[{index}]", out)


@independent
def _check_lists(lists: Mapping[str, Sequence[str]], path: str, out: Findings) -> None:
    if not any(lists.values()):
        out.required(path, "must not be empty")
    for field, values in lists.items():
        for index, value in enumerate(values):
            if not value:
                out.error(f"{path}.{field}[{index}]", f"`{field}` must not have empty values")


@independent
def _check_source(source: Source, path: str, out: Findings) -> None:
    lists = {
        "principals": source.principals or [],
        "notPrincipals": source.not_principals or [],
        "requestPrincipals": source.request_principals,
        "notRequestPrincipals": source.not_request_principals,
        "namespaces": source.namespaces or [],
        "notNamespaces": source.not_namespaces or [],
        "serviceAccounts": source.service_accounts or [],
        "notServiceAccounts": source.not_service_accounts or [],
        "trustDomains": source.trust_domains,
        "notTrustDomains": source.not_trust_domains,
        "ipBlocks": source.ip_blocks,
        "notIpBlocks": source.not_ip_blocks,
        "remoteIpBlocks": source.remote_ip_blocks,
        "notRemoteIpBlocks": source.not_remote_ip_blocks,
    }
    _check_lists(lists, path, out)
    accounts = (source.service_accounts, source.not_service_accounts)
    others = (
        source.principals,
        source.not_principals,
        source.namespaces,
        source.not_namespaces,
    )
    if _is_any_set(accounts) and _is_any_set(others):
        message = "Cannot set serviceAccounts with namespaces or principals"
        out.error(path, message, "Conflict")
    for field in ("ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks"):
        for index, block in enumerate(lists[field]):
            if block and (problem := subnet_problem(block)):
                out.error(f"{path}.{field}[{index}]", problem)
    for field in ("serviceAccounts", "notServiceAccounts"):
        for index, account in enumerate(lists[field]):
            if account and (problem := service_account_problem(account)):
                out.error(f"{path}.{field}[{index}]", problem)
    for field in ("trustDomains", "notTrustDomains"):
        for index, domain in enumerate(lists[field]):
            if domain and (problem := trust_domain_problem(domain)):
                out.error(f"{path}.{field}[{index}]", problem)


def _is_any_set(lists: Sequence[list[str] | UnsetType]) -> bool:
    return any(values is not UNSET for values in lists)


@independent
def _check_operation(operation: Operation, path: str, out: Findings) -> None:
    lists = {
        "hosts": operation.hosts,
        "notHosts": operation.not_hosts,
        "ports": operation.ports,
        "notPorts": operation.not_ports,
        "methods": operation.methods,
        "notMethods": operation.not_methods,
        "paths": operation.paths,
        "notPaths": operation.not_paths,
    }
    _check_lists(lists, path, out)
    for field in ("ports", "notPorts"):
        for index, port in enumerate(lists[field]):
            if port and (problem := port_problem(port)):
                out.error(f"{path}.{field}[{index}]", problem)
    for field in ("paths", "notPaths"):
        for index, template in enumerate(lists[field]):
            if problem := path_template_problem(template):
                out.error(f"{path}.{field}[{index}]", problem)


@independent
def _check_condition(condition: Condition, path: str, out: Findings) -> None:
    if not condition.key:
        out.required(f"{path}.key", "`key` must not be empty")
        return
    if not condition.values and not condition.not_values:
        out.required(path, "at least one of `values` or `notValues` must be set")
        return
    for field, values in (("values", condition.values), ("notValues", condition.not_values)):
        if problem := condition_problem(condition.key, values):
            out.error(f"{path}.{field}", problem)
            return


@independent
def _refuse_for_custom(rule: AuthorizationRule, path: str, out: Findings) -> None:
    for index, origin in enumerate(rule.from_):
        if isinstance(origin.source, UnsetType):
            continue
        source = origin.source
        refused = {
            "namespaces": source.namespaces,
            "notNamespaces": source.not_namespaces,
            "principals": source.principals,
            "notPrincipals": source.not_principals,
            "requestPrincipals": source.request_principals,
            "notRequestPrincipals": source.not_request_principals,
            "serviceAccounts": source.service_accounts,
            "notServiceAccounts": source.not_service_accounts,
            "trustDomains": source.trust_domains,
            "notTrustDomains": source.not_trust_domains,
        }
        for field, values in refused.items():
            if values:
                at = f"{path}.from[{index}].source.{field}"
                out.error(at, "is currently not supported with CUSTOM action")
    for index, condition in enumerate(rule.when):
        if condition.key in _NOT_FOR_CUSTOM or condition.key.startswith("request.auth."):
            at = f"{path}.when[{index}].key"
            out.error(at, f"{condition.key} is currently not supported with CUSTOM action")


def _denies_all_tcp(rule: AuthorizationRule) -> bool:
    sources = [o.source for o in rule.from_ if not isinstance(o.source, UnsetType)]
    operations = [t.operation for t in rule.to if not isinstance(t.operation, UnsetType)]
    tcp_source = any(
        s.principals
        or s.not_principals
        or s.namespaces
        or s.not_namespaces
        or s.service_accounts
        or s.not_service_accounts
        or s.trust_domains
        or s.not_trust_domains
        or s.ip_blocks
        or s.not_ip_blocks
        or s.remote_ip_blocks
        or s.not_remote_ip_blocks
        for s in sources
    )
    tcp_operation = any(o.ports or o.not_ports for o in operations)
    return (bool(sources) and not operations and not tcp_source) or (
        bool(operations) and not tcp_operation
    )
