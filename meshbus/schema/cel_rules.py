"""Rules between fields of one object, as CEL for the API server: what it refuses by itself.

The validating webhook judges the same and more; these hold also while it is away.
Source: the reference of each kind; those that Istio's definitions carry have its meaning.
"""

_ONE_TARGET = (
    "[has(self.selector), has(self.targetRef), has(self.targetRefs)].filter(x, x).size() <= 1",
    "only one of targetRefs or selector can be set",
)
_ONE_ENDPOINT = (
    "!has(self.endpoints) || size(self.endpoints) <= 1 || "
    "!has(self.resolution) || self.resolution != 'DNS_ROUND_ROBIN'"
)
_SECURITY, _NETWORKING = "security.istio.io", "networking.istio.io"

RULES: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    (_SECURITY, "AuthorizationPolicy"): (_ONE_TARGET,),
    (_SECURITY, "RequestAuthentication"): (_ONE_TARGET,),
    ("telemetry.istio.io", "Telemetry"): (_ONE_TARGET,),
    ("extensions.istio.io", "WasmPlugin"): (_ONE_TARGET,),
    (_SECURITY, "PeerAuthentication"): (
        (
            "!has(self.portLevelMtls) || has(self.selector) && has(self.selector.matchLabels)",
            "portLevelMtls requires selector",
        ),
    ),
    (_NETWORKING, "WorkloadEntry"): (
        ("has(self.address) || has(self.network)", "Address is required"),
    ),
    (_NETWORKING, "ServiceEntry"): (
        (
            "(has(self.workloadSelector) ? 1 : 0) + (has(self.endpoints) ? 1 : 0) <= 1",
            "only one of WorkloadSelector or Endpoints can be set",
        ),
        (
            _ONE_ENDPOINT,
            "DNS_ROUND_ROBIN mode cannot have multiple endpoints",
        ),
    ),
}
"""(rule, message) on the spec, by (group, kind)."""
