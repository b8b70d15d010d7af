{{- define "image" -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}

{{- /* Your labels. Those by which the chart selects pods stay as they are. */ -}}
{{- define "labels" -}}
{{- with merge (dict) (.labels | default dict) (.root.Values.labels | default dict) }}{{ toYaml . }}{{ end }}
{{- end -}}

{{- define "metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
{{- with include "labels" . }}
labels: {{- . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "intents" -}}
{{- .Values.intents.existingConfigMap | default "intents" -}}
{{- end -}}

{{- define "bootstrap" -}}
{{- $bootstrap := .Values.envoy.bootstrap | default (.Files.Get "files/bootstrap.yaml") -}}
{{- if not (hasKey (fromYaml $bootstrap) "static_resources") -}}
{{- fail "envoy.bootstrap is not a bootstrap of Envoy, because it has no static_resources: give the file that `extproc envoy` writes" -}}
{{- end -}}
{{- $bootstrap -}}
{{- end -}}

{{- /* Pods of any name: no root, no token, and one in each zone and on each node if that is possible. */ -}}
{{- define "pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  {{- with .fsGroup }}
  fsGroup: {{ . }}
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
{{- with .pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "spread" -}}
topologySpreadConstraints:
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {app.kubernetes.io/name: {{ $.name }}}
{{- end }}
{{- end -}}

{{- define "locked" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- define "scaling" -}}
{{- if gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas) }}
{{- fail (printf "the autoscaler of %s has minReplicas %v above maxReplicas %v: raise maxReplicas" .name .autoscaling.minReplicas .autoscaling.maxReplicas) }}
{{- end }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{- include "metadata" . | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ .name }}}
  minReplicas: {{ .autoscaling.minReplicas }}
  maxReplicas: {{ .autoscaling.maxReplicas }}
  metrics:
  - type: Resource
    resource:
      name: cpu
      target: {type: Utilization, averageUtilization: {{ .autoscaling.cpuPercent }}}
  {{- with .encoderBusy }}
  - type: Pods
    pods:
      metric: {name: semantic_router_encoder_busy}
      target: {type: AverageValue, averageValue: {{ . | quote }}}
  {{- end }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {app.kubernetes.io/name: {{ .name }}}
{{- end -}}
