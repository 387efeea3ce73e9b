package policy

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// chartSchema is what these tests read of a JSON schema.
type chartSchema struct {
	Reference            string                 `json:"$ref"`
	Properties           map[string]chartSchema `json:"properties"`
	AdditionalProperties any                    `json:"additionalProperties"`
}

func readRepositoryFile(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{repositoryRoot}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// readDocumentedChartValues returns the text about each value of the chart in
// docs/chart-values.md.
func readDocumentedChartValues(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Za-z0-9.]+)` \\| `.*` \\| (.*) \\|$").FindAllStringSubmatch(readRepositoryFile(t, "docs", "chart-values.md"), -1) {
		out[m[1]] = m[2]
	}
	if len(out) < 20 {
		t.Fatalf("docs/chart-values.md has %d values: this test looks in the wrong place", len(out))
	}
	return out
}

func readChartSchema(t *testing.T) chartSchema {
	t.Helper()
	var schema chartSchema
	if err := json.Unmarshal([]byte(readRepositoryFile(t, "charts", "gantry", "values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	return schema
}

func TestChartValuesTableIsCurrent(t *testing.T) {
	doc := filepath.Join(repositoryRoot, "docs", "chart-values.md")
	want, err := exec.Command("sh", filepath.Join(repositoryRoot, "tools", "chartvalues.sh"), doc, filepath.Join(repositoryRoot, "charts", "gantry", "values.yaml")).Output()
	if err != nil {
		t.Fatal(err)
	}
	if readRepositoryFile(t, "docs", "chart-values.md") != string(want) {
		t.Error("docs/chart-values.md does not have the comments of charts/gantry/values.yaml: run `make generate`")
	}
	for path, text := range readDocumentedChartValues(t) {
		if text == "" {
			t.Errorf("charts/gantry/values.yaml says nothing about %s: write a comment that begins with \"# -- \"", path)
		}
	}
}

// TestChartSchemaHasExactlyDocumentedValues compares the schema, by which Helm refuses unknown
// values, with the documented ones.
func TestChartSchemaHasExactlyDocumentedValues(t *testing.T) {
	documented := readDocumentedChartValues(t)
	inSchema := map[string]bool{}
	var walk func(prefix string, s chartSchema)
	walk = func(prefix string, s chartSchema) {
		if s.AdditionalProperties != false {
			t.Errorf("the schema accepts unknown values in %q: set additionalProperties to false", prefix)
		}
		for name, property := range s.Properties {
			path := strings.TrimPrefix(prefix+"."+name, ".")
			_, isValue := documented[path]
			switch {
			case path == "global" || property.Reference == "#/definitions/ofMetalLB":
			case isValue:
				inSchema[path] = true
			case property.Properties != nil:
				walk(path, property)
			default:
				t.Errorf("the schema has the value %s, which charts/gantry/values.yaml lacks", path)
			}
		}
	}
	walk("", readChartSchema(t))
	for path := range documented {
		if !inSchema[path] {
			t.Errorf("values.schema.json lacks %s: Helm refuses it", path)
		}
	}
}

// TestChartSchemaHasRefusedValuesOfMetalLB: the schema has to accept the values of MetalLB's chart
// that the chart itself refuses with better words. What is written there has to exist.
func TestChartSchemaHasRefusedValuesOfMetalLB(t *testing.T) {
	entries := map[string]metalLBValue{}
	if err := yaml.Unmarshal([]byte(readRepositoryFile(t, "charts", "gantry", "files", "metallb-values.yaml")), &entries); err != nil {
		t.Fatal(err)
	}
	documented := readDocumentedChartValues(t)
	var refused []string
	for path, e := range entries {
		if !e.IsAccepted {
			refused = append(refused, path)
		}
		if !e.IsAccepted && documented[path] != "" {
			t.Errorf("%s is refused, although it is a value of the chart", path)
		}
		checkMetalLBValueNamesExistingValues(t, path, e, documented)
	}
	accepted := map[string]bool{}
	definitions := struct {
		Definitions map[string]chartSchema `json:"definitions"`
	}{}
	if err := json.Unmarshal([]byte(readRepositoryFile(t, "charts", "gantry", "values.schema.json")), &definitions); err != nil {
		t.Fatal(err)
	}
	var walk func(prefix string, s chartSchema)
	walk = func(prefix string, s chartSchema) {
		if name, isReference := strings.CutPrefix(s.Reference, "#/definitions/"); isReference && name != "ofMetalLB" {
			s = definitions.Definitions[name]
		} else if isReference {
			accepted[prefix] = true
		}
		for name, property := range s.Properties {
			walk(strings.TrimPrefix(prefix+"."+name, "."), property)
		}
	}
	walk("", readChartSchema(t))
	if got, want := slices.Sorted(maps.Keys(accepted)), slices.Sorted(slices.Values(refused)); !slices.Equal(got, want) {
		t.Errorf("the schema has the values of MetalLB\n%q\nand files/metallb-values.yaml has\n%q", got, want)
	}
}

// metalLBValue is what these tests read of an entry of files/metallb-values.yaml.
type metalLBValue struct {
	IsAccepted bool                    `json:"accepted"`
	To         []string                `json:"to"`
	Refusal    string                  `json:"refuse"`
	NotNeeded  string                  `json:"notNeeded"`
	None       string                  `json:"none"`
	Values     map[string]metalLBValue `json:"values"`
}

// checkMetalLBValueNamesExistingValues checks the values of the chart that an entry names, and
// those of the entries below it.
func checkMetalLBValueNamesExistingValues(t *testing.T, path string, e metalLBValue, documented map[string]string) {
	t.Helper()
	named := e.To
	for _, text := range []string{e.Refusal, e.NotNeeded, e.None} {
		for _, m := range regexp.MustCompile(`"([a-zA-Z]+[.][^"]+|fullnameOverride)"`).FindAllStringSubmatch(text, -1) {
			named = append(named, m[1])
		}
	}
	for _, name := range named {
		if documented[name] == "" {
			t.Errorf("%s names %s, which is not a value of the chart", path, name)
		}
	}
	for name, below := range e.Values {
		checkMetalLBValueNamesExistingValues(t, path+"."+name, below, documented)
	}
}
