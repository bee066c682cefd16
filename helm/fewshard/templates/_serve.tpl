{{/* The Ray Serve configuration, as `fewshard render` would print it. */}}

{{- define "fewshard.hasOwnHost" -}}
{{- if or .replicas .experts (eq (default "auto" .device) "cuda") }}yes{{ end -}}
{{- end -}}

{{/* What an application has to know of a model that another one serves. */}}
{{- define "fewshard.outside" -}}
{{- pick . "name" "path" "device" "replicas" "experts" "admission" | toJson -}}
{{- end -}}

{{/* Where requests may come from. Without tokens, browsers must use a name that the server knows. */}}
{{- define "fewshard.callers" -}}
{{- $callers := deepCopy .Values.callers -}}
{{- $hosts := default (list) $callers.hosts -}}
{{- if not .Values.auth.enabled -}}
{{- if .Values.ingress.enabled }}{{ $hosts = concat $hosts .Values.ingress.hosts }}{{ end -}}
{{- if .Values.httpRoute.enabled }}{{ $hosts = concat $hosts .Values.httpRoute.hostnames }}{{ end -}}
{{- end -}}
{{- $names := list -}}
{{- range uniq $hosts }}{{ if not (hasPrefix "*." .) }}{{ $names = append $names . }}{{ end }}{{ end -}}
{{- with $names }}{{ $_ := set $callers "hosts" . }}{{ end -}}
{{- toJson $callers -}}
{{- end -}}

{{/* What every application needs. */}}
{{- define "fewshard.common" -}}
{{- $common := dict "logging" .Values.logging -}}
{{- range $section := list "cors" "limits" "metrics" "tracing" -}}
{{- with index $.Values $section }}{{ $_ := set $common $section . }}{{ end -}}
{{- end -}}
{{- with include "fewshard.callers" . | fromJson }}{{ $_ := set $common "callers" . }}{{ end -}}
{{- if .Values.auth.enabled -}}
{{- $_ := set $common "auth" (dict "tokens_file" (printf "/etc/fewshard/auth/%s" .Values.auth.key)) -}}
{{- end -}}
{{- toJson $common -}}
{{- end -}}

{{/* (dict "root" $ "name" "models" "prefix" "/v2/models" "config" {...}) */}}
{{- define "fewshard.application" -}}
{{- $config := merge (dict) .config (include "fewshard.common" .root | fromJson) -}}
{{- $app := dict "name" .name "route_prefix" .prefix "import_path" "fewshard_serve.app:build" -}}
{{- $_ := set $app "args" (dict "application" .name "config" $config) -}}
{{- with index .root.Values.serve.deployments .name -}}
{{- $_ := set $app "deployments" (list (merge (dict "name" $.deployment) .)) -}}
{{- end -}}
{{- toJson $app -}}
{{- end -}}

{{/* A host's models, and those elsewhere that shadow them: (dict "models" [...] "all" [...]). */}}
{{- define "fewshard.hostModels" -}}
{{- $own := list -}}{{- $shadows := list -}}{{- $models := .models -}}
{{- range .models -}}
{{- $own = append $own .name -}}
{{- with .shadow }}{{ $shadows = append $shadows (ternary . (dig "model" "" (ternary (dict) . (kindIs "string" .))) (kindIs "string" .)) }}{{ end -}}
{{- end -}}
{{- range .all -}}
{{- if and (has .name $shadows) (not (has .name $own)) }}{{ $models = append $models . }}{{ end -}}
{{- end -}}
{{- toJson $models -}}
{{- end -}}

{{- define "fewshard.serveConfig" -}}
{{- $root := . -}}
{{- $shared := list -}}{{- $outside := list -}}{{- $apps := list -}}{{- $byName := dict -}}
{{- range .Values.models -}}
{{- $seen := include "fewshard.outside" . | fromJson -}}
{{- $outside = append $outside $seen -}}
{{- $_ := set $byName .name $seen -}}
{{- end -}}
{{- range .Values.models -}}
{{- if include "fewshard.hasOwnHost" . -}}
{{- $args := dict "root" $root "name" (printf "model-%s" .name) "prefix" (printf "/v2/models/%s" .name) -}}
{{- $args = merge $args (dict "deployment" "host") -}}
{{- $models := include "fewshard.hostModels" (dict "models" (list .) "all" $outside) | fromJsonArray -}}
{{- $args = merge $args (dict "config" (dict "models" $models)) -}}
{{- $apps = append $apps (include "fewshard.application" $args | fromJson) -}}
{{- else -}}
{{- $shared = append $shared . -}}
{{- end -}}
{{- end -}}
{{- if $shared -}}
{{- $args := dict "root" $root "name" "models" "prefix" "/v2/models" "deployment" "host" -}}
{{- $models := include "fewshard.hostModels" (dict "models" $shared "all" $outside) | fromJsonArray -}}
{{- $args = merge $args (dict "config" (dict "models" $models)) -}}
{{- $apps = prepend $apps (include "fewshard.application" $args | fromJson) -}}
{{- end -}}
{{- range $cascade := .Values.cascades -}}
{{- $stages := list -}}
{{- range $root.Values.models -}}
{{- if has .name $cascade.stages }}{{ $stages = append $stages (get $byName .name) }}{{ end -}}
{{- end -}}
{{- $args := dict "root" $root "name" (printf "cascade-%s" .name) "prefix" (printf "/v2/models/%s" .name) -}}
{{- $args = merge $args (dict "deployment" "host" "config" (dict "models" $stages "cascades" (list .))) -}}
{{- $apps = append $apps (include "fewshard.application" $args | fromJson) -}}
{{- end -}}
{{- $gateway := dict "models" $outside "server" (dict "host" "0.0.0.0" "port" 8000 "grpc_port" 0) -}}
{{- if .Values.cascades }}{{ $_ := set $gateway "cascades" .Values.cascades }}{{ end -}}
{{- $args := dict "root" $root "name" "gateway" "prefix" "/" "deployment" "gateway" "config" $gateway -}}
{{- $apps = append $apps (include "fewshard.application" $args | fromJson) -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
  {{- with .Values.serve.httpOptions }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
logging_config:
  log_level: ERROR
  enable_access_log: false
  encoding: {{ default "text" .Values.logging.format | upper }}
applications:
{{ toYaml $apps }}
{{- end -}}
