{{/* What alerts and dashboards go by: job `pinwarden-operator` or `pinwarden-agent`, and the node of an agent. */}}
{{- define "pinwarden.relabelings" -}}
relabelings:
  - targetLabel: job
    replacement: pinwarden-{{ . }}
  - targetLabel: node
    sourceLabels: [__meta_kubernetes_pod_node_name]
{{- end }}
