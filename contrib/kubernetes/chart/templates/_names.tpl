{{- define "blackhole.name" -}}
{{- if contains "blackhole" .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-blackhole" .Release.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "blackhole.selector" -}}
app.kubernetes.io/name: blackhole
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "blackhole.metadata" -}}
name: {{ include "blackhole.name" . }}
labels:
  {{- include "blackhole.selector" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
