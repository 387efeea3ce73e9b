{{/*
The objects of files that kustomize reads too, with what the values change: (dict "root" CONTEXT "files" PATTERN). Each
"gantry.change.*" changes the object in place.
*/}}
{{- define "gantry.objects" -}}
{{- range $path, $text := .root.Files.Glob .files }}
{{- range regexSplit "(?m)^---$" (toString $text) -1 }}
{{- $o := dict "root" $.root "object" (fromYaml .) }}
{{- if include "gantry.isWanted" $o }}
{{- range list "webhookRights" "ownSecrets" "namespace" "names" "labels" "passwords" "webhook" "monitoring" "networkPolicy" }}
{{- $_ := include (printf "gantry.change.%s" .) $o }}
{{- end }}
---
{{ toYaml $o.object }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* "yes" for an object of the release. The user may create the accounts or the rights in another way. */}}
{{- define "gantry.isWanted" -}}
{{- $values := .root.Values }}
{{- with .object }}
{{- if eq (.kind | default "") "ServiceAccount" }}
{{- $create := (index $values (trimPrefix "gantry-" .metadata.name)).serviceAccount.create }}
{{- if kindIs "invalid" $create | ternary $values.rbac.create $create }}yes{{ end }}
{{- else if regexMatch "^(Cluster)?Role" (.kind | default "") }}
{{- if $values.rbac.create }}yes{{ end }}
{{- else if .kind }}yes{{ end }}
{{- end }}
{{- end -}}

{{/* The namespace of the release. */}}
{{- define "gantry.change.namespace" -}}
{{- $root := .root }}{{ $namespace := .root.Release.Namespace }}
{{- with .object }}
{{- if .metadata.namespace }}{{ $_ := set .metadata "namespace" $namespace }}{{ end }}
{{- range .subjects }}
{{- if hasPrefix "gantry-" .name }}{{ $_ := set . "namespace" $namespace }}{{ end }}
{{- end }}
{{- range .webhooks }}{{ $_ := set .clientConfig.service "namespace" $namespace }}{{ end }}
{{- if eq .kind "ValidatingAdmissionPolicyBinding" }}
{{- with .spec.paramRef }}{{ $_ := set . "namespace" $namespace }}{{ end }}
{{- with .spec.matchResources }}{{ $_ := set .namespaceSelector.matchLabels "kubernetes.io/metadata.name" $namespace }}{{ end }}
{{- end }}
{{- if eq .kind "ConfigMap" }}{{ $_ := set .data "namespaces" (join "," $root.Values.otherConfigurationNamespaces) }}{{ end }}
{{- end }}
{{- end -}}

{{/* Names that begin otherwise than "gantry", and the names of the service accounts. */}}
{{- define "gantry.change.names" -}}
{{- $root := .root }}{{ $name := include "gantry.name" .root }}
{{- with .object }}
{{- if eq .kind "ServiceAccount" }}
{{- $component := trimPrefix "gantry-" .metadata.name }}
{{- $_ := set .metadata "name" (include "gantry.serviceAccount" (list $root $component)) }}
{{- with (index $root.Values $component).serviceAccount.annotations }}{{ $_ := set $.object.metadata "annotations" . }}{{ end }}
{{- else }}
{{- $_ := set .metadata "name" (regexReplaceAll "^gantry" .metadata.name $name) }}
{{- end }}
{{- range .subjects }}
{{- if hasPrefix "gantry-" .name }}{{ $_ := set . "name" (include "gantry.serviceAccount" (list $root (trimPrefix "gantry-" .name))) }}{{ end }}
{{- end }}
{{- with .roleRef }}{{ $_ := set . "name" (regexReplaceAll "^gantry" .name $name) }}{{ end }}
{{- range .rules }}
{{- if has "validatingwebhookconfigurations" .resources }}{{ $_ := set . "resourceNames" (list (printf "%s-webhook" $name)) }}{{ end }}
{{- end }}
{{- range .webhooks }}{{ $_ := set .clientConfig.service "name" (printf "%s-webhook" $name) }}{{ end }}
{{- if hasPrefix "ValidatingAdmissionPolicy" .kind }}
{{- with .spec.policyName }}{{ $_ := set $.object.spec "policyName" (regexReplaceAll "^gantry" . $name) }}{{ end }}
{{- with .spec.paramRef }}{{ $_ := set . "name" (regexReplaceAll "^gantry" .name $name) }}{{ end }}
{{- range $condition := .spec.matchConditions }}
{{- range $component := list "controller" "speaker" }}
{{- $_ := set $condition "expression" ($condition.expression | replace (printf ":gantry-%s" $component) (printf ":%s" (include "gantry.serviceAccount" (list $root $component)))) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The labels that all objects have. */}}
{{- define "gantry.change.labels" -}}
{{- with .root.Values.commonLabels }}
{{- $_ := set $.object.metadata "labels" (merge ($.object.metadata.labels | default dict) .) }}
{{- end }}
{{- end -}}

{{/* Which Secrets with passwords of BGPPeers may be read. The other rules about Secrets have names already. */}}
{{- define "gantry.change.passwords" -}}
{{- with .root.Values.bgp.passwordSecrets }}
{{- range $.object.rules }}
{{- if and (hasKey . "resources") (has "secrets" (.resources | default list)) (eq (join "," .verbs) "get") }}{{ $_ := set . "resourceNames" $.root.Values.bgp.passwordSecrets }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Rights for Secrets that the programs do not use, because the user has a Secret for the gossip, or for the webhook. */}}
{{- define "gantry.change.ownSecrets" -}}
{{- $values := .root.Values }}
{{- with .object }}
{{- if and (eq .kind "Role") (eq .metadata.name "gantry-speaker") $values.speaker.gossip.secretName }}
{{- $rules := list }}
{{- range .rules }}
{{- if ne (join "," .resourceNames) "gantry-gossip" }}{{ $rules = append $rules . }}{{ end }}
{{- end }}
{{- $_ := set . "rules" $rules }}
{{- else if and (eq .kind "Role") (eq .metadata.name "gantry-webhook") (or $values.webhook.issuerRef (eq $values.webhook.certificate "Secret")) }}
{{- range .rules }}{{ $_ := set . "verbs" (without .verbs "update") }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What the controller may do for the webhook, beside the rights in its namespace. */}}
{{- define "gantry.change.webhookRights" -}}
{{- if and .root.Values.webhook.enabled (eq .object.kind "ClusterRole") (eq .object.metadata.name "gantry-controller") }}
{{- range fromYamlArray (.root.Files.Get "files/components/webhook/clusterrole.yaml") }}
{{- $_ := set $.object "rules" (append $.object.rules .value) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* When the API server asks the webhook. */}}
{{- define "gantry.change.webhook" -}}
{{- $values := .root.Values.webhook }}
{{- range .object.webhooks }}
{{- if ne .failurePolicy "Ignore" }}{{ $_ := set . "failurePolicy" $values.failurePolicy }}{{ end }}
{{- $_ := set . "timeoutSeconds" $values.timeoutSeconds }}
{{- end }}
{{- end -}}

{{/* How Prometheus finds the programs, and when it raises alerts. */}}
{{- define "gantry.change.monitoring" -}}
{{- $values := .root.Values.prometheus }}
{{- $component := index (.object.metadata.labels | default dict) "app.kubernetes.io/component" }}
{{- with .object }}
{{- if hasPrefix "monitoring.coreos.com/" .apiVersion }}
{{- $_ := set .metadata "labels" (merge (deepCopy $values.labels) .metadata.labels) }}
{{- with $values.annotations }}{{ $_ := set $.object.metadata "annotations" . }}{{ end }}
{{- end }}
{{- if eq .kind "ServiceMonitor" }}
{{- with $values.jobLabel }}{{ $_ := set $.object.spec "jobLabel" . }}{{ end }}
{{- range $endpoint := .spec.endpoints }}
{{- $_ := include "gantry.change.endpointAccess" (dict "root" $.root "endpoint" $endpoint) }}
{{- range $field := list "interval" "scrapeTimeout" "relabelings" "metricRelabelings" }}
{{- with index $values $field }}{{ $_ := set $endpoint $field . }}{{ end }}
{{- end }}
{{- end }}
{{- if $values.podMonitors }}
{{- $_ := set . "kind" "PodMonitor" }}
{{- $_ := set .spec "podMetricsEndpoints" .spec.endpoints }}
{{- $_ := unset .spec "endpoints" }}
{{- end }}
{{- else if and $values.enabled (hasSuffix "-metrics-reader" (toString (.roleRef | default dict).name)) }}
{{- $_ := set . "subjects" (list (dict "kind" "ServiceAccount" "name" $values.rbac.serviceAccountName "namespace" $values.rbac.serviceAccountNamespace)) }}
{{- else if eq .kind "PrometheusRule" }}
{{- $_ := include "gantry.change.alerts" (dict "values" $values.rules "groups" .spec.groups) }}
{{- else if eq .kind "Service" }}
{{- range .spec.ports }}
{{- if eq .name "metrics" }}{{ $_ := set . "port" (index $.root.Values $component).ports.metrics }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* How Prometheus shows who it is. A PodMonitor cannot name the file with the token of Prometheus. */}}
{{- define "gantry.change.endpointAccess" -}}
{{- $values := .root.Values.prometheus }}
{{- with .endpoint }}
{{- with $values.tlsConfig }}{{ $_ := set $.endpoint "tlsConfig" . }}{{ end }}
{{- if eq $.root.Values.metrics.protocol "http" }}
{{- range list "scheme" "tlsConfig" "bearerTokenFile" }}{{ $_ := unset $.endpoint . }}{{ end }}
{{- else if $values.tokenSecret }}
{{- $_ := unset . "bearerTokenFile" }}
{{- $_ := set . "authorization" (dict "credentials" (dict "name" $values.tokenSecret "key" "token")) }}
{{- else if $values.podMonitors }}
{{- fail "prometheus.podMonitors: set prometheus.tokenSecret too, or metrics.protocol to http: a PodMonitor cannot send the token of Prometheus itself" }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The ports of the controller and of the API server in the NetworkPolicy. */}}
{{- define "gantry.change.networkPolicy" -}}
{{- $ports := list }}
{{- range $port := values .root.Values.controller.ports | sortAlpha }}
{{- if ne $port "0" }}{{ $ports = append $ports (dict "protocol" "TCP" "port" (int $port)) }}{{ end }}
{{- end }}
{{- $apiServerPorts := list }}
{{- range .root.Values.networkPolicies.apiServerPorts }}{{ $apiServerPorts = append $apiServerPorts (dict "protocol" "TCP" "port" (int .)) }}{{ end }}
{{- if eq .object.kind "NetworkPolicy" }}
{{- $_ := set .object.spec "ingress" (list (dict "ports" $ports)) }}
{{- $_ := set .object.spec "egress" (list (dict "ports" $apiServerPorts)) }}
{{- end }}
{{- end -}}

{{/* Alerts that differ from config/components/prometheus/rules.yaml. */}}
{{- define "gantry.change.alerts" -}}
{{- $values := .values }}{{ $known := list }}
{{- range $group := .groups }}
{{- $rules := list }}
{{- range $rule := $group.rules }}
{{- $known = append $known $rule.alert }}
{{- $own := index $values.alerts $rule.alert | default dict }}
{{- if ne (toString $own.enabled) "false" }}
{{- with $own.for }}{{ $_ := set $rule "for" . }}{{ end }}
{{- with $own.severity }}{{ $_ := set $rule.labels "severity" . }}{{ end }}
{{- if hasKey $own "threshold" }}
{{- if not (regexMatch "> [0-9]+$" $rule.expr) }}{{ fail (printf "prometheus.rules.alerts: %s has no threshold" $rule.alert) }}{{ end }}
{{- $_ := set $rule "expr" (regexReplaceAll "> [0-9]+$" $rule.expr (printf "> %v" $own.threshold)) }}
{{- $_ := set $rule "alert" (regexReplaceAll "Usage[0-9]+Percent$" $rule.alert (printf "Usage%vPercent" $own.threshold)) }}
{{- end }}
{{- with $values.excludePools }}
{{- $_ := set $rule "expr" (regexReplaceAll "metallb_allocator_[a-z0-9_]+" $rule.expr (printf "${0}{pool!~%q}" (join "|" .))) }}
{{- end }}
{{- $_ := set $rule "labels" (merge $rule.labels $values.labels) }}
{{- $rules = append $rules $rule }}
{{- end }}
{{- end }}
{{- $_ := set $group "rules" (concat $rules $values.extra) }}
{{- end }}
{{- range $alert, $_ := $values.alerts }}
{{- if not (has $alert $known) }}{{ fail (printf "prometheus.rules.alerts: there is no alert %s, but %s" $alert (join ", " (uniq $known))) }}{{ end }}
{{- end }}
{{- end -}}
