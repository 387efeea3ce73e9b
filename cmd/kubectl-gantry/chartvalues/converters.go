package chartvalues

import (
	"fmt"
	"strings"
)

// convertedValue is a value that needs more than a copy.
type convertedValue struct {
	path  string
	to    []string
	value any
}

// converterFunc sets the new values, and records what became of the old one.
type converterFunc func(t *translator, v convertedValue)

// converters are the functions that metallb-values.yaml names.
var converters = map[string]converterFunc{
	"alert":              convertAlert,
	"apiServerPorts":     convertAPIServerPort,
	"excludeInterfaces":  convertExcludeInterfaces,
	"metricsPort":        convertMetricsPort,
	"monitors":           convertMonitorValue,
	"probe":              convertProbeSwitch,
	"replicas":           convertControllerSwitch,
	"serviceAccountName": convertServiceAccountName,
	"tolerations":        convertTolerations,
	"usageAlerts":        convertUsageAlerts,
	"webhookMode":        convertWebhookMode,
}

// setAndRecord sets a new value, and records where the old one went.
func (t *translator) setAndRecord(v convertedValue, path string, value any) {
	t.setValue(path, value)
	t.record(TranslatedValue{Path: v.path, Outcome: OutcomeOurs, To: []string{path}})
}

func convertAPIServerPort(t *translator, v convertedValue) {
	// 443 is the port of the Service of the API server.
	t.setAndRecord(v, v.to[0], []any{443, v.value})
}

// convertExcludeInterfaces gives a list that excludes nothing: an empty one means the default.
func convertExcludeInterfaces(t *translator, v convertedValue) {
	t.setAndRecord(v, v.to[0], []any{"^$"})
}

// convertMetricsPort leaves the port to the value for the port with TLS, if there is one.
func convertMetricsPort(t *translator, v convertedValue) {
	if !isEmptyValue(t.sourceValue("prometheus.secureMetricsPort")) {
		t.record(TranslatedValue{Path: v.path, Outcome: OutcomeNotNeeded, Text: "no container stands before the metrics: prometheus.secureMetricsPort counts"})
		return
	}
	for _, path := range v.to {
		t.setValue(path, v.value)
	}
	t.record(TranslatedValue{Path: v.path, Outcome: OutcomeOurs, To: v.to})
}

// convertProbeSwitch removes a probe that is off.
func convertProbeSwitch(t *translator, v convertedValue) { t.setAndRecord(v, v.to[0], nil) }

// convertControllerSwitch starts no controller.
func convertControllerSwitch(t *translator, v convertedValue) { t.setAndRecord(v, v.to[0], 0) }

// convertServiceAccountName keeps the name of an account that the chart does not create. Helm
// would refuse to create one that MetalLB's release owns.
func convertServiceAccountName(t *translator, v convertedValue) {
	if isEqualValue(t.sourceValue(strings.TrimSuffix(v.path, "name")+"create"), false) {
		t.setAndRecord(v, v.to[0], v.value)
		return
	}
	t.record(TranslatedValue{Path: v.path, Outcome: OutcomeNotNeeded, Text: "the chart creates an account with a name of its own, so that both products can be in the cluster"})
}

// controlPlaneTolerations are what speaker.tolerateMaster means.
func controlPlaneTolerations() []any {
	return []any{
		map[string]any{"key": "node-role.kubernetes.io/master", "effect": "NoSchedule", "operator": "Exists"},
		map[string]any{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule", "operator": "Exists"},
	}
}

// convertTolerations translates speaker.tolerations and speaker.tolerateMaster together.
func convertTolerations(t *translator, v convertedValue) {
	list, _ := t.sourceValue("speaker.tolerations").([]any)
	if !isEqualValue(t.sourceValue("speaker.tolerateMaster"), false) {
		list = append(controlPlaneTolerations(), list...)
	}
	if list == nil {
		list = []any{}
	}
	t.setAndRecord(v, v.to[0], list)
}

// convertWebhookMode has no counterpart for a controller that only answers for the webhook.
func convertWebhookMode(t *translator, v convertedValue) {
	if mode := fmt.Sprint(v.value); mode == "enabled" || mode == "disabled" {
		t.setAndRecord(v, v.to[0], mode == "enabled")
		return
	}
	t.record(TranslatedValue{Path: v.path, Outcome: OutcomeNone, Text: fmt.Sprintf("the controller has no mode %v: \"webhook.enabled\" adds the webhook to its other work", v.value)})
}
