{{- define "fewshard.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 47 | trimSuffix "-" -}}
{{- end -}}

{{/* KubeRay allows 47 letters, since it appends to the name. */}}
{{- define "fewshard.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains (include "fewshard.name" .) .Release.Name -}}
{{- .Release.Name | trunc 47 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "fewshard.name" .) | trunc 47 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* On pods: nothing that an upgrade of the chart changes, and not app.kubernetes.io/name, by which KubeRay's
     own services find their pods. */}}
{{- define "fewshard.podLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/part-of: fewshard
{{- end -}}

{{- define "fewshard.labels" -}}
{{ include "fewshard.podLabels" . }}
app.kubernetes.io/name: {{ include "fewshard.name" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Metadata of an object: (dict "root" $ "suffix" "-head" "component" "head" "labels" {} "annotations" {}). */}}
{{- define "fewshard.metadata" -}}
{{- $root := .root -}}
name: {{ printf "%s%s" (include "fewshard.fullname" $root) (default "" .suffix) }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "fewshard.labels" $root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default (dict) .annotations) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "fewshard.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "fewshard.serviceName" -}}
{{- include "fewshard.fullname" . }}-serve-svc
{{- end -}}

{{/* Selects the Ray pods of this release; of one kind with (dict "root" $ "kind" "head"). */}}
{{- define "fewshard.selector" -}}
matchLabels:
  {{- include "fewshard.podLabels" .root | nindent 2 }}
  ray.io/is-ray-node: "yes"
  {{- with .kind }}
  ray.io/node-type: {{ . }}
  {{- end }}
{{- end -}}

{{- define "fewshard.headAccount" -}}
{{- if .Values.serviceAccount.headName -}}{{ .Values.serviceAccount.headName }}
{{- else if .Values.serviceAccount.create -}}{{ include "fewshard.fullname" . }}-head
{{- else -}}default{{- end -}}
{{- end -}}

{{- define "fewshard.workerAccount" -}}
{{- if .Values.serviceAccount.workerName -}}{{ .Values.serviceAccount.workerName }}
{{- else if .Values.serviceAccount.create -}}{{ include "fewshard.fullname" . }}-worker
{{- else -}}default{{- end -}}
{{- end -}}
