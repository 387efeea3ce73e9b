package chartvalues

import (
	"fmt"
	"slices"
	"strings"
)

// monitorPaths are the switches of MetalLB's chart that need prometheus.enabled.
const (
	podMonitorPath     = "prometheus.podMonitor"
	serviceMonitorPath = "prometheus.serviceMonitor"
	rulePath           = "prometheus.prometheusRule"
	rbacPath           = "prometheus.rbacPrometheus"
)

// isMonitored reports whether the file creates a monitor.
func (t *translator) isMonitored() bool {
	return t.isSourceTrue(podMonitorPath+".enabled") || t.isSourceTrue(serviceMonitorPath+".enabled")
}

// isPartInUse reports whether the part of the Prometheus operator that a value belongs to is
// created.
func (t *translator) isPartInUse(path string) bool {
	for _, part := range []string{podMonitorPath, serviceMonitorPath, rulePath} {
		if strings.HasPrefix(path, part+".") {
			return t.isSourceTrue(part + ".enabled")
		}
	}
	return t.isMonitored()
}

// convertMonitorValue translates a value of the Prometheus operator. One set of values holds for
// all monitors and the alerts of the chart of Gantry.
func convertMonitorValue(t *translator, v convertedValue) {
	switch {
	case !t.isPartInUse(v.path):
		t.record(TranslatedValue{Path: v.path, Outcome: OutcomeNotNeeded, Text: "the file does not enable what uses it"})
		return
	case strings.HasSuffix(v.path, ".enabled"):
		t.convertMonitorSwitch(v.path)
	case v.path == rbacPath:
		t.setValue(v.to[0], v.value)
	default:
		t.setValue(v.to[0], v.value)
		if strings.HasPrefix(v.to[0], "prometheus.rbac.") && !isEqualValue(t.sourceValue(rbacPath), false) {
			t.setValue("prometheus.rbac.create", true)
		}
	}
	t.record(TranslatedValue{Path: v.path, Outcome: OutcomeOurs, To: v.to})
}

// convertMonitorSwitch creates the monitors or the alerts. A PodMonitor of MetalLB reads metrics
// without a token, and the file says nothing about one.
func (t *translator) convertMonitorSwitch(path string) {
	t.setValue("prometheus.enabled", true)
	t.setValue("prometheus.rules.enabled", t.isSourceTrue(rulePath+".enabled"))
	if strings.HasPrefix(path, podMonitorPath) {
		t.setValue("prometheus.podMonitors", true)
		t.setValue("metrics.protocol", "http")
		t.record(TranslatedValue{Path: path, Outcome: OutcomeOurs, To: []string{"metrics.protocol"}, Text: "a PodMonitor cannot send the token of Prometheus: with a Secret in \"prometheus.tokenSecret\", the metrics can stay on HTTPS"})
	}
}

// alertNameByPath are the alerts that MetalLB's chart can change.
var alertNameByPath = map[string]string{
	"staleConfig": "MetalLBStaleConfig", "configNotLoaded": "MetalLBConfigNotLoaded",
	"addressPoolExhausted": "MetalLBAddressPoolExhausted", "bgpSessionDown": "MetalLBBGPSessionDown",
}

// usageAlertNames are the alerts about the use of pools.
var usageAlertNames = []string{"MetalLBAddressPoolUsage75Percent", "MetalLBAddressPoolUsage85Percent", "MetalLBAddressPoolUsage95Percent"}

// severityLabel is the one label that the chart of Gantry sets for each alert.
const severityLabel = "severity"

// convertAlert translates what is set for one alert.
func convertAlert(t *translator, v convertedValue) {
	set, _ := v.value.(map[string]any)
	change := map[string]any{}
	if isEqualValue(set["enabled"], false) {
		change["enabled"] = false
	}
	t.convertAlertLabels(v.path, set["labels"], change)
	t.convertExcludedPools(v.path, set["excludePools"])
	if len(change) > 0 {
		t.setAndRecord(v, v.to[0]+"."+alertNameByPath[strings.TrimPrefix(v.path, rulePath+".")], change)
	}
}

// convertAlertLabels takes the severity, and names the labels that one alert alone cannot have.
func (t *translator) convertAlertLabels(path string, labels any, change map[string]any) {
	all, _ := labels.(map[string]any)
	for name, value := range all {
		if name == severityLabel {
			change[severityLabel] = value
			continue
		}
		t.record(TranslatedValue{Path: path + ".labels." + name, Outcome: OutcomeNone, Text: "one alert alone cannot have labels: \"prometheus.rules.labels\" sets them for all alerts"})
	}
}

// convertExcludedPools excludes pools from the alerts about the use of pools, which have one list.
func (t *translator) convertExcludedPools(path string, expression any) {
	if isEmptyValue(expression) {
		return
	}
	const to = "prometheus.rules.excludePools"
	list, _ := valueAt(t.values, to).([]any)
	if !slices.Contains(list, expression) {
		t.setValue(to, append(list, expression))
	}
	t.record(TranslatedValue{Path: path + ".excludePools", Outcome: OutcomeOurs, To: []string{to}})
}

// convertUsageAlerts translates the list of shares of a pool, of which the chart of Gantry has
// three.
func convertUsageAlerts(t *translator, v convertedValue) {
	set, _ := v.value.(map[string]any)
	shares, hasShares := set["thresholds"].([]any)
	for i, name := range usageAlertNames {
		change := map[string]any{}
		switch {
		case isEqualValue(set["enabled"], false) || hasShares && i >= len(shares):
			change["enabled"] = false
		case hasShares:
			share, _ := shares[i].(map[string]any)
			if !isEqualValue(share["percent"], strings.TrimSuffix(strings.TrimPrefix(name, "MetalLBAddressPoolUsage"), "Percent")) {
				change["threshold"] = share["percent"]
			}
			t.convertAlertLabels(fmt.Sprintf("%s.thresholds[%d]", v.path, i), share["labels"], change)
			if isEqualValue(change[severityLabel], defaultUsageSeverity[i]) {
				delete(change, severityLabel)
			}
		}
		if len(change) > 0 {
			t.setAndRecord(v, v.to[0]+"."+name, change)
		}
	}
	for i := len(usageAlertNames); i < len(shares); i++ {
		t.record(TranslatedValue{Path: fmt.Sprintf("%s.thresholds[%d]", v.path, i), Outcome: OutcomeNone, Text: "there are three alerts about the use of a pool: add others to \"prometheus.rules.extra\""})
	}
	t.convertExcludedPools(v.path, set["excludePools"])
}

// defaultUsageSeverity are the severities of usageAlertNames in MetalLB's chart.
var defaultUsageSeverity = []string{"warning", "warning", "critical"}
