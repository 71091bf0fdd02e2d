{{/* The pod of one service, or of all. */}}
{{- define "meshbus.pod" -}}
{{- $root := index . 0 -}}{{- $pod := index . 1 -}}{{- $spec := index . 2 -}}
{{- $services := include "meshbus.services" $root | fromYaml -}}
{{- $mine := ternary (list "ca" "config" "discovery" "policy" "telemetry" "xds-gateway") (list $pod) (eq $pod "all") -}}
{{- $bind := $root.Values.global.bindAddress -}}
{{- $suffix := include "meshbus.suffix" $root -}}
{{- $ns := $root.Release.Namespace -}}
{{- $kubernetes := or (eq $pod "all") (index $services ($pod | default "config") | default dict).kubernetes -}}
metadata:
  labels:
    {{- include "meshbus.labels" $root | nindent 4 }}
    app: {{ include "meshbus.name" (list $root $pod) }}
    app.kubernetes.io/component: {{ $pod }}
    sidecar.istio.io/inject: "false"
  annotations:
    prometheus.io/scrape: "true"
    prometheus.io/port: "15014"
    checksum/mesh: {{ toYaml (list $root.Values.global $root.Values.sidecarInjectorWebhook) | sha256sum | trunc 16 }}
spec:
  serviceAccountName: {{ include "meshbus.name" (list $root $pod) }}
  automountServiceAccountToken: {{ $kubernetes | default false }}
  terminationGracePeriodSeconds: 60
  {{- with $root.Values.global.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- include "meshbus.pullSecrets" $root | nindent 2 }}
  securityContext: {{- include "meshbus.podSecurity" $root | nindent 4 }}
  {{- if gt (int ($spec.replicas | default 1)) 1 }}
  topologySpreadConstraints:
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector: {matchLabels: {app: {{ include "meshbus.name" (list $root $pod) }}}}
    {{- end }}
  {{- end }}
  containers:
    - name: {{ $pod }}
      image: {{ include "meshbus.image" $root }}
      {{- with $root.Values.global.imagePullPolicy }}
      imagePullPolicy: {{ . }}
      {{- end }}
      args: [serve, {{ join ", " $mine }}]
      env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: MALLOC_ARENA_MAX, value: "2"}
        - {name: MESHBUS_POD, value: $(POD_NAME)}
        - {name: MESHBUS_BUS_URL, value: {{ include "meshbus.busUrl" $root | quote }}}
        - {name: MESHBUS_BUS_SEEDS, value: /etc/meshbus/bus}
        - {name: MESHBUS_BUS_ROOTS, value: /etc/meshbus/bus-roots/ca.crt}
        - {name: MESHBUS_BUS_REPLICAS, value: {{ min 3 (dig "nats" "replicas" 1 (include "meshbus.values" $root | fromYaml)) | quote }}}
        - {name: MESHBUS_CLUSTER, value: {{ include "meshbus.clusterName" $root | quote }}}
        - {name: MESHBUS_STATE, value: /var/lib/meshbus}
        - {name: MESHBUS_ADMIN, value: "{{ $bind }}:15014"}
        - {name: MESHBUS_ROOT_NAMESPACE, value: {{ $ns }}}
        - {name: MESHBUS_TRUST_DOMAIN, value: {{ include "meshbus.trustDomain" $root | quote }}}
        - {name: MESHBUS_REVISION, value: {{ include "meshbus.revision" $root | quote }}}
        - {name: MESHBUS_NAMESPACES, value: {{ join "," $root.Values.global.namespaces | quote }}}
        - {name: MESHBUS_LOG_FORMAT, value: {{ ternary "json" "text" $root.Values.global.logAsJson }}}
        {{- if $kubernetes }}
        - {name: MESHBUS_KUBERNETES, value: in-cluster}
        {{- end }}
        {{- if has "config" $mine }}
        {{- $name := include "meshbus.name" (list $root (ternary "all" "config" (eq $pod "all"))) }}
        - {name: MESHBUS_CONFIG_API, value: "{{ $bind }}:15020"}
        - {name: MESHBUS_CONFIG_WEBHOOKS, value: "{{ $bind }}:15017"}
        - {name: MESHBUS_CONFIG_WEBHOOK_NAMES, value: "{{ $name }}.{{ $ns }}.svc,{{ $name }}.{{ $ns }}.svc.cluster.local"}
        - {name: MESHBUS_CONFIG_INJECTION, value: /etc/meshbus/injection/values.yaml}
        {{- with $root.Values.machines.gateway }}
        - {name: MESHBUS_CONFIG_MACHINES_GATEWAY, value: {{ . | quote }}}
        {{- end }}
        {{- end }}
        {{- if has "ca" $mine }}
        - {name: MESHBUS_CA_REQUIRE_PROOF, value: "true"}
        - {name: MESHBUS_CA_CSR_LISTEN, value: "{{ $bind }}:15013"}
        {{- if $root.Values.ca.pluggedSecret }}
        - {name: MESHBUS_CA_PLUGGED, value: /etc/meshbus/plugged}
        {{- end }}
        {{- with $root.Values.ca.signer }}
        - {name: MESHBUS_CA_SIGNER, value: {{ . | quote }}}
        - {name: MESHBUS_CA_SIGNER_ROOTS, value: /etc/meshbus/signer/ca.crt}
        {{- if hasPrefix "vault+" . }}
        - {name: MESHBUS_CA_SIGNER_TOKEN, value: /etc/meshbus/signer/token}
        - {name: MESHBUS_CA_SIGNER_TLS_ROOTS, value: /etc/meshbus/signer/tls.crt}
        {{- end }}
        {{- end }}
        {{- end }}
        {{- if has "discovery" $mine }}
        - {name: MESHBUS_DISCOVERY_DNS, value: "{{ $bind }}:15053"}
        {{- end }}
        {{- range list "policy" "telemetry" }}
        {{- if has . $mine }}
        {{- $port := ternary 15030 15031 (eq . "policy") }}
        - {name: MESHBUS_{{ upper . }}_LISTEN, value: "{{ $bind }}:{{ $port }}"}
        - {name: MESHBUS_{{ upper . }}_ADVERTISE, value: "{{ include "meshbus.name" (list $root .) }}.{{ $ns }}.svc:{{ $port }}"}
        {{- end }}
        {{- end }}
        {{- if has "xds-gateway" $mine }}
        - {name: MESHBUS_XDS_GATEWAY_LISTEN, value: "{{ $bind }}:15012"}
        {{- if $suffix }}
        - {name: MESHBUS_XDS_GATEWAY_NAMES, value: "xds-gateway{{ $suffix }}.{{ $ns }}.svc"}
        {{- end }}
        {{- end }}
        {{- range $service, $settings := $root.Values.settings }}
        {{- if has $service $mine }}
        {{- range $name, $value := $settings }}
        - {name: MESHBUS_{{ $service | upper | replace "-" "_" }}_{{ upper $name }}, value: {{ $value | quote }}}
        {{- end }}
        {{- end }}
        {{- end }}
      ports:
        - {name: http-admin, containerPort: 15014}
        {{- range $mine }}
        {{- range $name, $port := (index $services .).ports }}
        - {name: {{ ternary (printf "%s-%s" $name ($port | toString | trunc -2)) $name (eq $name "grpc") }}, containerPort: {{ $port }}}
        {{- end }}
        {{- end }}
      startupProbe: {httpGet: {path: /livez, port: 15014}, periodSeconds: 2, failureThreshold: 150}
      livenessProbe: {httpGet: {path: /livez, port: 15014}, periodSeconds: 10, failureThreshold: 6}
      readinessProbe: {httpGet: {path: /readyz, port: 15014}, periodSeconds: 5, failureThreshold: 2}
      resources: {{- toYaml ($spec.resources | default dict) | nindent 8 }}
      securityContext: {{- include "meshbus.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        - {name: bus-keys, mountPath: /etc/meshbus/bus, readOnly: true}
        - {name: bus-roots, mountPath: /etc/meshbus/bus-roots, readOnly: true}
        - {name: state, mountPath: /var/lib/meshbus}
        - {name: tmp, mountPath: /tmp}
        {{- if has "config" $mine }}
        - {name: injection, mountPath: /etc/meshbus/injection, readOnly: true}
        {{- end }}
        {{- if and (has "ca" $mine) $root.Values.ca.pluggedSecret }}
        - {name: plugged, mountPath: /etc/meshbus/plugged, readOnly: true}
        {{- end }}
        {{- if and (has "ca" $mine) $root.Values.ca.signer }}
        - {name: signer, mountPath: /etc/meshbus/signer, readOnly: true}
        {{- end }}
  volumes:
    - name: bus-keys
      projected:
        # Of the owner and its group alone: the file's own mode would be wider.
        defaultMode: 0440
        sources:
          {{- range $mine }}
          - secret: {name: meshbus-bus-{{ . }}}
          {{- end }}
    - {name: bus-roots, secret: {secretName: meshbus-nats-roots}}
    {{- if not (has "ca" $mine) }}
    - {name: state, emptyDir: {}}
    {{- end }}
    - {name: tmp, emptyDir: {}}
    {{- if has "config" $mine }}
    - {name: injection, configMap: {name: meshbus-injection{{ $suffix }}}}
    {{- end }}
    {{- if and (has "ca" $mine) $root.Values.ca.pluggedSecret }}
    - {name: plugged, secret: {secretName: {{ $root.Values.ca.pluggedSecret }}}}
    {{- end }}
    {{- if and (has "ca" $mine) $root.Values.ca.signer }}
    - {name: signer, secret: {secretName: {{ $root.Values.ca.signerSecret | required "ca.signerSecret: what are the signer's certificates checked with?" }}}}
    {{- end }}
{{- end -}}

{{- define "meshbus.busUrl" -}}
{{- if .Values.nats.enabled -}}
tls://meshbus-nats.{{ .Release.Namespace }}.svc:4222
{{- else -}}
{{ .Values.nats.external.url | required "nats.external.url: is needed where nats.enabled is false" }}
{{- end -}}
{{- end -}}
