{{/* Labels of every object. Names and selectors are fixed: one agent per cluster, and `fairlead join` makes the same. */}}
{{- define "fairlead-agent.labels" -}}
{{ include "fairlead-agent.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: fairlead
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "fairlead-agent.selector" -}}
app.kubernetes.io/name: fairlead-agent
{{- end }}

{{- define "fairlead-agent.image" -}}
{{- $repository := .Values.image.repository -}}
{{- with .Values.image.registry }}{{ $repository = printf "%s/%s" . $repository }}{{ end -}}
{{- if .Values.image.digest -}}
{{ $repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/*
Flags about the backend that spans go to; nothing but what was set.
*/}}
{{- define "fairlead-agent.telemetry.args" -}}
{{- with .Values.telemetry }}
{{- if .otlp.endpoint }}
- --otlp-endpoint={{ .otlp.endpoint }}
- --otlp-protocol={{ .otlp.protocol }}
- --otlp-compression={{ .otlp.compression }}
- --otlp-queue-mib={{ .otlp.queueMiB }}
{{- if .otlp.caConfigMap.name }}
- --otlp-certificate=/etc/fairlead-otlp/ca.crt
{{- end }}
- --trace-ratio={{ .traceRatio }}
{{- end }}
{{- if ne (.gatewaySamplingPercent | float64) 100.0 }}
- --gateway-sampling-percent={{ .gatewaySamplingPercent }}
{{- end }}
{{- range .stripAttributes }}
- --relay-strip={{ . }}
{{- end }}
{{- end }}
{{- end }}
