{{/* The image, by its digest or else by its tag. */}}
{{- define "gantry.image" -}}
{{- with .Values.image -}}
{{- $repository := required "set image.repository to the name of Gantry's image in your registry, such as registry.example/gantry: no public registry has it, `make image` builds it" .repository -}}
{{- if .digest }}{{ $repository }}@{{ .digest }}{{ else }}{{ $repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* How the names of all objects begin. */}}
{{- define "gantry.name" -}}
{{ .Values.fullnameOverride | default "gantry" }}
{{- end -}}

{{/* The name of the service account of a component: (list CONTEXT COMPONENT). */}}
{{- define "gantry.serviceAccount" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
{{ (index $root.Values $component).serviceAccount.name | default (printf "%s-%s" (include "gantry.name" $root) $component) }}
{{- end -}}

{{/* The labels of the component that is given. The programs and kubectl gantry find Pods by them. */}}
{{- define "gantry.labels" -}}
app.kubernetes.io/name: gantry
app.kubernetes.io/component: {{ . }}
{{- end -}}

{{/* The metadata of a workload or of its Pods: (dict "component" NAME "labels" LABELS "annotations" ANNOTATIONS). */}}
{{- define "gantry.metadata" -}}
labels:
  {{- toYaml (merge (fromYaml (include "gantry.labels" .component)) (.labels | default dict)) | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The metadata of the Pods of a component: (list CONTEXT COMPONENT). */}}
{{- define "gantry.podMetadata" -}}
{{- $root := index . 0 }}{{ $component := index . 1 }}{{ $values := index $root.Values $component -}}
{{- $annotations := merge (dict) $values.podAnnotations -}}
{{- if $root.Values.prometheus.scrapeAnnotations -}}
{{- $annotations = merge $annotations (dict "prometheus.io/scrape" "true" "prometheus.io/port" (toString $values.ports.metrics) "prometheus.io/scheme" $root.Values.metrics.protocol) -}}
{{- end -}}
{{- include "gantry.metadata" (dict "component" $component "labels" $values.podLabels "annotations" $annotations) }}
{{- end -}}

{{/* Where a program listens, or 0 for nowhere: (list ADDRESS PORT). */}}
{{- define "gantry.listen" -}}
{{- if index . 1 }}{{ printf "%s:%v" (index . 0) (index . 1) | quote }}{{ else }}"0"{{ end -}}
{{- end -}}

{{/* The fields of an object that are not empty. */}}
{{- define "gantry.fields" -}}
{{- $fields := dict }}
{{- range $name, $value := . }}{{ if $value }}{{ $_ := set $fields $name $value }}{{ end }}{{ end }}
{{- if $fields }}{{ toYaml $fields }}{{ end }}
{{- end -}}

{{/* The probes of a program: (dict "values" VALUES "httpGet" ADDRESS). */}}
{{- define "gantry.probes" -}}
{{- range $probe, $path := dict "livenessProbe" "/healthz" "readinessProbe" "/readyz" "startupProbe" "/healthz" }}
{{- with index $.values $probe }}
{{ $probe }}: {{ toJson (merge (dict "httpGet" (merge (dict "path" $path) $.httpGet)) .) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Variables for what differs from the programs' own defaults: (list CONTEXT VALUES). */}}
{{- define "gantry.env" -}}
{{- $root := index . 0 }}{{ $program := index . 1 -}}
- {name: GANTRY_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
{{- with $root.Values.loadBalancerClass }}
- {name: GANTRY_LOAD_BALANCER_CLASS, value: {{ . | quote }}}
{{- end }}
{{- with $program.logLevel | default $root.Values.logLevel }}
{{- if ne . "info" }}
- {name: GANTRY_LOG_LEVEL, value: {{ . }}}
{{- end }}
{{- end }}
{{- if $root.Values.speaker.ignoreExcludeLB }}
- {name: GANTRY_IGNORE_EXCLUDE_LB, value: "true"}
{{- end }}
{{- if not $root.Values.bgp.enabled }}
- {name: GANTRY_BGP, value: disabled}
{{- end }}
{{- if ne $root.Values.metrics.protocol "https" }}
- {name: GANTRY_METRICS_PROTOCOL, value: {{ $root.Values.metrics.protocol }}}
{{- end }}
{{- if $program.metricsCertificateSecret }}
- {name: GANTRY_METRICS_CERTIFICATE_DIR, value: /etc/gantry-metrics}
{{- end }}
{{- end -}}
