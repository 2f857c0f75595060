{{/* Names do not depend on the release's: a node has one agent, so a cluster has one pinwarden. */}}

{{- define "pinwarden.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: pinwarden
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The same with a user's, who may have some of them otherwise; but not what selectors and Helm go by. */}}
{{- define "pinwarden.labelsWith" -}}
{{- $own := include "pinwarden.labels" (first .) | fromYaml -}}
{{- $kept := pick $own "app.kubernetes.io/name" "app.kubernetes.io/managed-by" -}}
{{- merge $kept (last . | default dict) $own | toYaml }}
{{- end }}

{{/* Of a component's pods; part of selectors, which cannot be changed. */}}
{{- define "pinwarden.selector" -}}
app.kubernetes.io/name: pinwarden
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "pinwarden.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "pinwarden.container" -}}
image: {{ include "pinwarden.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy | quote }}
{{- end }}

{{- define "pinwarden.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A quantity that may be given as a number; Helm has those of files as floats, which it would write as 2.68435456e+08. */}}
{{- define "pinwarden.quantity" -}}
{{ if kindIs "string" . }}{{ . }}{{ else }}{{ int64 . }}{{ end }}
{{- end }}

{{/* Which nodes a pod may be on, from the values of operator or agent. */}}
{{- define "pinwarden.placement" -}}
{{- range $field := list "nodeSelector" "tolerations" "affinity" }}
{{- with get $ $field }}
{{ $field }}: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Of agents and holders. The server refuses what a value makes together with the default of the other one. */}}
{{- define "pinwarden.updateStrategy" -}}
{{- with .Values.agent.updateStrategy -}}
{{- $rolling := .rollingUpdate | default dict -}}
{{- $surge := dig "maxSurge" 0 $rolling | toString -}}
{{- $unavailable := dig "maxUnavailable" 1 $rolling | toString -}}
{{- $surges := ne (trimSuffix "%" $surge) "0" -}}
{{- if and (eq .type "RollingUpdate") (eq $surges (ne (trimSuffix "%" $unavailable) "0")) -}}
{{- fail (printf "agent.updateStrategy.rollingUpdate: maxSurge is %s and maxUnavailable is %s: one of the two must be 0, and the other not" $surge $unavailable) -}}
{{- end -}}
{{- toYaml . -}}
{{- end -}}
{{- end }}

{{/*
Annotations of a pod, from maps of which an earlier one wins. Each pod of pinwarden tolerates a missing gate:
the gate never is in them, and a node needs them to get its gate back.
*/}}
{{- define "pinwarden.podAnnotations" -}}
{{- $annotations := dict -}}
{{- with (first .).Values.gate.nri.tolerationAnnotation -}}
{{- $_ := set $annotations . "true" -}}
{{- end -}}
{{- range rest . -}}
{{- $_ := merge $annotations (. | default dict) -}}
{{- end -}}
{{- with $annotations -}}
annotations: {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end }}

{{/* What every container does without. */}}
{{- define "pinwarden.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
{{- end }}

{{- define "pinwarden.unprivileged" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{/* Namespaces that the gate leaves alone: the gate of a pod that the gate itself needs would wait for itself. */}}
{{- define "pinwarden.ungated" -}}
[kube-system, {{ .Release.Namespace | quote }}]
{{- end }}

{{- define "pinwarden.gateAdmission" -}}
{{- $wanted := .Values.gate.admission.enabled | toString -}}
{{- $able := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" -}}
{{- if and .Values.gate.enabled (or (eq $wanted "true") (and (eq $wanted "auto") $able)) }}true{{ end }}
{{- end }}
