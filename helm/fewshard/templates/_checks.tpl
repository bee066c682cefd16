{{/* What a schema cannot say: values that do not go together. Each message begins with the key. */}}
{{- define "fewshard.checks" -}}
{{- $gpuGroups := list -}}
{{- range $name, $group := .Values.workerGroups -}}
{{- if $group -}}
{{- $group = mergeOverwrite (deepCopy $.Values.workerDefaults) $group -}}
{{- $min := int $group.minReplicas -}}{{- $max := int $group.maxReplicas -}}
{{- if gt (int $group.gpus) 0 }}{{ $gpuGroups = append $gpuGroups $name }}{{ end -}}
{{- if gt $min $max -}}
{{- fail (printf "workerGroups.%s.minReplicas: %d is above maxReplicas, %d" $name $min $max) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $names := list -}}{{- $longest := 0.0 -}}{{- $stages := 1 -}}
{{- range $number, $model := .Values.models -}}
{{- if has .name $names -}}
{{- fail (printf "models[%d].name: two models are named %q; every name must be its own" $number .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- if and (eq (default "auto" .device) "cuda") (not $gpuGroups) -}}
{{- fail (printf "models[%d].device: %s asks for cuda, but no group of workerGroups has gpus" $number .name) -}}
{{- end -}}
{{- $longest = max $longest (dig "admission" "deadline_ms" 10000 .) -}}
{{- end -}}
{{- range $number, $cascade := .Values.cascades -}}
{{- if has .name $names -}}
{{- fail (printf "cascades[%d].name: %q is a model's name already" $number .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- $stages = max $stages (len .stages) -}}
{{- range .stages -}}
{{- $stage := . -}}
{{- $found := false -}}
{{- range $.Values.models }}{{ if eq .name $stage }}{{ $found = true }}{{ end }}{{ end -}}
{{- if not $found -}}
{{- fail (printf "cascades[%d].stages: %q is no model of models" $number $stage) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $needed := add (ceil (divf $longest 1000)) 5 .Values.preStopSeconds -}}
{{- if lt (int .Values.terminationGracePeriodSeconds) (int $needed) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is too short; preStopSeconds, the longest deadline_ms of a model and 5 seconds for answers make %d" (int .Values.terminationGracePeriodSeconds) $needed) -}}
{{- end -}}
{{- $answer := add (ceil (divf (mulf $longest $stages) 1000)) 5 -}}
{{- if lt (int .Values.haproxyAnswerSeconds) (int $answer) -}}
{{- fail (printf "haproxyAnswerSeconds: %d is too short; the longest deadline_ms of a model, for each stage of a cascade, and 5 seconds make %d" (int .Values.haproxyAnswerSeconds) $answer) -}}
{{- end -}}
{{- if and .Values.auth.enabled (not .Values.auth.existingSecret) -}}
{{- fail "auth.existingSecret: auth is enabled; name the secret that holds the tokens file (fewshard token makes its lines)" -}}
{{- end -}}
{{- if and .Values.redis.enabled (not .Values.redis.address) -}}
{{- fail "redis.address: redis is enabled; give its address, redis://host:6379" -}}
{{- end -}}
{{- if and .Values.redis.enabled (not .Values.redis.existingSecret) -}}
{{- fail "redis.existingSecret: redis is enabled; name the secret that holds its password" -}}
{{- end -}}
{{- $isIncremental := eq .Values.upgrade.strategy "NewClusterWithIncrementalUpgrade" -}}
{{- if and $isIncremental (not .Values.autoscaling.enabled) -}}
{{- fail "autoscaling.enabled: upgrade.strategy NewClusterWithIncrementalUpgrade needs the autoscaler" -}}
{{- end -}}
{{- if and $isIncremental (not .Values.upgrade.gatewayClassName) -}}
{{- fail "upgrade.gatewayClassName: upgrade.strategy NewClusterWithIncrementalUpgrade needs a GatewayClass" -}}
{{- end -}}
{{- if and $isIncremental (gt (int .Values.upgrade.stepSizePercent) (int .Values.upgrade.maxSurgePercent)) -}}
{{- fail "upgrade.stepSizePercent: must not be above upgrade.maxSurgePercent" -}}
{{- end -}}
{{- if and $isIncremental (or .Values.ingress.enabled .Values.httpRoute.enabled) -}}
{{- fail "upgrade.strategy: with NewClusterWithIncrementalUpgrade KubeRay makes the Gateway and the HTTPRoute; turn ingress.enabled and httpRoute.enabled off" -}}
{{- end -}}
{{- if and .Values.ingress.enabled .Values.httpRoute.enabled -}}
{{- fail "httpRoute.enabled: ingress.enabled is on too; choose one of them" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts: ingress is enabled; name at least one host" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: httpRoute is enabled; name the gateway that it belongs to" -}}
{{- end -}}
{{- if and .Values.monitoring.scrape.enabled .Values.monitoring.discovery.enabled -}}
{{- fail "monitoring.discovery.enabled: monitoring.scrape.enabled is on too, and every series would come twice; choose one of them" -}}
{{- end -}}
{{- if and (eq .Values.modelStorage.type "claim") (not .Values.modelStorage.existingClaim) -}}
{{- fail "modelStorage.existingClaim: modelStorage.type is claim; name the PersistentVolumeClaim" -}}
{{- end -}}
{{- if and (eq .Values.modelStorage.type "pull") (not .Values.modelStorage.pull.image) -}}
{{- fail "modelStorage.pull.image: modelStorage.type is pull; name the image that fetches the checkpoints" -}}
{{- end -}}
{{- end -}}
