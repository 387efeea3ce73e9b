package policy

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sigs.k8s.io/yaml"
)

// gantryCategory is the category of every kind: `kubectl get gantry` shows all objects of Gantry.
const gantryCategory = "gantry"

// columnsByPluralName are the columns with which `kubectl get` answers what a person looks for.
var columnsByPluralName = map[string][]string{
	"ipaddresspools":      {"Assigned IPv4", "Available IPv4", "Assigned IPv6", "Available IPv6", "Valid", "Reason"},
	"l2advertisements":    {"IPAddressPools", "Valid", "Reason"},
	"bgpadvertisements":   {"IPAddressPools", "Peers", "Valid", "Reason"},
	"communities":         {"Valid", "Reason"},
	"bfdprofiles":         {"Valid", "Reason"},
	"bgppeers":            {"Address", "ASN", "Sessions", "Valid", "Reason"},
	"servicel2statuses":   {"Allocated Node", "Service Name", "Service Namespace", "Addresses", "Interfaces"},
	"servicebgpstatuses":  {"Node", "Service Name", "Service Namespace", "Peers"},
	"speakerstatuses":     {"Ready", "Links", "Held", "Routes", "Unavailable", "Unreachable", "Last Seen"},
	"bgpsessions":         {"Router", "Node", "State", "Since", "Sent", "BFD", "Reason"},
	"configurationstates": {"Result"},
	"addressledgers":      {"Writer"},
	"addressprobes":       {"Address", "For Service", "Outcome"},
	"addressreservations": {"For Service", "Addresses", "Expires", "Reserved"},
}

// TestKubectlGetAnswersForEveryKind checks what `kubectl get` shows without further options: each
// kind has a short name of its own, belongs to the category, and has its columns.
func TestKubectlGetAnswersForEveryKind(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(repositoryRoot, "config", "crd", "bases", "*.yaml"))
	if err != nil || len(files) != len(columnsByPluralName) {
		t.Fatalf("config/crd/bases has %d CRDs (%v), and this test knows the columns of %d", len(files), err, len(columnsByPluralName))
	}
	pluralByShortName := map[string]string{}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var crd struct {
			Spec struct {
				Names struct {
					Plural     string   `json:"plural"`
					ShortNames []string `json:"shortNames"`
					Categories []string `json:"categories"`
				} `json:"names"`
				Versions []struct {
					Name    string `json:"name"`
					Storage bool   `json:"storage"`
					Columns []struct {
						Name     string `json:"name"`
						Priority int    `json:"priority"`
					} `json:"additionalPrinterColumns"`
				} `json:"versions"`
			} `json:"spec"`
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		plural := crd.Spec.Names.Plural
		if !slices.Contains(crd.Spec.Names.Categories, gantryCategory) {
			t.Errorf("%s is not in the category %s, so that kubectl get %s does not show it", plural, gantryCategory, gantryCategory)
		}
		if len(crd.Spec.Names.ShortNames) == 0 {
			t.Errorf("%s has no short name", plural)
		}
		for _, short := range crd.Spec.Names.ShortNames {
			if other := pluralByShortName[short]; other != "" {
				t.Errorf("%s and %s have the same short name %s", plural, other, short)
			}
			pluralByShortName[short] = plural
		}
		for _, v := range crd.Spec.Versions {
			var shown []string
			for _, c := range v.Columns {
				if c.Priority == 0 {
					shown = append(shown, c.Name)
				}
			}
			for _, want := range columnsByPluralName[plural] {
				// kubectl shows the version that is stored
				if v.Storage && !slices.Contains(shown, want) {
					t.Errorf("kubectl get %s has no column %q, only %q", plural, want, shown)
				}
			}
		}
	}
}
