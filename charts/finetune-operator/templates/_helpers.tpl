{{/* Name of the installation's objects: the name of the release, plus the name of the chart unless it contains it. */}}
{{- define "finetune-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The same labels as a selector in one line. */}}
{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name={{ .Chart.Name }},app.kubernetes.io/instance={{ .Release.Name }}
{{- end -}}

{{- define "finetune-operator.ownLabels" -}}
{{ include "finetune-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{/* The labels of every object. Those of the chart override those of the values. */}}
{{- define "finetune-operator.labels" -}}
{{- toYaml (merge (include "finetune-operator.ownLabels" . | fromYaml) (.Values.commonLabels | default dict)) -}}
{{- end -}}

{{- define "finetune-operator.podLabels" -}}
{{- $own := include "finetune-operator.ownLabels" . | fromYaml -}}
{{- toYaml (merge $own (dict "finetune-operator.io/leader-election" "true") (.Values.podLabels | default dict) (.Values.commonLabels | default dict)) -}}
{{- end -}}

{{- define "finetune-operator.crdAnnotations" -}}
{{- $annotations := .Values.crds.annotations -}}
{{- if .Values.crds.keep -}}
{{- $annotations = merge (dict "helm.sh/resource-policy" "keep") $annotations -}}
{{- end -}}
{{- with $annotations }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* An image reference: by digest if one is set, else by tag. Takes (dict "image" .Values.x.image "root" $). */}}
{{- define "finetune-operator.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The only role that the operator may bind. Training pods get it. */}}
{{- define "finetune-operator.trainerRole" -}}finetune-trainer{{- end -}}

{{/* The name of this installation in the claims on its namespaces. */}}
{{- define "finetune-operator.installation" -}}
{{ .Release.Namespace }}/{{ include "finetune-operator.fullname" . }}
{{- end -}}

{{/* What the names of the admission policies begin with. Installations that share the cluster have different names. */}}
{{- define "finetune-operator.policy" -}}
{{- if .Values.watchNamespaces }}{{ .Release.Namespace }}-{{ end }}{{ include "finetune-operator.fullname" . }}
{{- end -}}

{{/* The namespaces in which the admission policies hold: a part of their bindings. Empty: all. */}}
{{- define "finetune-operator.policyScope" -}}
{{- with .Values.watchNamespaces -}}
matchResources:
  namespaceSelector:
    matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values:
          {{- toYaml . | nindent 10 }}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.pullSecretNames" -}}
{{- $names := list -}}
{{- range .Values.imagePullSecrets -}}{{- $names = append $names .name -}}{{- end -}}
{{- join "," $names -}}
{{- end -}}

{{/* Restricted pod security of every pod of the chart. The user is that of the images. */}}
{{- define "finetune-operator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "finetune-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Egress rules: the API server, which has no pods that a selector could name, and DNS. */}}
{{- define "finetune-operator.clusterEgress" -}}
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
  {{- with .Values.networkPolicy.apiServerAddresses }}
  to:
    {{- range . }}
    - ipBlock:
        cidr: {{ . | quote }}
    {{- end }}
  {{- end }}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end -}}

{{/* The web page's objects. Their labels are others than those of the operator, whose selectors must not find them. */}}
{{- define "finetune-operator.uiName" -}}
{{- include "finetune-operator.fullname" . | trunc 60 | trimSuffix "-" -}}-ui
{{- end -}}

{{- define "finetune-operator.uiSelectorLabels" -}}
app.kubernetes.io/name: finetune-operator-ui
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "finetune-operator.uiLabels" -}}
{{- $own := include "finetune-operator.uiSelectorLabels" . | fromYaml -}}
{{- toYaml (merge $own (include "finetune-operator.labels" . | fromYaml)) -}}
{{- end -}}

{{/* Objects of `helm test`. Names of pods have at most 63 characters. */}}
{{- define "finetune-operator.testName" -}}
{{- include "finetune-operator.fullname" . | trunc 50 | trimSuffix "-" -}}-test
{{- end -}}

{{/* Its namespace. An operator that watches certain namespaces may not watch that of the release. */}}
{{- define "finetune-operator.testNamespace" -}}
{{- .Values.tests.namespace | default (first (.Values.watchNamespaces | default (list .Release.Namespace))) -}}
{{- end -}}

{{- define "finetune-operator.testLabels" -}}
{{- $own := dict "app.kubernetes.io/name" "finetune-operator-test" -}}
{{- toYaml (merge $own (include "finetune-operator.labels" . | fromYaml)) -}}
{{- end -}}

{{/* A step of `helm test`, with its number. Helm deletes it afterwards, and what an earlier test left before. */}}
{{- define "finetune-operator.testHook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* A pod of `helm test`. It ends by itself where nobody waits for it. */}}
{{- define "finetune-operator.testPod" -}}
restartPolicy: Never
activeDeadlineSeconds: 3600
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "finetune-operator.podSecurity" . | nindent 2 }}
{{- end -}}
