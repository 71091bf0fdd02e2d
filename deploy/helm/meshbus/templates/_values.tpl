{{/* Values in force: the profile, and over it what was given. */}}
{{- define "meshbus.values" -}}
{{- $file := printf "files/profile-%s.yaml" .Values.profile -}}
{{- $profile := .Files.Get $file | required (printf "profile: there is no %q; there are demo, default, ha, large, remote" .Values.profile) | fromYaml -}}
{{- $given := deepCopy .Values -}}
{{- if eq .Values.profile "remote" -}}
{{- $_ := set $given "nats" (dict "enabled" false) -}}
{{- $_ := set $given "crds" (dict "enabled" false) -}}
{{- $_ := set $given "keys" (dict "generate" false) -}}
{{- $_ := set $given "validation" (dict "enabled" false) -}}
{{- end -}}
{{- mergeOverwrite $profile $given | toYaml -}}
{{- end -}}

{{/* `-REVISION`; nothing for the default one. */}}
{{- define "meshbus.suffix" -}}
{{- if and .Values.revision (ne .Values.revision "default") -}}-{{ .Values.revision }}{{- end -}}
{{- end -}}

{{- define "meshbus.revision" -}}{{ .Values.revision | default "default" }}{{- end -}}
{{- define "meshbus.tag" -}}{{ .Values.global.tag | default .Chart.AppVersion }}{{- end -}}
{{- define "meshbus.image" -}}{{ .Values.global.hub }}/{{ .Values.global.image }}:{{ include "meshbus.tag" . }}{{- end -}}
{{- define "meshbus.clusterName" -}}{{ .Values.global.multiCluster.clusterName | default "Kubernetes" }}{{- end -}}
{{- define "meshbus.trustDomain" -}}{{ .Values.meshConfig.trustDomain | default "cluster.local" }}{{- end -}}

{{/* Labels of everything. */}}
{{- define "meshbus.labels" -}}
app.kubernetes.io/name: meshbus
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: meshbus
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
istio.io/rev: {{ include "meshbus.revision" . | quote }}
{{- end -}}

{{/* The services and the ports they serve. */}}
{{- define "meshbus.services" -}}
config: {ports: {webhooks: 15017, api: 15020}, kubernetes: true}
discovery: {ports: {dns: 15053}, kubernetes: true}
ca: {ports: {csr: 15013}, kubernetes: true, stateful: true}
policy: {ports: {grpc: 15030}}
telemetry: {ports: {grpc: 15031}}
xds-gateway: {ports: {grpc-xds: 15012}}
{{- end -}}

{{/* Name of a service's objects: the gateway's is the one that proxies call. */}}
{{- define "meshbus.name" -}}
{{- $root := index . 0 -}}{{- $service := index . 1 -}}
{{- if eq $service "xds-gateway" -}}xds-gateway{{- else -}}meshbus-{{ $service }}{{- end -}}{{ include "meshbus.suffix" $root }}
{{- end -}}

{{- define "meshbus.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1337
runAsGroup: 1337
fsGroup: 1337
seccompProfile: {type: RuntimeDefault}
{{- end -}}
{{- define "meshbus.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
{{- define "meshbus.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}
