"""The one registry of the kinds that people write.

What a kind is called, in which versions it is served, whether it lives in a namespace, and which
struct says its shape. Everything that lists kinds (API discovery, OpenAPI, validation, the
command line) reads this table; nothing else repeats it.
"""

import importlib
from collections.abc import Iterable
from functools import cache
from typing import cast

import msgspec


class KindInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One kind, as Kubernetes' API discovery describes it."""

    group: str
    """Empty for Kubernetes' core kinds."""
    version: str
    """The version in which it is kept, and preferred in discovery."""
    versions: tuple[str, ...]
    """All served versions, preferred first."""
    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...] = ()
    namespaced: bool = True
    spec_field: bool = True
    """Whether the content is under `spec`; else it is beside `metadata` (ConfigMap, Secret)."""
    has_status: bool = True
    """Whether `/status` is a subresource of its own."""
    categories: tuple[str, ...] = ()
    served: bool = True
    """False for kinds of Kubernetes that a manifest may hold and that nothing here reads."""
    proto_json: bool = False
    """Whether the content is protobuf JSON (`meshbus.api.proto_json`). So it is with the kinds of
    Istio 1.4 and the mesh config."""
    struct: str = ""
    """`module:Class` of the shape of the content; empty if any shape is taken."""

    @property
    def api_version(self) -> str:
        """`group/version`, or the version alone for core kinds."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def table(self) -> str:
        """What its rows are filed under, `Key.kind`: its plural, or `plural.group` where a kind of
        another group, earlier in this file, has that plural."""
        owner = _groups_by_plural().get(self.plural, self.group)
        return self.plural if owner == self.group else f"{self.plural}.{self.group}"

    @property
    def list_kind(self) -> str:
        """The kind of a list of them."""
        return f"{self.kind}List"

    @property
    def subresources(self) -> tuple[str, ...]:
        """Names of its subresources."""
        return ("status",) if self.has_status else ()

    def shape(self) -> type[msgspec.Struct] | None:
        """The struct of its content, imported when first asked for; None if any shape is taken."""
        if not self.struct:
            return None
        module, _, name = self.struct.partition(":")
        return cast(type[msgspec.Struct], getattr(importlib.import_module(module), name))


def plural_of(kind: str) -> str:
    """The plural of a kind as Kubernetes' generators make it."""
    lower = kind.lower()
    if lower in ("endpoints", "meshnetworks"):
        return lower
    if lower.endswith(("s", "x", "ch", "sh")):
        return f"{lower}es"
    if lower.endswith("y") and lower[-2] not in "aeiou":
        return f"{lower[:-1]}ies"
    return f"{lower}s"


def _kind(
    group: str,
    versions: str,
    kind: str,
    struct: str = "",
    *,
    short: str = "",
    namespaced: bool = True,
    spec_field: bool = True,
    has_status: bool = True,
    categories: tuple[str, ...] = (),
    served: bool = True,
    proto_json: bool = False,
) -> KindInfo:
    served_versions = tuple(versions.split())
    return KindInfo(
        group=group,
        version=served_versions[0],
        versions=served_versions,
        kind=kind,
        plural=plural_of(kind),
        singular=kind.lower(),
        short_names=tuple(short.split()),
        namespaced=namespaced,
        spec_field=spec_field,
        has_status=has_status,
        categories=categories,
        served=served,
        proto_json=proto_json,
        struct=struct and f"meshbus.api.{struct}",
    )


def _istio(
    group: str,
    versions: str,
    kind: str,
    struct: str,
    *,
    short: str = "",
    namespaced: bool = True,
    has_status: bool = True,
    proto_json: bool = False,
) -> KindInfo:
    categories = ("istio-io", f"{group.split('.')[0]}-istio-io", "meshbus")
    return _kind(
        group,
        versions,
        kind,
        struct,
        short=short,
        namespaced=namespaced,
        has_status=has_status,
        categories=categories,
        proto_json=proto_json,
    )


def _of_1_4(
    group: str, version: str, kind: str, struct: str = "", *, namespaced: bool = True
) -> KindInfo:
    return _kind(
        group,
        version,
        kind,
        struct,
        namespaced=namespaced,
        has_status=False,
        categories=("istio-io", "meshbus"),
        proto_json=True,
    )


_ISTIO_VERSIONS = "v1 v1beta1 v1alpha3"
_NETWORKING, _SECURITY = "networking.istio.io", "security.istio.io"
_MIXER = "config.istio.io"

_CORE = (
    _kind("", "v1", "Service", "core:ServiceSpec", short="svc", categories=("all",)),
    _kind("", "v1", "Pod", short="po", categories=("all",)),
    _kind("", "v1", "Node", short="no", namespaced=False),
    _kind("", "v1", "Namespace", "core:NamespaceSpec", short="ns", namespaced=False),
    _kind(
        "",
        "v1",
        "ServiceAccount",
        "core:ServiceAccountContent",
        short="sa",
        spec_field=False,
        has_status=False,
    ),
    _kind(
        "",
        "v1",
        "ConfigMap",
        "core:ConfigMapContent",
        short="cm",
        spec_field=False,
        has_status=False,
    ),
    _kind("", "v1", "Secret", "core:SecretContent", spec_field=False, has_status=False),
    _kind(
        "discovery.k8s.io",
        "v1",
        "EndpointSlice",
        "discovery:EndpointSliceContent",
        spec_field=False,
        has_status=False,
    ),
    _kind(
        "networking.k8s.io",
        "v1",
        "Ingress",
        "ingress:IngressSpec",
        short="ing",
        categories=("all",),
    ),
    _kind(
        "networking.k8s.io",
        "v1",
        "IngressClass",
        "ingress:IngressClassSpec",
        namespaced=False,
        has_status=False,
    ),
)

_MESH = (
    _istio(
        _NETWORKING,
        _ISTIO_VERSIONS,
        "VirtualService",
        "networking.virtual_service:VirtualService",
        short="vs",
    ),
    _istio(
        _NETWORKING,
        _ISTIO_VERSIONS,
        "DestinationRule",
        "networking.destination_rule:DestinationRule",
        short="dr",
    ),
    _istio(_NETWORKING, _ISTIO_VERSIONS, "Gateway", "networking.gateway:Gateway", short="gw"),
    _istio(
        _NETWORKING,
        _ISTIO_VERSIONS,
        "ServiceEntry",
        "networking.service_entry:ServiceEntry",
        short="se",
    ),
    _istio(_NETWORKING, _ISTIO_VERSIONS, "Sidecar", "networking.sidecar:Sidecar"),
    _istio(
        _NETWORKING,
        _ISTIO_VERSIONS,
        "WorkloadEntry",
        "networking.workload:WorkloadEntry",
        short="we",
    ),
    _istio(
        _NETWORKING,
        _ISTIO_VERSIONS,
        "WorkloadGroup",
        "networking.workload:WorkloadGroup",
        short="wg",
    ),
    _istio(_NETWORKING, "v1alpha3", "EnvoyFilter", "networking.envoy_filter:EnvoyFilter"),
    _istio(_NETWORKING, "v1beta1", "ProxyConfig", "networking.proxy_config:ProxyConfig"),
    _istio(
        _SECURITY, "v1 v1beta1", "PeerAuthentication", "security:PeerAuthentication", short="pa"
    ),
    _istio(
        _SECURITY,
        "v1 v1beta1",
        "RequestAuthentication",
        "security:RequestAuthentication",
        short="ra",
    ),
    _istio(
        _SECURITY, "v1 v1beta1", "AuthorizationPolicy", "security:AuthorizationPolicy", short="ap"
    ),
    _istio(
        "telemetry.istio.io", "v1 v1alpha1", "Telemetry", "telemetry:Telemetry", short="telemetry"
    ),
    _istio("extensions.istio.io", "v1alpha1", "WasmPlugin", "extensions:WasmPlugin"),
    _istio("extensions.istio.io", "v1alpha1", "TrafficExtension", "extensions:TrafficExtension"),
    _istio(
        "mesh.istio.io",
        "v1alpha1",
        "MeshConfig",
        "mesh.mesh_config:MeshConfig",
        namespaced=False,
        has_status=False,
        proto_json=True,
    ),
    _istio(
        "mesh.istio.io",
        "v1alpha1",
        "MeshNetworks",
        "mesh.mesh_networks:MeshNetworks",
        namespaced=False,
        has_status=False,
        proto_json=True,
    ),
    _kind(
        "gateway.networking.k8s.io",
        "v1beta1 v1",
        "ReferenceGrant",
        "reference_grant:ReferenceGrant",
        short="refgrant",
        has_status=False,
        categories=("gateway-api",),
    ),
    _kind(
        "meshbus.io",
        "v1alpha1",
        "Tenant",
        "tenancy:Tenant",
        namespaced=False,
        categories=("meshbus",),
    ),
    _kind(
        "standalone.meshbus.io",
        "v1alpha1",
        "Workload",
        "standalone:Workload",
        short="wl",
        categories=("meshbus",),
    ),
)

_MIXER_OTHERS = (
    "apikey authorization edge kubernetes logentry metric reportnothing tracespan "
    "bypass circonus cloudwatch dogstatsd fluentd kubernetesenv noop opa prometheus solarwinds "
    "stackdriver statsd stdio zipkin"
)

_ISTIO_1_4 = (
    _of_1_4(_MIXER, "v1alpha2", "attributemanifest", "mixer:AttributeManifest"),
    _of_1_4(_MIXER, "v1alpha2", "handler", "mixer:Handler"),
    _of_1_4(_MIXER, "v1alpha2", "instance", "mixer:Instance"),
    _of_1_4(_MIXER, "v1alpha2", "rule", "mixer:Rule"),
    _of_1_4(_MIXER, "v1alpha2", "adapter", "mixer:Adapter"),
    _of_1_4(_MIXER, "v1alpha2", "template", "mixer:Template"),
    _of_1_4(_MIXER, "v1alpha2", "QuotaSpec", "mixer_client:QuotaSpec"),
    _of_1_4(_MIXER, "v1alpha2", "QuotaSpecBinding", "mixer_client:QuotaSpecBinding"),
    _of_1_4(_MIXER, "v1alpha2", "HTTPAPISpec", "mixer_client:HTTPAPISpec"),
    _of_1_4(_MIXER, "v1alpha2", "HTTPAPISpecBinding", "mixer_client:HTTPAPISpecBinding"),
    _of_1_4(_MIXER, "v1alpha2", "quota", "mixer_adapters:QuotaTemplate"),
    _of_1_4(_MIXER, "v1alpha2", "listentry", "mixer_adapters:ListEntryTemplate"),
    _of_1_4(_MIXER, "v1alpha2", "checknothing", "mixer_adapters:CheckNothingTemplate"),
    _of_1_4(_MIXER, "v1alpha2", "memquota", "mixer_adapters:Memquota"),
    _of_1_4(_MIXER, "v1alpha2", "redisquota", "mixer_adapters:Redisquota"),
    _of_1_4(_MIXER, "v1alpha2", "denier", "mixer_adapters:Denier"),
    _of_1_4(_MIXER, "v1alpha2", "listchecker", "mixer_adapters:Listchecker"),
    *(_of_1_4(_MIXER, "v1alpha2", kind) for kind in _MIXER_OTHERS.split()),
    _of_1_4("authentication.istio.io", "v1alpha1", "Policy", "authentication:Policy"),
    _of_1_4(
        "authentication.istio.io",
        "v1alpha1",
        "MeshPolicy",
        "authentication:Policy",
        namespaced=False,
    ),
    _of_1_4("rbac.istio.io", "v1alpha1", "ServiceRole", "rbac:ServiceRole"),
    _of_1_4("rbac.istio.io", "v1alpha1", "ServiceRoleBinding", "rbac:ServiceRoleBinding"),
    _of_1_4("rbac.istio.io", "v1alpha1", "RbacConfig", "rbac:RbacConfig"),
    _of_1_4("rbac.istio.io", "v1alpha1", "ClusterRbacConfig", "rbac:RbacConfig", namespaced=False),
)


def _platform(api_version: str, kinds: str, *, namespaced: bool = True) -> Iterable[KindInfo]:
    group, _, version = api_version.rpartition("/")
    for kind in kinds.split():
        yield _kind(group, version, kind, namespaced=namespaced, spec_field=False, served=False)


_PLATFORM = (
    *_platform("apps/v1", "Deployment StatefulSet DaemonSet ReplicaSet"),
    *_platform("batch/v1", "Job CronJob"),
    *_platform("v1", "Endpoints PersistentVolumeClaim LimitRange ResourceQuota"),
    *_platform("v1", "PersistentVolume", namespaced=False),
    *_platform("policy/v1", "PodDisruptionBudget"),
    *_platform("autoscaling/v1", "HorizontalPodAutoscaler"),
    *_platform("autoscaling/v2", "HorizontalPodAutoscaler"),
    *_platform("networking.k8s.io/v1", "NetworkPolicy"),
    *_platform("rbac.authorization.k8s.io/v1", "Role RoleBinding"),
    *_platform("rbac.authorization.k8s.io/v1", "ClusterRole ClusterRoleBinding", namespaced=False),
    *_platform("apiextensions.k8s.io/v1", "CustomResourceDefinition", namespaced=False),
)

_SERVED = (*_CORE, *_MESH, *_ISTIO_1_4)


def all_kinds() -> tuple[KindInfo, ...]:
    """Every kind that the API serves, in the order of this file."""
    return _SERVED


def kind_of(api_version: str, kind: str) -> KindInfo | None:
    """The kind of a document, in any served version; also kinds of Kubernetes that are not served
    (`served` is False). None if nothing by that name is known."""
    return _by_kind().get((api_version, kind))


def table_of(api_version: str, kind: str) -> str:
    """What rows of a document are filed under, also those of kinds that nobody knows."""
    info = kind_of(api_version, kind)
    return info.table if info is not None else plural_of(kind)


def by_plural(group: str, version: str, plural: str) -> KindInfo | None:
    """The served kind at `/apis/<group>/<version>/<plural>`; group empty for `/api/v1`."""
    return _by_plural().get((group, version, plural))


def by_name(name: str) -> KindInfo | None:
    """The served kind that a person names: kind, plural, singular or short name, any case.

    `plural.group` tells apart kinds of the same name.
    """
    wanted, _, group = name.lower().partition(".")
    for info in _SERVED:
        names = (info.plural, info.singular, *info.short_names)
        if wanted in names and (not group or info.group == group):
            return info
    return None


def groups() -> dict[str, tuple[str, ...]]:
    """Served versions of each group (core: empty name), preferred first."""
    found: dict[str, dict[str, None]] = {}
    for info in _SERVED:
        found.setdefault(info.group, {}).update(dict.fromkeys(info.versions))
    return {group: tuple(versions) for group, versions in found.items()}


@cache
def _by_kind() -> dict[tuple[str, str], KindInfo]:
    return {
        (f"{info.group}/{version}" if info.group else version, info.kind): info
        for info in (*_PLATFORM, *_SERVED)
        for version in info.versions
    }


@cache
def _groups_by_plural() -> dict[str, str]:
    found: dict[str, str] = {}
    for info in _SERVED:
        found.setdefault(info.plural, info.group)
    return found


@cache
def _by_plural() -> dict[tuple[str, str, str], KindInfo]:
    return {
        (info.group, version, info.plural): info for info in _SERVED for version in info.versions
    }
