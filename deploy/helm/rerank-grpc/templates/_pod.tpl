{{/* What `restricted` Pod Security asks of every container of this chart; nothing here is a value. */}}
{{- define "rerank.locked" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "rerank.flag" -}}
{{- $value := .value -}}
{{- if kindIs "bool" $value -}}{{- $value = ternary "on" "off" $value -}}{{- end -}}
{{- if kindIs "float64" $value -}}{{- $value = ternary (printf "%d" (int64 $value)) (toString $value) (eq $value (floor $value)) -}}{{- end -}}
--{{ .name }}={{ $value }}
{{- end -}}

{{/* The server's command line. */}}
{{- define "rerank.args" -}}
- serve
{{- $aliases := list -}}
{{- $pins := list -}}
{{- $calibrations := list -}}
{{- range .Values.models }}
- {{ printf "--%s=%s%s" (ternary "lazy-model" "model" (default false .lazy)) (ternary (printf "%s=" .name) "" (not (empty .name))) .source | quote }}
{{- $name := include "rerank.modelName" . -}}
{{- range .aliases }}{{ $aliases = append $aliases (printf "--alias=%s=%s" . $name) }}{{ end -}}
{{- if .pinned }}{{ $pins = append $pins (printf "--pin=%s" $name) }}{{ end -}}
{{- with .calibration }}{{ $calibrations = append $calibrations (printf "--calibration=%s=%s" $name .) }}{{ end -}}
{{- end }}
{{- range concat $aliases $pins $calibrations }}
- {{ quote . }}
{{- end }}
- --models-dir=/models
- {{ printf "--host=%s" .Values.listen | quote }}
- --port=50051
- {{ printf "--admin-host=%s" (ternary .Values.listen "127.0.0.1" .Values.admin.open) | quote }}
- --admin-port=50052
- {{ printf "--metrics-host=%s" .Values.listen | quote }}
- --metrics-port=9090
{{- if .Values.rest.enabled }}
- {{ printf "--rest-host=%s" .Values.listen | quote }}
- --rest-port=6006
{{- else }}
- --rest-port=off
{{- end }}
{{- if include "rerank.tokens" . }}
- --token-file=/run/secrets/rerank/tokens
{{- end }}
{{- if .Values.tls.existingSecret }}
- --tls-cert=/run/secrets/tls/cert.pem
- --tls-key=/run/secrets/tls/key.pem
{{- if .Values.tls.clientCAKey }}
- --tls-client-ca=/run/secrets/tls/client-ca.pem
{{- end }}
{{- end }}
{{- if .Values.gpu.count }}
- --device=cuda
{{- end }}
- {{ include "rerank.flag" (dict "name" "grace" "value" .Values.shutdown.graceSeconds) }}
{{- range $name, $value := .Values.settings }}
{{- if kindIs "slice" $value }}
{{- range $value }}
- {{ include "rerank.flag" (dict "name" $name "value" .) | quote }}
{{- end }}
{{- else }}
- {{ include "rerank.flag" (dict "name" $name "value" $value) | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "rerank.env" -}}
- name: HOME
  value: {{ ternary "/home/rerank" "/models" .Values.storage.readOnly }}
- name: HF_HOME
  value: /models/.huggingface
{{- with .Values.download.endpoint }}
- name: HF_ENDPOINT
  value: {{ quote . }}
{{- end }}
{{- with .Values.download.tokenSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ quote . }}
      key: {{ quote $.Values.download.tokenKey }}
{{- end }}
{{- $given := dict -}}
{{- range .Values.extraEnv }}{{ $_ := set $given .name true }}{{ end -}}
{{- $followed := or (dig "limits" "cpu" "" .Values.resources) (hasKey $given "OMP_NUM_THREADS") -}}
{{- if and (dig "requests" "cpu" "" .Values.resources) (not $followed) }}
# Without it torch takes every CPU of the node for its threads. A limit of CPUs is followed by the server itself.
- name: OMP_NUM_THREADS
  valueFrom:
    resourceFieldRef:
      containerName: rerank
      resource: requests.cpu
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "rerank.mounts" -}}
- name: models
  mountPath: /models
  {{- if .Values.storage.readOnly }}
  readOnly: true
  {{- end }}
{{- if .Values.storage.readOnly }}
- name: home
  mountPath: /home/rerank
{{- end }}
- name: tmp
  mountPath: /tmp
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "rerank.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if .Values.gpu.count -}}
{{- $_ := set $resources "limits" (merge (dict .Values.gpu.resource (int .Values.gpu.count)) (default dict $resources.limits)) -}}
{{- end -}}
{{ toYaml $resources }}
{{- end -}}

{{/* How the kubelet asks: by gRPC; where there is TLS, which its gRPC lacks, by HTTPS, whose certificate it takes as it
is; where callers need a certificate, or there is no REST, by a command in the container. */}}
{{- define "rerank.ask" -}}
{{- if include "rerank.askedByCommand" .root -}}
exec: {command: [rerank-grpc, health, --here]}
{{- else if .root.Values.tls.existingSecret -}}
httpGet: {path: /health, port: 6006, scheme: HTTPS}
{{- else -}}
grpc: {{ toJson .grpc }}
{{- end -}}
{{- end -}}

{{/* Not empty where the probes are a command. */}}
{{- define "rerank.askedByCommand" -}}
{{- if and .Values.tls.existingSecret (or .Values.tls.clientCAKey (not .Values.rest.enabled)) -}}true{{- end -}}
{{- end -}}

{{- define "rerank.probes" -}}
{{- /* A command starts a Python each time: half a second of a processor, and several where all of them compute. */ -}}
{{- $command := not (empty (include "rerank.askedByCommand" .)) -}}
{{- $period := ternary (max 15 .Values.probes.periodSeconds) .Values.probes.periodSeconds $command -}}
{{- $patience := ternary 10 3 $command -}}
{{- $grpc := dict "port" 50051 "service" "rerank.v1.RerankService" -}}
{{- $ready := dict "root" . "grpc" $grpc -}}
{{- $alive := dict "root" . "grpc" (ternary (dict "port" 50052) $grpc .Values.admin.open) -}}
# Not SERVING before the default model's warm-up is done.
startupProbe:
  {{ include "rerank.ask" $ready }}
  periodSeconds: {{ $period }}
  timeoutSeconds: {{ $patience }}
  failureThreshold: {{ div (add .Values.probes.startupSeconds (sub $period 1)) $period }}
readinessProbe:
  {{ include "rerank.ask" $ready }}
  periodSeconds: {{ $period }}
  timeoutSeconds: {{ $patience }}
  failureThreshold: {{ .Values.probes.readinessFailures }}
# A device that broke stays NOT_SERVING until the process is started anew; one that hangs ends it.
livenessProbe:
  {{ include "rerank.ask" $alive }}
  periodSeconds: {{ $period }}
  timeoutSeconds: {{ max 5 $patience }}
  failureThreshold: {{ .Values.probes.livenessFailures }}
{{- end -}}

{{- define "rerank.server" -}}
- name: rerank
  image: {{ include "rerank.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    {{- include "rerank.args" . | nindent 4 }}
  env:
    {{- include "rerank.env" . | nindent 4 }}
  ports:
    - {name: grpc, containerPort: 50051, protocol: TCP}
    {{- if .Values.rest.enabled }}
    - {name: rest, containerPort: 6006, protocol: TCP}
    {{- end }}
    - {name: metrics, containerPort: 9090, protocol: TCP}
    {{- if .Values.admin.open }}
    - {name: admin, containerPort: 50052, protocol: TCP}
    {{- end }}
  {{- include "rerank.probes" . | nindent 2 }}
  {{- if .Values.shutdown.preStopSeconds }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ .Values.shutdown.preStopSeconds }}
  {{- end }}
  resources:
    {{- include "rerank.resources" . | nindent 4 }}
  {{- include "rerank.locked" . | nindent 2 }}
  volumeMounts:
    {{- include "rerank.mounts" . | nindent 4 }}
    {{- if include "rerank.tokens" . }}
    - name: tokens
      mountPath: /run/secrets/rerank
      readOnly: true
    {{- end }}
    {{- if .Values.tls.existingSecret }}
    - name: tls
      mountPath: /run/secrets/tls
      readOnly: true
    {{- end }}
{{- end -}}

{{- define "rerank.download" -}}
# What is there is not fetched again; one that was cut off goes on where it ended.
- name: download
  image: {{ include "rerank.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - download
    {{- range splitList "\n" (include "rerank.downloads" . | trim) }}
    - {{ quote . }}
    {{- end }}
    {{- with .Values.settings.catalogue }}
    - {{ printf "--catalogue=%s" . | quote }}
    {{- end }}
  env:
    {{- include "rerank.env" . | nindent 4 }}
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  {{- include "rerank.locked" . | nindent 2 }}
  volumeMounts:
    {{- include "rerank.mounts" . | nindent 4 }}
{{- end -}}

{{- define "rerank.volumes" -}}
{{- if eq .Values.storage.kind "emptyDir" }}
- name: models
  emptyDir:
    sizeLimit: {{ quote .Values.storage.size }}
{{- else if or (eq .Values.storage.kind "existing") (eq .Values.kind "Deployment") }}
- name: models
  persistentVolumeClaim:
    claimName: {{ include "rerank.claim" . | quote }}
    {{- if .Values.storage.readOnly }}
    readOnly: true
    {{- end }}
{{- end }}
{{- if .Values.storage.readOnly }}
- name: home
  emptyDir:
    sizeLimit: 1Gi
{{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
{{- with include "rerank.tokens" . }}
- name: tokens
  secret:
    secretName: {{ quote . }}
    defaultMode: 0440
    items:
      - key: {{ ternary $.Values.auth.key "tokens" (not (empty $.Values.auth.existingSecret)) | quote }}
        path: tokens
{{- end }}
{{- with .Values.tls.existingSecret }}
- name: tls
  secret:
    secretName: {{ quote . }}
    defaultMode: 0440
    items:
      - {key: {{ quote $.Values.tls.certKey }}, path: cert.pem}
      - {key: {{ quote $.Values.tls.keyKey }}, path: key.pem}
      {{- with $.Values.tls.clientCAKey }}
      - {key: {{ quote . }}, path: client-ca.pem}
      {{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "rerank.spread" -}}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: {{ $.Values.topologySpread.whenUnsatisfiable }}
  labelSelector:
    matchLabels:
      {{- include "rerank.selector" $ | nindent 6 }}
  {{- if eq $.Values.kind "Deployment" }}
  matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}

{{- define "rerank.podMeta" -}}
metadata:
  labels:
    {{- include "rerank.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: rerank
    {{- with .Values.auth.tokens }}
    # The server reads its tokens at its start.
    checksum/tokens: {{ join "\n" . | sha256sum }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "rerank.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := .Values.tolerations -}}
{{- if and .Values.gpu.count .Values.gpu.toleration -}}
{{- $tolerations = append $tolerations (dict "key" .Values.gpu.resource "operator" "Exists" "effect" "NoSchedule") -}}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ quote . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ quote . }}
{{- end }}
{{- if .Values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- include "rerank.spread" . | trim | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "rerank.pod" -}}
{{ include "rerank.podMeta" . }}
spec:
  serviceAccountName: {{ include "rerank.account" . | quote }}
  automountServiceAccountToken: false
  # The variables of a Service named rerank would look like settings.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add .Values.shutdown.preStopSeconds (ceil .Values.shutdown.graceSeconds) 5 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: {{ int64 .Values.user }}
    runAsGroup: {{ int64 .Values.user }}
    fsGroup: {{ int64 .Values.user }}
    # Always would let the group write to what a start has kept, and the next would not trust it.
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.download.enabled }}
  initContainers:
    {{- include "rerank.download" . | nindent 4 }}
  {{- end }}
  containers:
    {{- include "rerank.server" . | nindent 4 }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "rerank.volumes" . | trim | nindent 4 }}
  {{- include "rerank.placement" . | trim | nindent 2 }}
{{- end -}}
