"""Injection of one pod: the pod that people wrote in, the pod that runs in the mesh out. Pure.

Templates are merged over the pod, then what people changed of them over that, then what neither
can say: probes, metrics, the proxy's arguments, order.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import msgspec

from meshbus.api.durations import SECOND_NS, nanoseconds
from meshbus.api.mesh.mesh_config import MeshConfig
from meshbus.api.mesh.proxy_config import MeshProxyConfig
from meshbus.api.proto_json import as_json
from meshbus.api.yaml_text import read_yaml
from meshbus.compile.own_proxy_config import json_names
from meshbus.inject import annotations as a
from meshbus.inject.ads import connections_of, limits_listeners
from meshbus.inject.bootstrap import OwnBootstrap, envoy_args
from meshbus.inject.capture import INIT, VALIDATION
from meshbus.inject.context import PROXY_ID, PodContext, cores
from meshbus.inject.decision import Decision, Policy, decide, policy_of
from meshbus.inject.earlier import before_injection, overridden_containers, overrides_text
from meshbus.inject.errors import InjectionError
from meshbus.inject.grpc_templates import grpc_agent_overlay, grpc_simple_overlay
from meshbus.inject.helm_set import merge_values
from meshbus.inject.merge import merge_pod
from meshbus.inject.openshift import Identity
from meshbus.inject.probes import (
    PROBERS_VARIABLE,
    probers_of,
    probers_text,
    rewrite_probes,
)
from meshbus.inject.proxy_configs import NO_WISHES, ProxyWishes
from meshbus.inject.reports import Reporter, file_flush_args, reports_of
from meshbus.inject.scrape import SCRAPE_VARIABLE, merge_scraping, scrapes_of, scraping_text
from meshbus.inject.sidecar import (
    ARGS_LATER,
    PROXY,
    gateway_overlay,
    holds_application,
    sidecar_overlay,
)
from meshbus.inject.status_listener import READY_PORT
from meshbus.inject.template_functions import TemplateError
from meshbus.inject.templates import Template, parse_template
from meshbus.inject.values import chart_values, lookup, text
from meshbus.inject.workloads import Owner
from meshbus.model.keys import Key
from meshbus.model.rows import ConfigObject
from meshbus.validate import validate_object
from meshbus.validate.mesh_support import OF_THE_MESH, PROXY_MISSED

_BUILT_IN = {
    "sidecar": sidecar_overlay,
    "gateway": gateway_overlay,
    "grpc-simple": grpc_simple_overlay,
    "grpc-agent": grpc_agent_overlay,
}
_MOST_TEMPLATES = 20
_WITHOUT_EFFECT = frozenset(
    {
        "availabilityZone",
        "configPath",
        "connectTimeout",
        "discoveryRefreshDelay",
        "parentShutdownDuration",
        "readinessProbe",
        "sds",
        "statNameLength",
        *PROXY_MISSED,
    }
)
"""Fields of ProxyConfig that only an agent beside the proxy, or nobody, carries out, or that are
for machines."""


@dataclass(frozen=True)
class Injected:
    """A pod (metadata and spec) of the mesh, and what its author should know."""

    pod: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


class Injector:
    """Injection under the settings of one control plane."""

    def __init__(
        self, values: Mapping[str, Any], mesh_config: Mapping[str, Any] | None = None
    ) -> None:
        """
        Args:
            values: What was given of the chart's values.
            mesh_config: Fields of a MeshConfig, over those of `meshConfig` in the values.

        Raises:
            InjectionError: A value is not what it should be.
        """
        self.values = chart_values(values)
        written = (self.values.get("meshConfig") or {}, mesh_config or {})
        self.mesh = merge_values(*(as_json(one, MeshConfig) for one in written))
        self.revision = text(self.values.get("revision"))
        self.policy: Policy = policy_of(self.values)
        a.check_values(self.values)
        _check_mesh(self.mesh, "meshConfig")
        self._templates = _parse_templates(self.values)

    def decide(self, pod: Mapping[str, Any], namespace: str) -> Decision:
        """Whether a pod of a namespace gets a sidecar."""
        return decide(self.policy, pod, namespace)

    def inject(
        self,
        pod: Mapping[str, Any],
        owner: Owner,
        *,
        wishes: ProxyWishes = NO_WISHES,
        cluster: str = "",
        network: str = "",
        variables: Mapping[str, str] | None = None,
        identity: Identity | None = None,
        envoy_filters: Sequence[ConfigObject] = (),
    ) -> Injected:
        """The pod as it runs in the mesh.

        Args:
            pod: An object with `metadata` and `spec`; it is not changed.
            owner: The workload it belongs to, and its namespace.
            wishes: What ProxyConfig objects say of the pod.
            cluster: Name of its cluster, where the values do not say.
            network: The same for its network.
            variables: Further variables of the proxy.
            identity: User and group of the proxy, where they must be others than 1337.
            envoy_filters: EnvoyFilters, of whatever namespace: they may patch the bootstrap.

        Raises:
            InjectionError: Something the pod says cannot be done.
        """
        written = before_injection(pod)
        if identity is not None:
            _drop_given_user(written["spec"], identity.given)
        notes: dict[str, str] = written["metadata"]["annotations"]
        warnings = list(a.check_annotations(notes))
        context = self._context(written, owner, wishes, cluster, network, identity)
        warnings += [
            f"defaultConfig.{name}: has no effect on proxies that are injected"
            + (f": it {PROXY_MISSED[name]}" if name in PROXY_MISSED else "")
            for name in context.proxy_given
            if name in _WITHOUT_EFFECT
        ]
        own = _own_proxy_config(notes.get(a.PROXY_CONFIG, ""))
        warnings += [
            f"metadata.annotations[{a.PROXY_CONFIG}].{name}: has no effect: {OF_THE_MESH[name]}"
            for name in OF_THE_MESH.keys() & own.keys()
        ]
        overlay = self._overlay(context, notes)
        if context.native and _has(overlay, "initContainers", PROXY):
            _join_native(overlay)
            _move(written["spec"], PROXY)
        merged = merge_pod(written, overlay)
        overrides = overridden_containers(written, overlay)
        for place, containers in overrides.items():
            merged = merge_pod(merged, {"spec": {place: containers}})
        notes = merged["metadata"]["annotations"]
        if overrides:
            notes[a.OVERRIDES] = overrides_text(overrides)
        _agree_on_user(merged, overrides, context)
        if context.network:
            merged["metadata"].setdefault("labels", {})["topology.istio.io/network"] = (
                context.network
            )
        warnings += self._finish(merged, context, variables or {}, envoy_filters)
        notes[a.STATUS] = _status(overlay, self.revision)
        notes.update({k: text(v) for k, v in self._webhook("injectedAnnotations", {}).items()})
        _order(merged["spec"], context, notes)
        if owner.kind in ("Job", "CronJob") and _has(merged, "containers", PROXY):
            warnings.append(
                "a Job ends when all containers have ended: its last step must call "
                "POST http://localhost:15020/quitquitquit, or use a native sidecar"
            )
        return Injected(merged, warnings)

    def _context(
        self,
        pod: Mapping[str, Any],
        owner: Owner,
        wishes: ProxyWishes,
        cluster: str,
        network: str,
        identity: Identity | None,
    ) -> PodContext:
        notes: Mapping[str, str] = pod["metadata"]["annotations"]
        labels: Mapping[str, str] = pod["metadata"].get("labels") or {}
        own = _own_proxy_config(notes.get(a.PROXY_CONFIG, ""))
        given = wishes.over(self.mesh.get("defaultConfig") or {}, own)
        proxy = msgspec.convert(given, MeshProxyConfig, strict=False)
        network = labels.get("topology.istio.io/network") or network
        return PodContext(
            values=self.values,
            mesh=self.mesh,
            proxy=proxy,
            proxy_given=given,
            annotations=notes,
            labels=labels,
            spec=pod["spec"],
            owner=owner,
            namespace=owner.namespace,
            revision=self.revision,
            native=self._native(notes),
            cluster=cluster
            or text(lookup(self.values, "global", "multiCluster", "clusterName"))
            or "Kubernetes",
            network=network or text(lookup(self.values, "global", "network")),
            user=identity.user if identity else PROXY_ID,
            group=identity.group if identity else PROXY_ID,
        )

    def _native(self, notes: Mapping[str, str]) -> bool:
        wish = a.truth(notes.get(a.NATIVE, ""))
        if wish is not None:
            return wish
        return text(lookup(self.values, "pilot", "env", "ENABLE_NATIVE_SIDECARS")) != "false"

    def _webhook(self, name: str, default: Any) -> Any:
        return lookup(self.values, "sidecarInjectorWebhook", name) or default

    def _overlay(self, context: PodContext, notes: Mapping[str, str]) -> dict[str, Any]:
        overlay: dict[str, Any] = {"metadata": {}, "spec": {}}
        place = f"metadata.annotations[{a.TEMPLATES}]"
        for name in self._template_names(notes):
            if (own := self._templates.get(name)) is not None:
                try:
                    part = own.render_yaml(_template_data(context))
                except TemplateError as error:
                    raise InjectionError(
                        f"sidecarInjectorWebhook.templates.{name}", str(error)
                    ) from error
                if not isinstance(part, dict):
                    raise InjectionError(
                        f"sidecarInjectorWebhook.templates.{name}", "must be a pod (an object)"
                    )
            elif name in _BUILT_IN:
                part = _BUILT_IN[name](context)
            else:
                known = ", ".join(sorted({*_BUILT_IN, *self._templates}))
                raise InjectionError(place, f"template {name!r} is not there; there are {known}")
            overlay = merge_pod(overlay, part)
        if searches := self._searches(context):
            overlay = merge_pod(overlay, {"spec": {"dnsConfig": {"searches": searches}}})
        return {**overlay, "metadata": overlay.get("metadata") or {},
                "spec": overlay.get("spec") or {}}  # fmt: skip

    def _template_names(self, notes: Mapping[str, str]) -> list[str]:
        wish = notes.get(a.TEMPLATES)
        if wish is None:
            names = list(self._webhook("defaultTemplates", ["sidecar"]))
        else:
            names = [part.strip() for part in wish.split(",") if part.strip()]
        aliases = self._webhook("templateAliases", {})
        found = [part for name in names for part in aliases.get(name, [name])]
        if len(found) > _MOST_TEMPLATES:
            raise InjectionError(f"metadata.annotations[{a.TEMPLATES}]", "names too many templates")
        return list(dict.fromkeys(found))

    def _searches(self, context: PodContext) -> list[str]:
        words = lookup(self.values, "global", "podDNSSearchNamespaces") or []
        data = _template_data(context)
        try:
            return [parse_template(text(word)).render(data) for word in words]
        except TemplateError as error:
            raise InjectionError("global.podDNSSearchNamespaces", str(error)) from error

    def _finish(
        self,
        pod: dict[str, Any],
        context: PodContext,
        variables: Mapping[str, str],
        envoy_filters: Sequence[ConfigObject],
    ) -> list[str]:
        """Write what depends on the whole pod; what its author should know of it."""
        proxy = _find(pod["spec"], PROXY)
        if proxy is None:
            return []
        notes = pod["metadata"]["annotations"]
        environment = proxy.setdefault("env", [])
        _put_variables(environment, variables)
        by_default = self.mesh.get("enablePrometheusMerge") is not False
        metrics_port = context.metrics_port
        own = merge_scraping(notes, metrics_port, by_default=by_default)
        if own is not None:
            _put_variables(environment, {SCRAPE_VARIABLE: scraping_text(own)})
        originals: dict[str, Any] = {}
        if context.status_port and self._rewrites(notes):
            originals = rewrite_probes(pod, context.status_port)
            if originals:
                _put_variables(environment, {PROBERS_VARIABLE: probers_text(originals)})
        if proxy.get("args") != [ARGS_LATER]:
            return []
        router = not _has_capture(pod) and "sidecar" not in self._template_names(notes)
        if router:
            # Discovery tells gateways from sidecars by it.
            notes[a.PROXY_TYPE] = "router"
        ports = dict.fromkeys((READY_PORT, metrics_port, context.status_port))
        local = lookup(self.mesh, "inboundTrafficPolicy", "mode") == "LOCALHOST"
        metadata = _node_metadata(pod, environment, context)
        warnings: list[str] = []

        def patched(document: dict[str, Any]) -> dict[str, Any]:
            return self._patched(document, context, metadata, router, envoy_filters, warnings)

        domain = text(context.value("proxy", "clusterDomain")) or "cluster.local"
        reporter = Reporter(namespace=context.namespace, domain=domain)
        reports = reports_of(notes, context.proxy, reporter)
        warnings += [f"defaultConfig.{problem}" for problem in reports.problems]
        bootstrap = OwnBootstrap(
            type="router" if router else "sidecar",
            cluster=f"{context.labels.get('app') or context.canonical_name}.$(POD_NAMESPACE)",
            gateway=context.xds_gateway,
            metadata=metadata,
            admin_port=context.proxy.proxy_admin_port,
            ports=[port for port in ports if port],
            probers=probers_of(originals),
            scrapes=scrapes_of(own),
            captured=not router and context.interception != "NONE",
            application="127.0.0.1" if local else "$(INSTANCE_IP)",
            domain=domain,
            runtime=context.proxy.runtime_values,
            connections=connections_of(context.proxy),
            listeners_limited=limits_listeners(context.proxy),
            reports=reports,
            compressed=context.proxy.stats_compression is not False,
            json_logs=bool(context.value("logAsJson")),
            patched=patched if envoy_filters else dict,
        )
        proxy["args"] = envoy_args(
            bootstrap,
            concurrency=_concurrency(context, proxy),
            log_level=context.setting(a.LOG_LEVEL, "proxy", "logLevel") or "warning",
            component_log_level=context.setting(
                a.COMPONENT_LOG_LEVEL, "proxy", "componentLogLevel"
            ),
            drain_s=-(-(nanoseconds(context.proxy.drain_duration) or 0) // SECOND_NS) or 45,
            file_flush=file_flush_args(context.proxy),
            config_file=context.proxy.custom_config_file,
        )
        return warnings

    def _patched(
        self,
        document: dict[str, Any],
        context: PodContext,
        metadata: Mapping[str, Any],
        router: bool,
        envoy_filters: Sequence[ConfigObject],
        warnings: list[str],
    ) -> dict[str, Any]:
        # Envoy's messages are many and slow to load: only those who patch pay for them.
        from meshbus.compile.bootstrap_patches import bootstrap_patches, patched_bootstrap
        from meshbus.compile.proxy_keys import ROUTER, SIDECAR, ProxyKeys

        proxy = ProxyKeys(
            ROUTER if router else SIDECAR,
            "",
            context.namespace,
            labels=tuple(sorted(metadata["LABELS"].items())),
            metadata=tuple(sorted((k, v) for k, v in metadata.items() if isinstance(v, str))),
        )
        root = text(self.mesh.get("rootNamespace")) or "istio-system"
        objects = ((_filter_key(row), row) for row in envoy_filters)
        out, findings = patched_bootstrap(document, bootstrap_patches(objects, proxy, root))
        warnings += [
            f"EnvoyFilter {f.object.namespace}/{f.object.name}: {f.path}: {f.message}"
            for f in findings
        ]
        return out

    def _rewrites(self, notes: Mapping[str, str]) -> bool:
        wish = a.truth(notes.get(a.REWRITE, ""))
        default = lookup(self.values, "sidecarInjectorWebhook", "rewriteAppHTTPProbe")
        return default is not False if wish is None else wish


def _filter_key(row: ConfigObject) -> Key:
    return Key("", "cfg", "envoyfilters", row.namespace, row.name)


def _check_mesh(mesh: Mapping[str, Any], path: str) -> None:
    report = validate_object(
        {
            "apiVersion": "mesh.istio.io/v1alpha1",
            "kind": "MeshConfig",
            "metadata": {"name": "mesh"},
            "spec": mesh,
        }
    )
    if report.errors:
        first = report.errors[0]
        place = first.path.removeprefix("spec.").removeprefix("spec")
        raise InjectionError(f"{path}.{place}" if place else path, first.message)


def _own_proxy_config(word: str) -> dict[str, Any]:
    place = f"metadata.annotations[{a.PROXY_CONFIG}]"
    try:
        own = read_yaml(word)
    except ValueError as error:
        raise InjectionError(place, f"invalid value: {error}") from error
    if own is None:
        return {}
    if not isinstance(own, dict):
        raise InjectionError(place, "invalid value: must hold fields of ProxyConfig")
    try:
        _check_mesh({"defaultConfig": own}, "meshConfig")
    except InjectionError as error:
        field_path = error.path.removeprefix("meshConfig.defaultConfig").lstrip(".")
        raise InjectionError(place, f"invalid value: {field_path}: {error.message}") from error
    return json_names(own)


def _parse_templates(values: Mapping[str, Any]) -> dict[str, Template]:
    found = {}
    for name, source in (lookup(values, "sidecarInjectorWebhook", "templates") or {}).items():
        path = f"sidecarInjectorWebhook.templates.{name}"
        if not isinstance(source, str):
            raise InjectionError(path, "must be the text of a template")
        try:
            found[name] = parse_template(source)
        except TemplateError as error:
            raise InjectionError(path, str(error)) from error
    return found


def _template_data(context: PodContext) -> dict[str, Any]:
    """What custom templates see, under the names of Istio's."""
    owner = context.owner
    return {
        "TypeMeta": {"APIVersion": owner.api_version, "Kind": owner.kind},
        "DeploymentMeta": {"Name": owner.name, "Namespace": owner.namespace},
        "ObjectMeta": {
            "Annotations": dict(context.annotations),
            "Labels": dict(context.labels),
            "Namespace": context.namespace,
            "Name": owner.name,
        },
        "Spec": context.spec,
        "Values": context.values,
        "MeshConfig": context.mesh,
        "ProxyConfig": msgspec.to_builtins(context.proxy),
        "Revision": context.revision,
        "ProxyImage": context.image("", text(context.value("proxy", "image"))),
        "ProxyUID": context.user,
        "ProxyGID": context.group,
    }


def _find(spec: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    for place in ("containers", "initContainers"):
        for container in spec.get(place) or ():
            if container.get("name") == name:
                found: dict[str, Any] = container
                return found
    return None


def _has(pod: Mapping[str, Any], place: str, name: str) -> bool:
    return any(c.get("name") == name for c in pod["spec"].get(place) or ())


def _has_capture(pod: Mapping[str, Any]) -> bool:
    return any(_has(pod, "initContainers", name) for name in (INIT, VALIDATION))


def _join_native(overlay: dict[str, Any]) -> None:
    """What another template says of a native sidecar under `containers` is said of it."""
    spec = overlay["spec"]
    stray = [c for c in spec.get("containers") or () if c.get("name") == PROXY]
    if stray:
        spec["containers"] = [c for c in spec["containers"] if c.get("name") != PROXY]
        for container in stray:
            overlay["spec"] = spec = merge_pod(spec, {"initContainers": [container]})


def _move(spec: dict[str, Any], name: str) -> None:
    """A container that people wrote goes where the native sidecar is."""
    moved = [c for c in spec.get("containers") or () if c.get("name") == name]
    if moved:
        spec["containers"] = [c for c in spec["containers"] if c.get("name") != name]
        spec["initContainers"] = [*(spec.get("initContainers") or ()), *moved]


def _drop_given_user(spec: dict[str, Any], given: int) -> None:
    """A user that the platform has given to the proxy's container is nobody's wish."""
    proxy = _find(spec, PROXY)
    security = proxy.get("securityContext") if proxy is not None else None
    if isinstance(security, dict) and security.get("runAsUser") == given:
        del security["runAsUser"]


def _agree_on_user(
    pod: dict[str, Any], overrides: Mapping[str, Iterable[Mapping[str, Any]]], context: PodContext
) -> None:
    """Capture lets the proxy's own traffic pass by its user: that is the one it runs as."""
    own = [c for place in overrides.values() for c in place if c.get("name") == PROXY]
    wish = (own[0].get("securityContext") or {}) if own else {}
    user, group = wish.get("runAsUser"), wish.get("runAsGroup")
    init = _find(pod["spec"], INIT) or _find(pod["spec"], VALIDATION)
    if init is None or (user is None and group is None):
        return
    if init["name"] == VALIDATION:
        security = init.setdefault("securityContext", {})
        security.update({k: v for k, v in (("runAsUser", user), ("runAsGroup", group)) if v})
    arguments = init.get("args") or []
    if user and "-u" in arguments[:-1]:
        arguments[arguments.index("-u") + 1] = str(user)


def _put_variables(environment: list[dict[str, Any]], variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        for held in environment:
            if held.get("name") == name:
                held.clear()
                held.update(name=name, value=value)
                break
        else:
            environment.append({"name": name, "value": value})


def _node_metadata(
    pod: Mapping[str, Any], environment: Iterable[Mapping[str, Any]], context: PodContext
) -> dict[str, Any]:
    """What the proxy says of itself. The gateway believes the token, not this."""
    metadata: dict[str, Any] = {
        "NAME": "$(POD_NAME)",
        "NAMESPACE": "$(POD_NAMESPACE)",
        "SERVICE_ACCOUNT": "$(SERVICE_ACCOUNT)",
        "INSTANCE_IPS": "$(INSTANCE_IPS)",
        "POD_UID": "$(POD_UID)",
        "LABELS": dict(pod["metadata"].get("labels") or {}),
    }
    for variable in environment:
        name = str(variable.get("name"))
        if name.startswith("ISTIO_META_") and name != "ISTIO_META_POD_PORTS":
            literal = variable.get("value")
            key = name.removeprefix("ISTIO_META_")
            metadata[key] = literal if isinstance(literal, str) else f"$({name})"
    if context.revision:
        metadata["REVISION"] = context.revision
    return metadata


def _concurrency(context: PodContext, proxy: Mapping[str, Any]) -> int:
    wish = context.proxy.concurrency
    if wish is not None:
        return wish
    resources = proxy.get("resources") or {}
    for part in ("limits", "requests"):
        amount = cores((resources.get(part) or {}).get("cpu"))
        if amount:
            return max(1, -(-amount // Fraction(1)))
    return 2


def _status(overlay: Mapping[str, Any], revision: str) -> str:
    def names(part: str) -> list[str] | None:
        return [str(item.get("name")) for item in overlay["spec"].get(part) or ()] or None

    status = {part: names(part) for part in ("initContainers", "containers", "volumes",
                                             "imagePullSecrets")}  # fmt: skip
    return json.dumps({**status, "revision": revision or "default"}, separators=(",", ":"))


def _order(spec: dict[str, Any], context: PodContext, notes: Mapping[str, str]) -> None:
    """A native sidecar after capture and before the rest; a classic one last, so that tools choose
    the application, or first if the application waits for it, and capture after other inits, so
    that they reach the network."""
    inits = spec.get("initContainers") or []
    if _has({"spec": spec}, "initContainers", PROXY):
        before = [part.strip() for part in notes.get(a.BEFORE_PROXY, "").split(",")]
        for name in [PROXY, *reversed(before), VALIDATION, INIT]:
            inits = _first(inits, name)
    else:
        inits = _last(_first(inits, VALIDATION), INIT)
    if inits:
        spec["initContainers"] = inits
    elif "initContainers" in spec:
        del spec["initContainers"]
    place = _first if holds_application(context) else _last
    spec["containers"] = place(spec.get("containers") or [], PROXY)


def _first(containers: list[Any], name: str) -> list[Any]:
    return sorted(containers, key=lambda c: c.get("name") != name)


def _last(containers: list[Any], name: str) -> list[Any]:
    return sorted(containers, key=lambda c: c.get("name") == name)
