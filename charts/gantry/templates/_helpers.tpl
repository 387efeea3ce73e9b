{{/* The image, by its digest or else by its tag. */}}
{{- define "gantry.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* The labels of the component that is given. */}}
{{- define "gantry.labels" -}}
app.kubernetes.io/name: gantry
app.kubernetes.io/component: {{ . }}
{{- end -}}

{{/* Variables for what differs from the programs' own defaults. */}}
{{- define "gantry.env" -}}
- {name: GANTRY_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
{{- with .Values.loadBalancerClass }}
- {name: GANTRY_LOAD_BALANCER_CLASS, value: {{ . | quote }}}
{{- end }}
{{- if ne .Values.logLevel "info" }}
- {name: GANTRY_LOG_LEVEL, value: {{ .Values.logLevel }}}
{{- end }}
{{- if .Values.speaker.ignoreExcludeLB }}
- {name: GANTRY_IGNORE_EXCLUDE_LB, value: "true"}
{{- end }}
{{- if not .Values.bgp.enabled }}
- {name: GANTRY_BGP, value: disabled}
{{- end }}
{{- end -}}

{{/*
The objects of files that kustomize reads too, in the release's namespace. "root" is the chart's context, "files" a pattern.
*/}}
{{- define "gantry.objects" -}}
{{- $namespace := .root.Release.Namespace -}}
{{- range $path, $text := .root.Files.Glob .files }}
{{- range regexSplit "(?m)^---$" (toString $text) -1 }}
{{- $o := fromYaml . }}
{{- if $o.kind }}
{{- if $o.metadata.namespace }}{{ $_ := set $o.metadata "namespace" $namespace }}{{ end }}
{{- range $o.subjects }}{{ $_ := set . "namespace" $namespace }}{{ end }}
{{- if and (eq $o.kind "ValidatingAdmissionPolicyBinding") $o.spec.paramRef }}{{ $_ := set $o.spec.paramRef "namespace" $namespace }}{{ end }}
{{- if eq $o.kind "ConfigMap" }}{{ $_ := set $o.data "namespaces" (join "," $.root.Values.otherConfigurationNamespaces) }}{{ end }}
{{- range $o.webhooks }}
{{- $_ := set .clientConfig.service "namespace" $namespace }}
{{- $_ := set . "failurePolicy" $.root.Values.webhook.failurePolicy }}
{{- end }}
{{- if hasPrefix "monitoring.coreos.com/" $o.apiVersion }}
{{- $_ := set $o.metadata "labels" (merge (deepCopy $.root.Values.prometheus.labels) $o.metadata.labels) }}
{{- if $.root.Values.prometheus.interval }}
{{- range $o.spec.endpoints }}{{ $_ := set . "interval" $.root.Values.prometheus.interval }}{{ end }}
{{- end }}
{{- end }}
---
{{ toYaml $o }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
