package chartvalues

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Outcome says what became of a value of MetalLB's chart.
type Outcome string

// The outcomes.
const (
	// OutcomeOurs means that values of the chart of Gantry mean the same.
	OutcomeOurs Outcome = "Ours"
	// OutcomeNotNeeded means that nothing has to be written.
	OutcomeNotNeeded Outcome = "NotNeeded"
	// OutcomeNone means that no value of the chart of Gantry means the same.
	OutcomeNone Outcome = "None"
)

// TranslatedValue is one value of the file, and what became of it.
type TranslatedValue struct {
	// Path is the name of the value in MetalLB's chart, such as speaker.memberlist.mlBindPort.
	Path    string  `json:"value"`
	Outcome Outcome `json:"outcome"`
	// To are the values of the chart of Gantry that got it.
	To []string `json:"to,omitempty"`
	// Text says why nothing has to be written, or what to do instead.
	Text string `json:"text,omitempty"`
}

// Translation is a values file for the chart of Gantry.
type Translation struct {
	// Values are the new values. image.repository is not among them: nothing in the file says it.
	Values map[string]any `json:"values"`
	// Translated has each value of the file that is no default, sorted by its path.
	Translated []TranslatedValue `json:"translated"`
	// DefaultCount is how many values of the file are empty, or defaults of MetalLB's charts.
	DefaultCount int `json:"defaults"`
}

// ValuesWithOutcome returns the values with an outcome.
func (t *Translation) ValuesWithOutcome(o Outcome) (out []TranslatedValue) {
	for _, v := range t.Translated {
		if v.Outcome == o {
			out = append(out, v)
		}
	}
	return out
}

// subchartName is the key below which the values are if MetalLB's chart is part of another one, and
// ownSubchartName is that for the chart of Gantry.
const subchartName, ownSubchartName = "metallb", "gantry"

// TranslateValues translates a values file of MetalLB's chart, of 0.13 to 0.16. The values may be
// below the key "metallb", as in a chart that contains MetalLB's: the new ones are then below
// "gantry". The error is about YAML that cannot be read.
func TranslateValues(text []byte) (*Translation, error) {
	var file map[string]any
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		return nil, fmt.Errorf("reading the values: %w", err)
	}
	table, err := readTable()
	if err != nil {
		return nil, err
	}
	source, isSubchart := file[subchartName].(map[string]any)
	if !isSubchart {
		source = file
	}
	t := &translator{table: table, source: source, values: map[string]any{}}
	t.translateMap("", source)
	out := &Translation{Values: t.values, Translated: t.translated, DefaultCount: t.defaultCount}
	slices.SortFunc(out.Translated, func(x, y TranslatedValue) int { return strings.Compare(x.Path, y.Path) })
	if isSubchart {
		out.Values = map[string]any{ownSubchartName: t.values}
	}
	return out, nil
}

// translator translates one file.
type translator struct {
	table  map[string]tableEntry
	source map[string]any
	// values are the new ones.
	values       map[string]any
	translated   []TranslatedValue
	defaultCount int
}

// translateMap translates the values below a path.
func (t *translator) translateMap(path string, values map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		t.translateValue(strings.TrimPrefix(path+"."+name, "."), values[name])
	}
}

func (t *translator) translateValue(path string, value any) {
	entry, isKnown := t.table[path]
	below, isMap := value.(map[string]any)
	switch {
	case isKnown && entry.isDefaultOrEmpty(value), !isKnown && isEmptyValue(value):
		t.defaultCount++
	case isKnown:
		t.translateEntry(path, &entry, value)
	case isMap && hasEntryBelow(t.table, path):
		t.translateMap(path, below)
	default:
		t.record(TranslatedValue{Path: path, Outcome: OutcomeNone, Text: "MetalLB's charts 0.13 to 0.16 have no such value"})
	}
}

// translateEntry translates a value that the table has.
func (t *translator) translateEntry(path string, entry *tableEntry, value any) {
	to := entry.To
	if len(to) == 0 {
		to = []string{path}
	}
	switch {
	case entry.None != "":
		t.record(TranslatedValue{Path: path, Outcome: OutcomeNone, Text: entry.None})
	case entry.NotNeeded != "":
		t.record(TranslatedValue{Path: path, Outcome: OutcomeNotNeeded, Text: entry.NotNeeded})
	case entry.ConverterName != "":
		converters[entry.ConverterName](t, convertedValue{path, to, value})
	default:
		for _, p := range to {
			t.setValue(p, value)
		}
		t.record(TranslatedValue{Path: path, Outcome: OutcomeOurs, To: to})
	}
}

func (t *translator) record(v TranslatedValue) { t.translated = append(t.translated, v) }

// setValue sets a new value. Maps are merged: several values of MetalLB's chart may go into one.
func (t *translator) setValue(path string, value any) {
	at := t.values
	names := strings.Split(path, ".")
	for _, name := range names[:len(names)-1] {
		below, isMap := at[name].(map[string]any)
		if !isMap {
			if _, isRemoved := at[name]; isRemoved {
				return // null removes the whole group
			}
			below = map[string]any{}
			at[name] = below
		}
		at = below
	}
	last := names[len(names)-1]
	was, wasMap := at[last].(map[string]any)
	if now, isMap := value.(map[string]any); isMap && wasMap {
		maps.Copy(was, now)
		return
	}
	if now, isMap := value.(map[string]any); isMap {
		value = maps.Clone(now)
	}
	at[last] = value
}

// valueAt returns the value at a path; nil if it is not set.
func valueAt(values map[string]any, path string) any {
	var value any = values
	for _, name := range strings.Split(path, ".") {
		m, isMap := value.(map[string]any)
		if !isMap {
			return nil
		}
		value = m[name]
	}
	return value
}

// sourceValue returns a value of the file; nil if it is not set.
func (t *translator) sourceValue(path string) any { return valueAt(t.source, path) }

// isSourceTrue reports whether a switch of the file is on.
func (t *translator) isSourceTrue(path string) bool { return isEqualValue(t.sourceValue(path), true) }
