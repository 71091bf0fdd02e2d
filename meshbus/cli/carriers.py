"""Which Envoy object carries the fields of a kind, and which tests show it.

By kind and message; a field that its message's object does not carry has its own entry. Messages of
Envoy are written without their packages (`route` is RouteConfiguration and what it holds).
"""

from pathlib import Path

from meshbus.api.yaml_text import read_yaml

GOLDEN = "tests/golden/compile"
WALK = "tests/golden/walk"
UNIT = "tests/unit/compile"
TASKS = "tests/tasks"
ROOT = "tests"

CARRIERS: dict[str, tuple[str, str]] = {
    "DestinationRule": ("Cluster", f"{UNIT}/test_compile_destination_rules.py"),
    "TrafficPolicy": ("Cluster", f"{GOLDEN}/sidecar-policies.in.yaml"),
    "Subset": ("Cluster, ClusterLoadAssignment", f"{TASKS}/test_tasks_routing.py"),
    "LoadBalancerSettings": ("Cluster.lb_policy", f"{GOLDEN}/sidecar-policies.in.yaml"),
    "ConnectionPoolSettings": ("Cluster.circuit_breakers", f"{TASKS}/test_tasks_resilience.py"),
    "OutlierDetection": ("Cluster.outlier_detection", f"{TASKS}/test_tasks_resilience.py"),
    "ClientTLSSettings": ("UpstreamTlsContext", f"{UNIT}/test_compile_tls_settings.py"),
    "PortTrafficPolicy": ("Cluster", f"{UNIT}/test_compile_destination_rules.py"),
    "TunnelSettings": ("TcpProxy.tunneling_config", f"{TASKS}/test_tasks_egress.py"),
    "ProxyProtocol": ("ProxyProtocolUpstreamTransport", f"{TASKS}/test_tasks_egress.py"),
    "RetryBudget": (
        "Cluster.circuit_breakers.retry_budget",
        f"{TASKS}/test_tasks_resilience.py",
    ),
    "ConsistentHashLB": ("RouteAction.hash_policy", f"{GOLDEN}/sidecar-policies.in.yaml"),
    "HTTPCookie": ("RouteAction.hash_policy.cookie", f"{GOLDEN}/sidecar-policies.in.yaml"),
    "HTTPCookieAttribute": ("RouteAction.hash_policy.cookie", f"{GOLDEN}/sidecar-policies.in.yaml"),
    "RingHash": ("Cluster.ring_hash_lb_config", f"{GOLDEN}/sidecar-policies.in.yaml"),
    "Maglev": ("Cluster.maglev_lb_config", f"{GOLDEN}/sidecar-policies.in.yaml"),
    "LocalityLoadBalancerSetting": (
        "ClusterLoadAssignment: priority and weight of localities",
        f"{GOLDEN}/sidecar-locality.in.yaml",
    ),
    "LocalityDistribute": (
        "ClusterLoadAssignment: weight of localities",
        f"{GOLDEN}/sidecar-locality.in.yaml",
    ),
    "ZoneAwareLbSetting": (
        "Cluster.common_lb_config.zone_aware_lb_config, ClusterLoadAssignment",
        f"{UNIT}/test_compile_zones.py",
    ),
    "LocalityFailover": (
        "ClusterLoadAssignment: priority of localities",
        f"{GOLDEN}/sidecar-locality.in.yaml",
    ),
    "WarmupConfiguration": ("Cluster: slow_start_config", f"{GOLDEN}/sidecar-policies.in.yaml"),
    "TCPSettings": ("Cluster.circuit_breakers", f"{GOLDEN}/sidecar-policies.in.yaml"),
    "HTTPSettings": ("HttpProtocolOptions", f"{GOLDEN}/sidecar-policies.in.yaml"),
    "TcpKeepalive": (
        "Cluster.upstream_connection_options",
        f"{GOLDEN}/sidecar-policies.in.yaml",
    ),
    "Http2KeepAlive": (
        "HttpProtocolOptions: connection_keepalive",
        f"{GOLDEN}/sidecar-policies.in.yaml",
    ),
    "EnvoyFilter": ("what it patches", f"{UNIT}/test_compile_envoy_filter.py"),
    "EnvoyConfigObjectPatch": ("what it patches", f"{GOLDEN}/sidecar-envoy-filter.in.yaml"),
    "EnvoyConfigObjectMatch": ("what it patches", f"{UNIT}/test_compile_envoy_filter_matches.py"),
    "OldFilter": ("a filter of Listener", f"{UNIT}/test_compile_envoy_filter.py"),
    "Patch": ("what it patches", f"{UNIT}/test_compile_envoy_filter.py"),
    "OldListenerMatch": ("a filter of Listener", f"{UNIT}/test_compile_envoy_filter.py"),
    "InsertPosition": ("a filter of Listener", f"{UNIT}/test_compile_envoy_filter.py"),
    "ProxyMatch": ("which proxies are patched", f"{UNIT}/test_compile_envoy_filter.py"),
    "ListenerMatch": ("Listener", f"{UNIT}/test_compile_envoy_filter_matches.py"),
    "RouteConfigurationMatch": (
        "RouteConfiguration",
        f"{UNIT}/test_compile_envoy_filter_matches.py",
    ),
    "ClusterMatch": ("Cluster", f"{UNIT}/test_compile_envoy_filter_matches.py"),
    "FilterChainMatch": ("FilterChain", f"{UNIT}/test_compile_envoy_filter.py"),
    "VirtualHostMatch": ("VirtualHost", f"{UNIT}/test_compile_envoy_filter.py"),
    "FilterMatch": ("a filter of FilterChain", f"{UNIT}/test_compile_envoy_filter.py"),
    "RouteMatch": ("Route", f"{UNIT}/test_compile_envoy_filter.py"),
    "PolicyTargetReference": ("which proxies", f"{UNIT}/test_compile_envoy_filter.py"),
    "SubFilterMatch": ("HttpFilter", f"{UNIT}/test_compile_envoy_filter.py"),
    "Gateway": ("Listener of a router", f"{WALK}/gateway.yaml"),
    "Server": ("FilterChain, RouteConfiguration", f"{WALK}/gateway.yaml"),
    "Port": ("Listener.address", f"{WALK}/gateway.yaml"),
    "ServerTLSSettings": ("DownstreamTlsContext", f"{UNIT}/test_compile_gateway_tls.py"),
    "TLSCertificate": ("DownstreamTlsContext", f"{UNIT}/test_compile_gateway_tls.py"),
    "ProxyConfig": ("the start of Envoy", "tests/tasks/test_tasks_proxies.py"),
    "ProxyImage": ("container istio-proxy", "tests/kube/test_kube_injection.py"),
    "ProxyHeaders": ("HttpConnectionManager", f"{UNIT}/test_compile_proxy_headers.py"),
    "ConnectionSettings": (
        "HttpConnectionManager",
        f"{UNIT}/test_compile_connection_settings.py",
    ),
    "HeaderSwitch": ("HttpConnectionManager", f"{UNIT}/test_compile_proxy_headers.py"),
    "HeaderWish": ("HttpConnectionManager", f"{UNIT}/test_compile_proxy_headers.py"),
    "ServerHeader": ("HttpConnectionManager", f"{UNIT}/test_compile_proxy_headers.py"),
    "MetadataExchangeHeaders": ("nothing: none are sent", f"{UNIT}/test_compile_proxy_headers.py"),
    "ClientCertDetails": (
        "HttpConnectionManager.set_current_client_cert_details",
        f"{GOLDEN}/sidecar-settings.in.yaml",
    ),
    "GatewayTopology": (
        "HttpConnectionManager of a router",
        f"{GOLDEN}/router-settings.in.yaml",
    ),
    "ServiceEntry": ("Cluster, Listener, VirtualHost", f"{WALK}/external.yaml"),
    "ServicePort": ("Listener.address, Cluster", f"{WALK}/external.yaml"),
    "WorkloadEntry": ("ClusterLoadAssignment", f"{WALK}/networks.yaml"),
    "Sidecar": ("which objects a proxy is sent", f"{WALK}/sidecar.yaml"),
    "IstioIngressListener": ("FilterChain of virtualInbound", f"{WALK}/inbound.yaml"),
    "IstioEgressListener": ("Listener", f"{WALK}/sidecar.yaml"),
    "OutboundTrafficPolicy": ("the last VirtualHost and FilterChain", f"{WALK}/sidecar.yaml"),
    "SidecarPort": ("Listener.address", f"{WALK}/sidecar.yaml"),
    "VirtualService": ("VirtualHost, FilterChain", f"{WALK}/routes.yaml"),
    "HTTPRoute": ("Route", f"{GOLDEN}/sidecar-routes.in.yaml"),
    "TLSRoute": ("FilterChain", f"{WALK}/routes.yaml"),
    "TCPRoute": ("FilterChain", f"{WALK}/routes.yaml"),
    "HTTPMatchRequest": ("RouteMatch", f"{WALK}/routes.yaml"),
    "HTTPRouteDestination": ("RouteAction.weighted_clusters", f"{WALK}/routes.yaml"),
    "HTTPRedirect": ("RedirectAction", f"{WALK}/routes.yaml"),
    "HTTPDirectResponse": ("DirectResponseAction", f"{WALK}/routes.yaml"),
    "Delegate": ("Route", f"{GOLDEN}/sidecar-delegates.in.yaml"),
    "HTTPRewrite": ("RouteAction: prefix and host rewrite", f"{GOLDEN}/sidecar-routes.in.yaml"),
    "HTTPRetry": ("RetryPolicy", f"{TASKS}/test_tasks_resilience.py"),
    "HTTPFaultInjection": ("HTTPFault of a Route", f"{TASKS}/test_tasks_resilience.py"),
    "FaultDelay": ("HTTPFault.delay", f"{TASKS}/test_tasks_resilience.py"),
    "FaultAbort": ("HTTPFault.abort", f"{TASKS}/test_tasks_resilience.py"),
    "Destination": ("RouteAction.cluster", f"{WALK}/routes.yaml"),
    "HTTPMirrorPolicy": (
        "RouteAction.request_mirror_policies",
        f"{GOLDEN}/sidecar-routes.in.yaml",
    ),
    "Percent": ("FractionalPercent", f"{GOLDEN}/sidecar-routes.in.yaml"),
    "CorsPolicy": ("CorsPolicy of a Route", f"{GOLDEN}/sidecar-routes.in.yaml"),
    "Headers": ("Route: headers to add and remove", f"{GOLDEN}/sidecar-routes.in.yaml"),
    "HeaderOperations": ("Route: headers to add and remove", f"{GOLDEN}/sidecar-routes.in.yaml"),
    "TLSMatchAttributes": ("FilterChainMatch", f"{WALK}/routes.yaml"),
    "RouteDestination": ("TcpProxy.weighted_clusters", f"{WALK}/routes.yaml"),
    "L4MatchAttributes": ("FilterChainMatch", f"{WALK}/routes.yaml"),
    "StringMatch": ("StringMatcher", f"{WALK}/routes.yaml"),
    "HTTPBody": ("DirectResponseAction.body", f"{GOLDEN}/sidecar-routes.in.yaml"),
    "RegexRewrite": ("RouteAction.regex_rewrite", f"{GOLDEN}/sidecar-routes.in.yaml"),
    "MeshNetworks": ("ClusterLoadAssignment", f"{UNIT}/test_compile_networks.py"),
    "Network": ("ClusterLoadAssignment", f"{UNIT}/test_compile_networks.py"),
    "NetworkEndpoints": ("ClusterLoadAssignment", f"{WALK}/networks.yaml"),
    "NetworkGateway": ("ClusterLoadAssignment", f"{UNIT}/test_compile_networks.py"),
    "PathNormalization": ("HttpConnectionManager", f"{UNIT}/test_compile_mesh_config.py"),
    "TLSConfig": ("TlsParameters", f"{UNIT}/test_compile_tls_settings.py"),
    "CertificateData": ("trusted roots, by SDS", f"{ROOT}/integration/ca/test_ca_federation.py"),
    "ExtAuthzHttp": ("ExtAuthz", f"{ROOT}/integration/security/test_security_envoys.py"),
    "ExtAuthzGrpc": ("ExtAuthz", f"{ROOT}/integration/security/test_authorizers_envoys.py"),
    "LogService": ("HttpGrpcAccessLogConfig", f"{GOLDEN}/sidecar-mesh.in.yaml"),
    "TcpLogService": ("TcpGrpcAccessLogConfig", f"{GOLDEN}/sidecar-mesh.in.yaml"),
    "OpenTelemetryLogs": ("OpenTelemetryAccessLogConfig", f"{GOLDEN}/sidecar-mesh.in.yaml"),
    "LogFormat": ("SubstitutionFormatString", f"{GOLDEN}/sidecar-mesh.in.yaml"),
    "FileLogs": ("FileAccessLog", f"{GOLDEN}/sidecar-mesh.in.yaml"),
    "RemoteService": ("Cluster `envoy_accesslog_service`", f"{GOLDEN}/sidecar-log-service.in.yaml"),
    "WasmPlugin": ("Wasm, by ECDS", f"{UNIT}/test_compile_extensions.py"),
    "WasmConfig": ("Wasm, by ECDS", f"{UNIT}/test_compile_extensions.py"),
    "VmConfig": ("VmConfig", f"{UNIT}/test_compile_extensions.py"),
    "EnvVar": ("VmConfig.environment_variables", f"{UNIT}/test_compile_extensions.py"),
    "TrafficExtension": ("HttpFilter, network Filter", f"{UNIT}/test_compile_extensions.py"),
    "TrafficSelector": ("which filter chains", f"{UNIT}/test_compile_extensions.py"),
    "LuaConfig": ("Lua, by ECDS", f"{TASKS}/test_tasks_extensions.py"),
    "WorkloadGroup": ("WorkloadEntry of a machine", f"{ROOT}/e2e/test_e2e_machines.py"),
    "ObjectMeta": ("WorkloadEntry of a machine", f"{ROOT}/e2e/test_e2e_machines.py"),
    **dict.fromkeys(
        (
            "ReadinessProbe",
            "HTTPHealthCheckConfig",
            "HTTPHeader",
            "TCPHealthCheckConfig",
            "ExecHealthCheckConfig",
            "GrpcHealthCheckConfig",
        ),
        ("ClusterLoadAssignment: health", f"{ROOT}/unit/local/test_local_health.py"),
    ),
    "AuthorizationPolicy": ("RBAC", f"{UNIT}/test_compile_authorization.py"),
    "AuthorizationRule": ("RBAC", f"{UNIT}/test_compile_authorization.py"),
    "ExtensionProviderRef": ("ExtAuthz", f"{UNIT}/test_compile_authorization.py"),
    "From": ("RBAC: principals", f"{UNIT}/test_compile_authorization.py"),
    "To": ("RBAC: permissions", f"{UNIT}/test_compile_authorization.py"),
    "Condition": ("RBAC", f"{UNIT}/test_compile_authorization.py"),
    "Source": ("RBAC: principals", f"{ROOT}/integration/security/policy_cases.py"),
    "Operation": ("RBAC: permissions", f"{ROOT}/integration/security/policy_cases.py"),
    "PeerAuthentication": (
        "FilterChain of virtualInbound",
        f"{UNIT}/test_compile_peer_authentication.py",
    ),
    "MutualTLS": ("FilterChain of virtualInbound", f"{UNIT}/test_compile_peer_authentication.py"),
    "RequestAuthentication": ("JwtAuthentication", f"{UNIT}/test_compile_authorization.py"),
    **dict.fromkeys(
        ("JWTRule", "JWTHeader", "ClaimToHeader"),
        ("JwtProvider", f"{ROOT}/integration/security/test_security_envoys.py"),
    ),
    **dict.fromkeys(
        ("Policy", "TargetSelector", "PeerAuthenticationMethod", "MutualTls"),
        ("FilterChain of virtualInbound", f"{UNIT}/test_compile_legacy_security.py"),
    ),
    **dict.fromkeys(
        ("OriginAuthenticationMethod", "Jwt", "TriggerRule", "PolicyStringMatch"),
        ("JwtAuthentication", f"{UNIT}/test_compile_legacy_security.py"),
    ),
    **dict.fromkeys(
        (
            "ServiceRole",
            "AccessRule",
            "Constraint",
            "ServiceRoleBinding",
            "Subject",
            "RoleRef",
            "RbacConfig",
            "Target",
        ),
        ("RBAC", f"{UNIT}/test_compile_legacy_security.py"),
    ),
    "MeshOutboundTrafficPolicy": ("the last VirtualHost and FilterChain", f"{WALK}/outbound.yaml"),
    "MeshInboundTrafficPolicy": (
        "Cluster of the application",
        f"{GOLDEN}/sidecar-settings.in.yaml",
    ),
    **dict.fromkeys(
        (
            "LabelSelectorRequirement",
            "NamespaceSelector",
            "VisibilityRule",
            "VisibilityPolicy",
            "ServiceEntryVisibility",
        ),
        ("which objects a proxy is sent", f"{UNIT}/test_compile_mesh_config.py"),
    ),
    "ServiceSettings": ("ClusterLoadAssignment", f"{UNIT}/test_compile_mesh_config.py"),
    "ServiceSettingsFields": ("ClusterLoadAssignment", f"{UNIT}/test_compile_mesh_config.py"),
    "ExtensionProvider": ("what names it", f"{UNIT}/test_compile_mesh_config.py"),
    "DefaultProviders": ("HttpConnectionManager", f"{UNIT}/test_compile_mesh_config.py"),
    "PortSelector": ("which Cluster", f"{WALK}/routes.yaml"),
    "LabelSelector": ("which proxies", f"{WALK}/sidecar.yaml"),
    "WorkloadSelector": ("which proxies", f"{UNIT}/test_compile_destination_rules.py"),
}
"""By message: the object, the test that shows it best."""
FIELDS: dict[tuple[str, str], tuple[str, str]] = {
    ("LoadBalancerSettings", "zoneAwareLbSetting"): (
        "Cluster.common_lb_config.zone_aware_lb_config, ClusterLoadAssignment",
        "tests/tasks/test_tasks_zones.py",
    ),
    ("TCPSettings", "connectTimeout"): (
        "Cluster.connect_timeout",
        f"{GOLDEN}/sidecar-policies.in.yaml",
    ),
    ("TCPSettings", "tcpKeepalive"): (
        "Cluster.upstream_connection_options",
        f"{GOLDEN}/sidecar-policies.in.yaml",
    ),
    ("TCPSettings", "maxConnectionDuration"): (
        "TcpProxy.max_downstream_connection_duration, HttpProtocolOptions",
        f"{UNIT}/test_compile_cluster_truths.py",
    ),
    ("TCPSettings", "idleTimeout"): (
        "TcpProxy.idle_timeout, HttpProtocolOptions",
        f"{UNIT}/test_compile_cluster_truths.py",
    ),
    ("HTTPSettings", "http1MaxPendingRequests"): (
        "Cluster.circuit_breakers",
        f"{GOLDEN}/sidecar-policies.in.yaml",
    ),
    ("HTTPSettings", "http2MaxRequests"): (
        "Cluster.circuit_breakers",
        f"{GOLDEN}/sidecar-policies.in.yaml",
    ),
    ("HTTPSettings", "maxRetries"): (
        "Cluster.circuit_breakers",
        f"{GOLDEN}/sidecar-policies.in.yaml",
    ),
    ("MeshProxyConfig", "proxyMetadata"): (
        "RouteConfiguration.vhds, OnDemand",
        f"{UNIT}/test_compile_on_demand.py",
    ),
    ("MeshProxyConfig", "interceptionMode"): ("Listener.address", f"{WALK}/uncaptured.yaml"),
    ("VirtualService", "exportTo"): ("which proxies", f"{WALK}/routes.yaml"),
    ("VirtualService", "gateways"): ("which proxies", f"{WALK}/gateway.yaml"),
    ("DestinationRule", "exportTo"): ("which proxies", f"{UNIT}/test_compile_destination_rules.py"),
    ("ServiceEntry", "exportTo"): ("which proxies", f"{WALK}/external.yaml"),
    ("ServiceEntry", "endpoints"): ("ClusterLoadAssignment", f"{WALK}/networks.yaml"),
    ("ServiceEntry", "resolution"): ("Cluster.type", f"{WALK}/external.yaml"),
    ("Gateway", "selector"): ("which proxies", f"{WALK}/gateway.yaml"),
    ("Sidecar", "inboundConnectionPool"): (
        "Cluster of the application",
        f"{UNIT}/test_compile_sidecar_scope.py",
    ),
    ("ProxyConfig", "selector"): (
        "which proxies",
        "tests/unit/inject/test_inject_proxy_configs.py",
    ),
    ("ServerTLSSettings", "caCertCredentialName"): (
        "DownstreamTlsContext, by SDS",
        f"{TASKS}/test_tasks_authorities.py",
    ),
    ("ProxyHeaders", "attemptCount"): (
        "VirtualHost.include_request_attempt_count",
        f"{UNIT}/test_compile_proxy_headers.py",
    ),
    ("ProxyHeaders", "xForwardedHost"): (
        "RouteAction.append_x_forwarded_host",
        f"{UNIT}/test_compile_proxy_headers.py",
    ),
    ("ProxyHeaders", "preserveHttp1HeaderCase"): (
        "HttpConnectionManager, HttpProtocolOptions: header_key_format",
        f"{UNIT}/test_compile_proxy_headers.py",
    ),
    ("Server", "bind"): ("Listener.address", "tests/tasks/test_tasks_sockets.py"),
    ("IstioEgressListener", "bind"): ("Listener.address", "tests/tasks/test_tasks_sockets.py"),
    ("IstioIngressListener", "defaultEndpoint"): (
        "Cluster of the application",
        "tests/tasks/test_tasks_sockets.py",
    ),
    ("HTTPRoute", "timeout"): ("RouteAction.timeout", f"{TASKS}/test_tasks_resilience.py"),
    ("HTTPRoute", "delegate"): ("Route", f"{GOLDEN}/sidecar-delegates.in.yaml"),
    ("HTTPMatchRequest", "sourceLabels"): ("which proxies", f"{WALK}/routes.yaml"),
    ("HTTPMatchRequest", "sourceNamespace"): ("which proxies", f"{WALK}/routes.yaml"),
    ("HTTPMatchRequest", "gateways"): ("which proxies", f"{WALK}/routes.yaml"),
    ("MeshConfig", "proxyHttpPort"): ("Listener.address", f"{WALK}/uncaptured.yaml"),
    ("MeshConfig", "protocolDetectionTimeout"): (
        "Listener.listener_filters_timeout",
        f"{UNIT}/test_compile_cluster_truths.py",
    ),
    **dict.fromkeys(
        [("MeshConfig", "meshMTLS"), ("MeshConfig", "tlsDefaults")],
        ("TlsParameters", f"{UNIT}/test_compile_tls_settings.py"),
    ),
    ("MeshConfig", "tcpKeepalive"): (
        "Cluster.upstream_connection_options",
        f"{UNIT}/test_compile_mesh_config.py",
    ),
    ("MeshConfig", "defaultConfig"): (
        "how proxies start",
        f"{ROOT}/unit/inject/test_inject_mesh_config.py",
    ),
    ("MeshConfig", "caCertificates"): (
        "trusted roots, by SDS",
        f"{ROOT}/integration/ca/test_ca_federation.py",
    ),
    ("MeshConfig", "localityLbSetting"): (
        "ClusterLoadAssignment: priority and weight of localities",
        f"{UNIT}/test_compile_zones.py",
    ),
    ("MeshConfig", "zoneAwareLbSetting"): (
        "Cluster.common_lb_config.zone_aware_lb_config, ClusterLoadAssignment",
        f"{UNIT}/test_compile_zones.py",
    ),
    ("MeshConfig", "extensionProviders"): (
        "what names them",
        f"{UNIT}/test_compile_mesh_config.py",
    ),
    ("MeshConfig", "pathNormalization"): (
        "HttpConnectionManager",
        f"{UNIT}/test_compile_mesh_config.py",
    ),
    ("MeshConfig", "defaultHttpRetryPolicy"): (
        "RetryPolicy",
        f"{UNIT}/test_compile_mesh_config.py",
    ),
    ("MeshProxyConfig", "tracing"): (
        "HttpConnectionManager.tracing",
        f"{UNIT}/test_compile_mesh_config.py",
    ),
    ("MeshProxyConfig", "envoyAccessLogService"): (
        "Cluster `envoy_accesslog_service`",
        f"{GOLDEN}/sidecar-log-service.in.yaml",
    ),
    **dict.fromkeys(
        [("MeshProxyConfig", "image"), ("ProxyConfig", "image"), ("ProxyImage", "imageType")],
        ("container istio-proxy", f"{ROOT}/unit/inject/test_inject_again.py"),
    ),
    ("ReadinessProbe", "exec"): (
        "ClusterLoadAssignment: health",
        f"{ROOT}/e2e/test_e2e_machines.py",
    ),
    ("JWTRule", "timeout"): (
        "how long keys may take",
        f"{ROOT}/unit/policy/test_policy_key_sets.py",
    ),
    **dict.fromkeys(
        [("JWTRule", name) for name in ("spaceDelimitedClaims", "jwks", "jwksUri", "audiences")],
        ("JwtProvider", f"{GOLDEN}/sidecar-authorization.in.yaml"),
    ),
    ("OutlierDetection", "outlierDetectionHttpErrorCodes"): (
        "HttpProtocolOptions.outlier_detection",
        f"{UNIT}/test_compile_destination_rules.py",
    ),
    ("HTTPRoute", "websocketUpgrade"): (
        "HttpConnectionManager.upgrade_configs: always",
        f"{TASKS}/test_tasks_ingress.py",
    ),
    ("CertificateData", "certSigners"): (
        "trusted roots, by SDS",
        f"{ROOT}/unit/ca/test_ca_external.py",
    ),
    ("NetworkEndpoints", "fromRegistry"): (
        "ClusterLoadAssignment",
        f"{UNIT}/test_compile_networks.py",
    ),
    ("MeshConfig", "outboundTrafficPolicy"): ("the last VirtualHost", f"{WALK}/outbound.yaml"),
    **{
        ("MeshConfig", name): (carrier, f"{UNIT}/test_compile_mesh_config.py")
        for carrier, names in {
            "Cluster": ("connectTimeout", "enableAutoMtls", "h2UpgradePolicy"),
            "Listener.listener_filters_timeout": ("protocolDetectionTimeout",),
            "HttpConnectionManager.tracing": ("enableTracing",),
            "HttpConnectionManager.access_log": (
                "enableEnvoyAccessLogService",
                "defaultProviders",
            ),
            "UpstreamTlsContext": ("trustDomain", "trustDomainAliases"),
            "which objects a proxy is sent": (
                "defaultServiceExportTo",
                "defaultVirtualServiceExportTo",
                "defaultDestinationRuleExportTo",
                "discoverySelectors",
                "rootNamespace",
                "serviceEntryVisibility",
            ),
            "Listener, RouteConfiguration `http_proxy`": ("proxyHttpPort",),
            "Listener.address of captured traffic": ("proxyListenPort", "proxyInboundListenPort"),
            "ClusterLoadAssignment": ("serviceSettings",),
        }.items()
        for name in names
    },
    ("MeshConfig", "ingressService"): (
        "`status.loadBalancer` of Ingress objects",
        f"{ROOT}/unit/analyze/test_ingress_addresses.py",
    ),
    ("MeshConfig", "disablePolicyChecks"): ("RateLimit", f"{UNIT}/test_compile_mesh_config.py"),
    ("MeshConfig", "enablePrometheusMerge"): (
        "Listener of metrics",
        f"{ROOT}/unit/inject/test_inject_mesh_config.py",
    ),
    ("MeshProxyConfig", "concurrency"): (
        "the sidecar of a pod, the Envoy of a workload",
        f"{TASKS}/test_tasks_proxies.py",
    ),
    ("ExtensionProvider", "name"): ("its users", f"{UNIT}/test_compile_mesh_config.py"),
    **dict.fromkeys(
        [("ExtensionProvider", "prometheus"), ("DefaultProviders", "metrics")],
        (
            "the endpoint of metrics, which is always there",
            f"{ROOT}/unit/validate/test_validate_support.py",
        ),
    ),
    ("Tracing", "sampling"): (
        "HttpConnectionManager.tracing",
        f"{UNIT}/test_compile_mesh_config.py",
    ),
    **dict.fromkeys(
        [
            ("MeshProxyConfig", name)
            for name in (
                "binaryPath",
                "drainDuration",
                "holdApplicationUntilProxyStarts",
                "interceptionMode",
                "proxyAdminPort",
                "proxyMetadata",
                "proxyStatsMatcher",
                "runtimeValues",
                "statusPort",
            )
        ],
        ("the sidecar of a pod", f"{ROOT}/unit/inject/test_inject_mesh_config.py"),
    ),
    ("MeshProxyConfig", "caCertificatesPem"): (
        "trusted roots, by SDS",
        f"{ROOT}/unit/ca/test_ca_bundles.py",
    ),
    ("MeshProxyConfig", "customConfigFile"): (
        "the sidecar of a pod, the Envoy of a workload",
        f"{ROOT}/integration/inject/test_own_bootstrap_envoy.py",
    ),
    ("MeshProxyConfig", "readinessProbe"): (
        "WorkloadEntry of a machine",
        f"{ROOT}/e2e/test_e2e_machines.py",
    ),
    ("MeshProxyConfig", "terminationDrainDuration"): (
        "preStop of a pod, the end of a process and a machine",
        f"{ROOT}/e2e/test_e2e_machines.py",
    ),
    **dict.fromkeys(
        [
            ("MeshProxyConfig", name)
            for name in (
                "envoyMetricsService",
                "envoyMetricsServiceAddress",
                "extraStatTags",
                "fileFlushInterval",
                "fileFlushMinSizeKb",
                "statsCompression",
                "statsEvictionInterval",
                "statsdUdpAddress",
            )
        ],
        ("Bootstrap", f"{ROOT}/integration/inject/test_reporting_envoy.py"),
    ),
    ("MeshConfig", "inboundTrafficPolicy"): (
        "Cluster of the application",
        f"{GOLDEN}/sidecar-settings.in.yaml",
    ),
    ("MeshConfig", "accessLogFile"): ("FileAccessLog", f"{GOLDEN}/router-settings.in.yaml"),
    ("MeshConfig", "accessLogFormat"): ("FileAccessLog", f"{GOLDEN}/router-settings.in.yaml"),
    ("MeshConfig", "accessLogEncoding"): ("FileAccessLog", f"{GOLDEN}/sidecar-settings.in.yaml"),
    ("MeshConfig", "disableEnvoyListenerLog"): (
        "Listener.access_log",
        f"{GOLDEN}/sidecar-settings.in.yaml",
    ),
    ("MeshConfig", "dnsRefreshRate"): (
        "Cluster.dns_refresh_rate",
        f"{GOLDEN}/router-settings.in.yaml",
    ),
    ("MeshConfig", "inboundClusterStatName"): (
        "Cluster.alt_stat_name, TcpProxy.stat_prefix",
        f"{UNIT}/test_compile_cluster_truths.py",
    ),
    ("MeshConfig", "outboundClusterStatName"): (
        "Cluster.alt_stat_name, TcpProxy.stat_prefix",
        f"{GOLDEN}/router-settings.in.yaml",
    ),
    ("MeshConfig", "defaultTrafficPolicy"): ("Cluster", f"{GOLDEN}/sidecar-settings.in.yaml"),
    ("MeshConfig", "defaultInboundHttpRetryPolicy"): (
        "RetryPolicy of virtualInbound",
        f"{GOLDEN}/sidecar-settings.in.yaml",
    ),
    ("MeshConfig", "ingressClass"): ("Listener of a router", f"{WALK}/ingress.yaml"),
    ("MeshConfig", "ingressControllerMode"): ("Listener of a router", f"{WALK}/ingress.yaml"),
    ("MeshConfig", "ingressSelector"): ("Listener of a router", f"{WALK}/ingress.yaml"),
    ("MeshProxyConfig", "gatewayTopology"): (
        "HttpConnectionManager of a router",
        f"{GOLDEN}/router-settings.in.yaml",
    ),
    ("MeshProxyConfig", "connectionSettings"): (
        "HttpConnectionManager, Listener, Cluster, Runtime, overload_manager",
        f"{GOLDEN}/router-connection-settings.in.yaml",
    ),
    ("ConnectionSettings", "profile"): (
        "what a router gets of the rest",
        f"{UNIT}/test_compile_connection_settings.py",
    ),
    ("ConnectionSettings", "listenerPerConnectionBufferLimitBytes"): (
        "Listener.per_connection_buffer_limit_bytes",
        f"{UNIT}/test_compile_connection_settings.py",
    ),
    ("ConnectionSettings", "clusterPerConnectionBufferLimitBytes"): (
        "Cluster.per_connection_buffer_limit_bytes",
        f"{UNIT}/test_compile_connection_settings.py",
    ),
    ("ConnectionSettings", "listenerConnectionLimit"): (
        "envoy.resource_limits.listener.NAME.connection_limit, by RTDS",
        f"{TASKS}/test_tasks_connections.py",
    ),
    ("ConnectionSettings", "globalDownstreamConnectionLimit"): (
        "overload_manager of the bootstrap",
        f"{TASKS}/test_tasks_connections.py",
    ),
    ("MeshProxyConfig", "proxyHeaders"): (
        "HttpConnectionManager",
        f"{GOLDEN}/sidecar-settings.in.yaml",
    ),
}
"""By message and field, where the message's own entry does not say it."""


def carrier_of(struct: str, field: str) -> tuple[str, str]:
    """What carries a field, and the test that shows it; empty where nobody has written it down."""
    return FIELDS.get((struct, field)) or CARRIERS.get(struct) or ("", "")


def shown_alone(folder: Path) -> dict[tuple[str, str], str]:
    """(message, field) of what files in `golden/fields` of a folder show by itself, and the file.

    Raises:
        OSError: The folder of tests is not there.
    """
    found: dict[tuple[str, str], str] = {}
    for path in sorted((folder / "golden" / "fields").glob("*.in.yaml")):
        for case in read_yaml(path.read_text())["cases"]:
            for name in case["fields"]:
                message, _, field = name.partition(" ")[0].partition(".")
                found.setdefault((message, field), f"tests/golden/fields/{path.name}")
    return found
