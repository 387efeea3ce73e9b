// Package chartvalues translates a values file of MetalLB's chart into one of the chart of Gantry.
// What becomes of each value is in metallb-values.yaml, which the chart reads too. It knows no
// cluster.
package chartvalues

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

//go:embed metallb-values.yaml
var tableText []byte

// tableEntry is what becomes of one value of MetalLB's chart, or of a group of values.
type tableEntry struct {
	// IsAccepted means that the chart of Gantry takes the value.
	IsAccepted bool `json:"accepted"`
	// To are the values that mean the same; empty for the same name.
	To []string `json:"to"`
	// ConverterName names the function that translates the value; empty for a copy.
	ConverterName string `json:"by"`
	NotNeeded     string `json:"notNeeded"`
	None          string `json:"none"`
	// Defaults are what the charts of MetalLB set.
	Defaults []any `json:"default"`
	// Values are the values below this one.
	Values map[string]tableEntry `json:"values"`
	// Refusal is what the chart of Gantry says about the value, and about all below it.
	Refusal string `json:"refuse"`
}

// readTable returns the entries by the whole path of the value. A group of values has an entry only
// if it says what becomes of a value below it that has none.
func readTable() (map[string]tableEntry, error) {
	var grouped map[string]tableEntry
	if err := yaml.UnmarshalStrict(tableText, &grouped); err != nil {
		return nil, fmt.Errorf("reading metallb-values.yaml: %w", err)
	}
	out := map[string]tableEntry{}
	for path, e := range grouped {
		if e.Values == nil {
			out[path] = e
		}
		for name, below := range e.Values {
			out[path+"."+name] = below
		}
	}
	return out, nil
}

// hasEntryBelow reports whether the table has a value below the path.
func hasEntryBelow(table map[string]tableEntry, path string) bool {
	for p := range table {
		if strings.HasPrefix(p, path+".") {
			return true
		}
	}
	return false
}

// isDefaultOrEmpty reports whether a value says nothing: it is empty, or what MetalLB's chart sets.
func (e *tableEntry) isDefaultOrEmpty(value any) bool {
	return isEmptyValue(value) || slices.ContainsFunc(e.Defaults, func(d any) bool { return isEqualValue(d, value) })
}

func isEmptyValue(value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

// isEqualValue compares values as they are written: 7946 is "7946".
func isEqualValue(x, y any) bool { return formatValue(x) == formatValue(y) }

// formatValue writes a value as one line of YAML, without quotes around a string.
func formatValue(value any) string {
	text, err := yaml.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	return strings.Trim(strings.TrimSpace(string(text)), `"'`)
}
