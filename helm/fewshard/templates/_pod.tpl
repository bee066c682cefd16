{{/* What both kinds of Ray pods share. Nothing here may change with the chart's version or be random: each
     change of a pod template is a new cluster. All take (dict "root" $ "pod" {...} "kind" "head" "gpus" 0). */}}

{{/* Ray Serve and its HAProxy, as rayserve/environment.py sets them on a laptop. */}}
{{- define "fewshard.env" -}}
{{- range $name, $value := .root.Files.Get "files/environment.yaml" | fromYaml }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
- {name: RAY_SERVE_HAPROXY_NBTHREAD, value: {{ .root.Values.haproxyThreads | quote }}}
- {name: RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S, value: {{ .root.Values.haproxyAnswerSeconds | quote }}}
- {name: RAY_SERVE_HAPROXY_BINARY_PATH, value: /opt/fewshard/haproxy/haproxy}
- {name: HOME, value: /tmp}
- {name: HF_HOME, value: /var/cache/fewshard/huggingface}
- {name: TRITON_CACHE_DIR, value: /var/cache/fewshard/triton}
- {name: TORCHINDUCTOR_CACHE_DIR, value: /var/cache/fewshard/inductor}
{{- if eq (int .gpus) 0 }}
# Without it a pod that asked for no GPU sees all of its node's.
- {name: NVIDIA_VISIBLE_DEVICES, value: void}
{{- end }}
{{- with .root.Values.huggingFace.existingSecret }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.root.Values.huggingFace.key }}}}
{{- end }}
{{- with .root.Values.env }}
{{ toYaml . }}
{{- end }}
{{- with .pod.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fewshard.volumes" -}}
{{- $values := .root.Values -}}
- {name: tmp, emptyDir: {sizeLimit: {{ $values.tmp.sizeLimit }}}}
{{- if and (eq .kind "head") $values.autoscaling.enabled }}
# Shared with the autoscaler. KubeRay would make it, under this name, without a limit.
- {name: ray-logs, emptyDir: {sizeLimit: {{ $values.tmp.sizeLimit }}}}
{{- end }}
- {name: cache, emptyDir: {sizeLimit: {{ $values.cache.sizeLimit }}}}
- {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .pod.shmSize }}}}
{{- if $values.auth.enabled }}
- {name: auth, secret: {secretName: {{ $values.auth.existingSecret }}, defaultMode: 0440}}
{{- end }}
{{- if eq $values.modelStorage.type "claim" }}
- {name: models, persistentVolumeClaim: {claimName: {{ $values.modelStorage.existingClaim }}, readOnly: true}}
{{- else if eq $values.modelStorage.type "pull" }}
- {name: models, emptyDir: {sizeLimit: {{ $values.modelStorage.pull.sizeLimit }}}}
{{- end }}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fewshard.volumeMounts" -}}
{{- $values := .root.Values -}}
- {name: tmp, mountPath: /tmp}
{{- if and (eq .kind "head") $values.autoscaling.enabled }}
- {name: ray-logs, mountPath: /tmp/ray}
{{- end }}
- {name: cache, mountPath: /var/cache/fewshard}
- {name: shm, mountPath: /dev/shm}
{{- if $values.auth.enabled }}
- {name: auth, mountPath: /etc/fewshard/auth, readOnly: true}
{{- end }}
{{- if ne $values.modelStorage.type "none" }}
- {name: models, mountPath: {{ $values.modelStorage.mountPath }}, readOnly: true}
{{- end }}
{{- with $values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fewshard.pull" -}}
{{- $pull := .Values.modelStorage.pull -}}
initContainers:
  - name: pull-models
    image: {{ $pull.image }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    {{- with $pull.command }}
    command: {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $pull.args }}
    args: {{- toYaml . | nindent 6 }}
    {{- end }}
    env:
      - {name: HOME, value: /tmp}
      {{- with $pull.env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with $pull.envFrom }}
    envFrom: {{- toYaml . | nindent 6 }}
    {{- end }}
    resources:
      requests: {cpu: 500m, memory: 1Gi}
      limits: {memory: 1Gi}
    securityContext: {{- toYaml .Values.containerSecurityContext | nindent 6 }}
    volumeMounts:
      - {name: models, mountPath: {{ .Values.modelStorage.mountPath }}}
      - {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* Requests and limits with the GPUs added. */}}
{{- define "fewshard.resources" -}}
{{- $resources := deepCopy .pod.resources -}}
{{- if gt (int .gpus) 0 -}}
{{- $gpu := dict .pod.gpuResourceName (int .gpus) -}}
{{- $_ := set $resources "requests" (merge (dict) (default (dict) $resources.requests) $gpu) -}}
{{- $_ := set $resources "limits" (merge (dict) (default (dict) $resources.limits) $gpu) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* The template: key of a group. "name" is the group's. */}}
{{- define "fewshard.podTemplate" -}}
{{- $values := .root.Values -}}
metadata:
  labels:
    {{- include "fewshard.podLabels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .kind }}
    {{- with .pod.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .pod.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include (printf "fewshard.%sAccount" .kind) .root }}
  {{- if eq .kind "worker" }}
  automountServiceAccountToken: false
  {{- end }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
  securityContext: {{- toYaml $values.podSecurityContext | nindent 4 }}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .pod.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .pod.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .pod.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .pod.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .pod.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .pod.topologySpreadConstraints }}
  topologySpreadConstraints: {{- toYaml .pod.topologySpreadConstraints | nindent 4 }}
  {{- else if eq .kind "worker" }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "fewshard.podLabels" .root | nindent 10 }}
          ray.io/group: {{ .name }}
  {{- end }}
  {{- if eq $values.modelStorage.type "pull" }}
  {{- include "fewshard.pull" .root | nindent 2 }}
  {{- end }}
  containers:
    - name: ray-{{ .kind }}
      image: {{ include "fewshard.image" .root }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      ports:
        {{- if eq .kind "head" }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        - {name: as-metrics, containerPort: 44217}
        - {name: dash-metrics, containerPort: 44227}
        {{- end }}
        - {name: serve, containerPort: 8000}
        - {name: metrics, containerPort: 8080}
      env: {{- include "fewshard.env" . | nindent 8 }}
      {{- with concat $values.envFrom (default (list) .pod.envFrom) }}
      envFrom: {{- toYaml . | nindent 8 }}
      {{- end }}
      resources: {{- include "fewshard.resources" . | nindent 8 }}
      securityContext: {{- toYaml $values.containerSecurityContext | nindent 8 }}
      lifecycle:
        preStop:
          exec:
            command:
              - bash
              - -c
              - >-
                ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod is going'
                --deadline-remaining-seconds {{ $values.preStopSeconds }};
                sleep {{ $values.preStopSeconds }}; ray stop
      {{- range $probe := list "livenessProbe" "readinessProbe" "startupProbe" }}
      {{- with index $.pod $probe }}
      {{ $probe }}: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- end }}
      volumeMounts: {{- include "fewshard.volumeMounts" . | nindent 8 }}
  volumes: {{- include "fewshard.volumes" . | nindent 4 }}
{{- end -}}
