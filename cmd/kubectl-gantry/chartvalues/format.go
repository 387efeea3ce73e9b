package chartvalues

import (
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// FormatAsValuesFile writes a translation as a values file for the chart of Gantry. What became of
// the values of MetalLB's chart is in comments before it.
func FormatAsValuesFile(t *Translation) (string, error) {
	var b strings.Builder
	b.WriteString("# Values for the chart of Gantry, translated from a values file of MetalLB's chart.\n")
	b.WriteString("# Set image.repository too: it is the name of Gantry's image in your registry.\n")
	for _, part := range []struct {
		outcome Outcome
		title   string
	}{
		{OutcomeNone, "No value of Gantry's chart means the same"},
		{OutcomeNotNeeded, "Not needed"},
		{OutcomeOurs, "Translated"},
	} {
		values := t.ValuesWithOutcome(part.outcome)
		if len(values) == 0 {
			continue
		}
		fmt.Fprintf(&b, "#\n# %s:\n", part.title)
		for _, v := range values {
			fmt.Fprintf(&b, "#   %s\n", v.describe())
		}
	}
	if t.DefaultCount > 0 {
		fmt.Fprintf(&b, "#\n# Left out, because they are empty or defaults of MetalLB's charts: %d values.\n", t.DefaultCount)
	}
	text, err := yaml.Marshal(t.Values)
	if err != nil {
		return "", fmt.Errorf("encoding the values: %w", err)
	}
	b.Write(text)
	return b.String(), nil
}

// describe says on one line what became of the value.
func (v *TranslatedValue) describe() string {
	text := strings.ReplaceAll(v.Text, "\n", " ")
	switch {
	case len(v.To) == 1 && v.To[0] == v.Path:
		return v.Path
	case len(v.To) > 0 && text != "":
		return v.Path + " -> " + strings.Join(v.To, ", ") + ": " + text
	case len(v.To) > 0:
		return v.Path + " -> " + strings.Join(v.To, ", ")
	}
	return v.Path + ": " + text
}
