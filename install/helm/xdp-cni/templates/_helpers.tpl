{{- define "xdp-cni.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "xdp-cni.selector" -}}
app.kubernetes.io/name: xdp-cni
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "xdp-cni.labels" -}}
{{ include "xdp-cni.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* what both pods have; why is said in install/kubernetes */ -}}
{{- define "xdp-cni.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
hostNetwork: true
dnsPolicy: Default
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
terminationGracePeriodSeconds: 5
{{- end }}
