{{- define "rerank.name" -}}
{{- regexReplaceAll "[-.]+$" (default .Chart.Name .Values.nameOverride | trunc 63) "" -}}
{{- end -}}

{{/* Services add "-headless" to it, and DNS has 63 characters, none of them a dot. */}}
{{- define "rerank.fullname" -}}
{{- $name := include "rerank.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- regexReplaceAll "-+$" (default $full .Values.fullnameOverride | replace "." "-" | trunc 52) "" -}}
{{- end -}}

{{- define "rerank.selector" -}}
app.kubernetes.io/name: {{ include "rerank.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "rerank.labels" -}}
{{ include "rerank.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "rerank.meta" -}}
metadata:
  name: {{ include "rerank.fullname" . | quote }}
  namespace: {{ .Release.Namespace | quote }}
  labels:
    {{- include "rerank.labels" . | nindent 4 }}
{{- end -}}

{{- define "rerank.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "rerank.account" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "rerank.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{/* The Secret with the tokens; "" where any caller is served. */}}
{{- define "rerank.tokens" -}}
{{- if .Values.auth.existingSecret -}}
{{ .Values.auth.existingSecret }}
{{- else if .Values.auth.tokens -}}
{{ include "rerank.fullname" . }}-tokens
{{- end -}}
{{- end -}}

{{- define "rerank.claim" -}}
{{- if eq .Values.storage.kind "existing" -}}
{{ .Values.storage.existingClaim }}
{{- else -}}
{{ include "rerank.fullname" . }}-models
{{- end -}}
{{- end -}}

{{/* What is fetched: hub ids and names of the catalogue, neither "embedded" nor a path. One a line. */}}
{{- define "rerank.downloads" -}}
{{- range .Values.models -}}
{{- if not (or (eq .source "embedded") (regexMatch "^[./~]" .source)) -}}
{{ .source }}{{ "\n" }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The name by which the server knows a model. */}}
{{- define "rerank.modelName" -}}
{{- .name | default (base .source | splitList "@" | first) -}}
{{- end -}}

{{/* Refuses lists of models that the server would refuse, or take otherwise than they look. */}}
{{- define "rerank.checkModels" -}}
{{- if (first .Values.models).lazy -}}
{{- fail "models: the first is the default and cannot be lazy" -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.models -}}
{{- if and (not .name) (regexMatch "@.*/" .source) -}}
{{- fail (printf "models: %s: the part after its last / would be its name: give it a name" .source) -}}
{{- end -}}
{{- range concat (list (include "rerank.modelName" .)) (default list .aliases) -}}
{{- if has . $names -}}
{{- fail (printf "models: the name %s is given twice" .) -}}
{{- end -}}
{{- $names = append $names . -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses ports that a Service cannot have together, and names and labels that Kubernetes would refuse. */}}
{{- define "rerank.checkObjects" -}}
{{- if not (regexMatch "^[a-z]" (include "rerank.fullname" .)) -}}
{{- fail (printf "release %s: a Service's name begins with a letter: set fullnameOverride" .Release.Name) -}}
{{- end -}}
{{- if not .Values.service.plain -}}
{{- if not .Values.service.extraPorts -}}
{{- fail "service.plain: without it the Service has no port: name the sidecar's in service.extraPorts" -}}
{{- end -}}
{{- if not .Values.networkPolicy.enabled -}}
{{- fail "service.plain: only the NetworkPolicy closes the plain ports: set networkPolicy.enabled" -}}
{{- end -}}
{{- end -}}
{{- $names := list "grpc" "rest" "metrics" "admin" -}}
{{- $ports := list .Values.service.metricsPort -}}
{{- if .Values.service.plain -}}
{{- $ports = append $ports .Values.service.grpcPort -}}
{{- if .Values.rest.enabled -}}{{- $ports = append $ports .Values.service.restPort -}}{{- end -}}
{{- end -}}
{{- range .Values.service.extraPorts -}}
{{- $names = append $names .name -}}
{{- $ports = append $ports .port -}}
{{- end -}}
{{- if ne (len $ports) (len (uniq $ports)) -}}
{{- fail "service: two ports have one number" -}}
{{- end -}}
{{- if ne (len $names) (len (uniq $names)) -}}
{{- fail "service.extraPorts: two ports have one name" -}}
{{- end -}}
{{- $own := include "rerank.labels" . | fromYaml -}}
{{- range $key, $_ := .Values.podLabels -}}
{{- if hasKey $own $key -}}{{- fail (printf "podLabels: %s is the chart's own" $key) -}}{{- end -}}
{{- end -}}
{{- range $key, $_ := .Values.monitor.labels -}}
{{- if hasKey $own $key -}}{{- fail (printf "monitor.labels: %s is the chart's own" $key) -}}{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses what would leave an update or an autoscaler standing. */}}
{{- define "rerank.checkScaling" -}}
{{- $surge := .Values.rollingUpdate.maxSurge | toString | trimSuffix "%" | int -}}
{{- $gone := .Values.rollingUpdate.maxUnavailable | toString | trimSuffix "%" | int -}}
{{- if not (or $surge $gone) -}}
{{- fail "rollingUpdate: with maxSurge 0 and maxUnavailable 0 no pod could be renewed: set one of them" -}}
{{- end -}}
{{- $scaling := .Values.autoscaling -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- $watched := and (ne .Values.monitor.kind "none") (not $scaling.keda.query) -}}
{{- if and (eq $scaling.kind "keda") $watched (gt (int .Values.monitor.intervalSeconds) 30) -}}
{{- fail "monitor.intervalSeconds is above 30: KEDA's query looks at one minute, which wants two readings: lower it, or set autoscaling.keda.query" -}}
{{- end -}}
{{- end -}}

{{/* Values that are each right and together wrong, in one line each. */}}
{{- define "rerank.check" -}}
{{- include "rerank.checkModels" . -}}
{{- include "rerank.checkObjects" . -}}
{{- include "rerank.checkScaling" . -}}
{{- $own := and (eq .Values.storage.kind "pvc") (eq .Values.kind "Deployment") -}}
{{- if and $own (not (has "ReadWriteMany" .Values.storage.accessModes)) -}}
{{- fail "storage.kind pvc: the pods of a Deployment share one claim: set storage.accessModes to [ReadWriteMany], or kind to StatefulSet" -}}
{{- end -}}
{{- if and (eq .Values.storage.kind "existing") (not .Values.storage.existingClaim) -}}
{{- fail "storage.kind existing: name the claim in storage.existingClaim" -}}
{{- end -}}
{{- if and .Values.storage.readOnly .Values.download.enabled -}}
{{- fail "download.enabled: storage.readOnly leaves nowhere to put models: turn one of them off" -}}
{{- end -}}
{{- if and .Values.storage.readOnly (ne .Values.storage.kind "existing") -}}
{{- fail "storage.readOnly: only a claim that others fill can be read-only: set storage.kind to existing" -}}
{{- end -}}
{{- if and .Values.download.enabled (not (include "rerank.downloads" .)) -}}
{{- fail "download.enabled: no model in models is on the hub, such as BAAI/bge-reranker-v2-m3" -}}
{{- end -}}
{{- if and .Values.admin.open (not (include "rerank.tokens" .)) -}}
{{- fail "admin.open: whoever reaches the admin port unloads models, so the server wants tokens there: set auth" -}}
{{- end -}}
{{- if and .Values.auth.existingSecret .Values.auth.tokens -}}
{{- fail "auth: set existingSecret or tokens, not both" -}}
{{- end -}}
{{- if and .Values.tls.clientCAKey (not .Values.tls.existingSecret) -}}
{{- fail "tls.clientCAKey: it is a key of the server's own Secret: set tls.existingSecret" -}}
{{- end -}}
{{- if and (eq .Values.monitor.kind "ServiceMonitor") (not .Values.service.headless) -}}
{{- fail "monitor.kind ServiceMonitor: it finds pods by the headless Service: set service.headless, or take PodMonitor" -}}
{{- end -}}
{{- if and (eq .Values.kind "StatefulSet") (not .Values.service.headless) -}}
{{- fail "kind StatefulSet: its pods' names need the headless Service: set service.headless" -}}
{{- end -}}
{{- end -}}
