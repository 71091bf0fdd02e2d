"""Rules of ServiceRole, ServiceRoleBinding and RbacConfig (Istio 1.4).

Source: https://istio.io/v1.4/docs/reference/config/security/istio.rbac.v1alpha1/
"""

from collections.abc import Sequence

from msgspec import UnsetType

from meshbus.api.rbac import AccessRule, RbacConfig, ServiceRole, ServiceRoleBinding
from meshbus.validate.malformed import independent
from meshbus.validate.metadata import ObjectName
from meshbus.validate.report import Findings

_DEFAULT = "default"
_PORT = "destination.port"


@independent
def check_service_role(spec: ServiceRole, name: ObjectName, out: Findings) -> None:
    """What a role may do."""
    if not spec.rules:
        out.required("spec.rules", "at least 1 rule must be specified")
    _check_rules(spec.rules, "spec.rules", out)


@independent
def _check_rules(rules: Sequence[AccessRule], path: str, out: Findings) -> None:
    for index, rule in enumerate(rules):
        at = f"{path}[{index}]"
        pairs = (
            ("hosts", "notHosts", rule.hosts, rule.not_hosts),
            ("paths", "notPaths", rule.paths, rule.not_paths),
            ("methods", "notMethods", rule.methods, rule.not_methods),
            ("ports", "notPorts", rule.ports, rule.not_ports),
        )
        for field, other, values, excluded in pairs:
            if values and excluded:
                out.error(at, f"cannot have both {field} and {other}", "Conflict")
        for field, ports in (("ports", rule.ports), ("notPorts", rule.not_ports)):
            for number, port in enumerate(ports):
                if not 0 <= port <= 65535:
                    message = f"{port} is not in the range of [0, 65535]"
                    out.error(f"{at}.{field}[{number}]", message)
        for number, constraint in enumerate(rule.constraints):
            where = f"{at}.constraints[{number}]"
            if not constraint.key:
                out.required(f"{where}.key", "key cannot be empty")
            if not constraint.values:
                out.required(f"{where}.values", "at least 1 value must be specified")
            if constraint.key == _PORT and (rule.ports or rule.not_ports):
                out.error(f"{where}.key", f"{_PORT} cannot be used with ports", "Conflict")


@independent
def check_service_role_binding(spec: ServiceRoleBinding, name: ObjectName, out: Findings) -> None:
    """Who has a role."""
    if not spec.subjects:
        out.required("spec.subjects", "at least 1 subject must be specified")
    for index, subject in enumerate(spec.subjects):
        parts = (
            subject.user,
            subject.names,
            subject.not_names,
            subject.group,
            subject.groups,
            subject.not_groups,
            subject.namespaces,
            subject.not_namespaces,
            subject.ips,
            subject.not_ips,
            subject.properties,
        )
        if not any(parts):
            out.required(f"spec.subjects[{index}]", "empty subject not allowed")
        fields = {
            "source.principal": subject.names or subject.not_names,
            "request.auth.claims[groups]": subject.groups or subject.not_groups,
            "source.namespace": subject.namespaces or subject.not_namespaces,
            "source.ip": subject.ips or subject.not_ips,
        }
        for key in subject.properties:
            if fields.get(key):
                path = f"spec.subjects[{index}].properties[{key}]"
                out.error(path, "is said by a field of its own already", "Conflict")
        if "*" in (*subject.names, *subject.not_names):
            message = 'do not use * for names or not_names; `user: "*"` means everybody'
            out.error(f"spec.subjects[{index}].names", message)
    ways = [not isinstance(spec.role_ref, UnsetType), bool(spec.role), bool(spec.actions)]
    if sum(ways) != 1:
        out.required("spec", "exactly one of roleRef, role or actions must be set")
    if not isinstance(spec.role_ref, UnsetType):
        if spec.role_ref.kind != "ServiceRole":
            out.error("spec.roleRef.kind", "must be 'ServiceRole'")
        if not spec.role_ref.name:
            out.required("spec.roleRef.name", "`name` in `roleRef` cannot be empty")
    if spec.role and not spec.role.removeprefix("/"):
        out.required("spec.role", "`role` cannot have an empty ServiceRole name")
    _check_rules(spec.actions, "spec.actions", out)


@independent
def check_rbac_config(spec: RbacConfig, name: ObjectName, out: Findings) -> None:
    """Where roles are needed."""
    if name.name != _DEFAULT:
        out.error("metadata.name", "the only configuration has the name 'default'")
    for mode, field, value in (
        ("ON_WITH_INCLUSION", "inclusion", spec.inclusion),
        ("ON_WITH_EXCLUSION", "exclusion", spec.exclusion),
    ):
        if spec.mode == mode and isinstance(value, UnsetType):
            message = f"{field} cannot be null (use '{field}: {{}}' for none)"
            out.required(f"spec.{field}", message)
