"""Rules of QuotaSpec, HTTPAPISpec and their bindings (Istio 1.4).

Source: https://istio.io/v1.4/docs/reference/config/policy-and-telemetry/istio.mixer.v1.config.client/
"""

from collections.abc import Sequence

from msgspec import UnsetType

from meshbus.api.mixer_client import (
    Attributes,
    AttributeValue,
    HTTPAPISpec,
    HTTPAPISpecBinding,
    IstioService,
    QuotaSpec,
    QuotaSpecBinding,
    SpecReference,
)
from meshbus.validate.malformed import independent
from meshbus.validate.matches import regex_problem
from meshbus.validate.metadata import ObjectName
from meshbus.validate.names import fqdn_problem, is_label
from meshbus.validate.report import Findings
from meshbus.validate.targets import check_labels


@independent
def check_quota_spec(spec: QuotaSpec, name: ObjectName, out: Findings) -> None:
    """Which requests are charged what."""
    if not spec.rules:
        out.required("spec.rules", "a quota spec must have at least one rule")
    for index, rule in enumerate(spec.rules):
        path = f"spec.rules[{index}]"
        for number, match in enumerate(rule.match):
            for attribute, wanted in match.clause.items():
                at = f"{path}.match[{number}].clause[{attribute}]"
                if not (wanted.exact or wanted.prefix or wanted.regex):
                    out.error(at, "exact, prefix or regex must be set, and not empty")
                elif wanted.regex and (problem := regex_problem(wanted.regex)):
                    out.error(at, problem)
        if not rule.quotas:
            out.required(f"{path}.quotas", "a rule must have at least one quota")
        for number, quota in enumerate(rule.quotas):
            at = f"{path}.quotas[{number}]"
            if not quota.quota:
                out.required(f"{at}.quota")
            if quota.charge <= 0:
                out.error(f"{at}.charge", "must be greater than 0")


@independent
def check_quota_spec_binding(spec: QuotaSpecBinding, name: ObjectName, out: Findings) -> None:
    """Services whose requests are charged."""
    _check_services(spec.services, out)
    _check_references(spec.quota_specs, "spec.quotaSpecs", out)


@independent
def check_http_api_spec_binding(spec: HTTPAPISpecBinding, name: ObjectName, out: Findings) -> None:
    """Services of an API."""
    _check_services(spec.services, out)
    _check_references(spec.api_specs, "spec.apiSpecs", out)


@independent
def check_http_api_spec(spec: HTTPAPISpec, name: ObjectName, out: Findings) -> None:
    """Attributes of the operations of an API."""
    _check_attributes(spec.attributes, "spec.attributes", out)
    if not spec.patterns:
        out.required("spec.patterns", "at least one pattern must be specified")
    for index, pattern in enumerate(spec.patterns):
        path = f"spec.patterns[{index}]"
        _check_attributes(pattern.attributes, f"{path}.attributes", out)
        if not pattern.http_method:
            out.required(f"{path}.httpMethod")
        if isinstance(pattern.uri_template, str) and not pattern.uri_template:
            out.required(f"{path}.uriTemplate", "must not be empty")
        if isinstance(pattern.regex, str):
            if not pattern.regex:
                out.required(f"{path}.regex", "must not be empty")
            elif problem := regex_problem(pattern.regex):
                out.error(f"{path}.regex", problem)
    for index, key in enumerate(spec.api_keys):
        for field, value in (("query", key.query), ("header", key.header), ("cookie", key.cookie)):
            if value == "":
                out.required(f"spec.apiKeys[{index}].{field}", "must not be empty")


@independent
def _check_attributes(attributes: Attributes | UnsetType, path: str, out: Findings) -> None:
    if isinstance(attributes, UnsetType):
        return
    if not attributes.attributes:
        out.required(f"{path}.attributes", "must not be empty")
    for name, value in attributes.attributes.items():
        if _is_empty(value):
            out.required(f"{path}.attributes[{name}]", "must have a value that is not empty")


def _is_empty(value: AttributeValue) -> bool:
    texts = (value.string_value, value.bytes_value)
    if any(text == "" for text in texts):
        return True
    table = value.string_map_value
    if not isinstance(table, UnsetType):
        return not table.entries
    others = (
        value.int64_value,
        value.double_value,
        value.bool_value,
        value.timestamp_value,
        value.duration_value,
    )
    return all(isinstance(item, UnsetType) for item in (*texts, *others))


@independent
def _check_services(services: Sequence[IstioService], out: Findings) -> None:
    if not services:
        out.required("spec.services", "at least one service must be specified")
    for index, service in enumerate(services):
        path = f"spec.services[{index}]"
        if not service.name and not service.service:
            out.required(path, "name or service is mandatory for a service reference")
        if service.service:
            for field in ("name", "namespace", "domain"):
                if getattr(service, field):
                    out.error(f"{path}.{field}", "cannot be set with service", "Conflict")
        if service.name and not is_label(service.name):
            out.error(f"{path}.name", f"{service.name!r} is not the name of a service")
        if service.namespace and not is_label(service.namespace):
            out.error(f"{path}.namespace", f"{service.namespace!r} is not a namespace")
        if service.domain and (problem := fqdn_problem(service.domain)):
            out.error(f"{path}.domain", problem)
        check_labels(service.labels, f"{path}.labels", out)


@independent
def _check_references(references: Sequence[SpecReference], path: str, out: Findings) -> None:
    if not references:
        out.required(path, "at least one spec must be specified")
    for index, reference in enumerate(references):
        if not reference.name:
            out.required(f"{path}[{index}].name", "name is mandatory")
        if reference.namespace and not is_label(reference.namespace):
            message = f"{reference.namespace!r} is not a namespace"
            out.error(f"{path}[{index}].namespace", message)
