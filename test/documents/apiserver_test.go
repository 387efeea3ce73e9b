package documents

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/test/apiserver"
)

// TestAPIServerAcceptsManifests applies each whole object of the pages to a real API server, as a
// trial that stores nothing. So the rules of the CRDs count too.
func TestAPIServerAcceptsManifests(t *testing.T) {
	c, err := client.New(apiserver.StartUntilTestEnds(t), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, p := range readPages(t) {
		for _, b := range p.codeBlocks() {
			if b.language != "yaml" || !p.isForUsers() {
				continue
			}
			for _, document := range strings.Split(b.text, "\n---\n") {
				o := &unstructured.Unstructured{}
				if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil || o.GetName() == "" {
					continue // a part of an object, or values for the chart
				}
				if o.GroupVersionKind().Group == "security.openshift.io" {
					continue // only OpenShift has it
				}
				count++
				if o.GetNamespace() == "" {
					o.SetNamespace("default")
				}
				if err := c.Create(t.Context(), o, client.DryRunAll); err != nil {
					t.Errorf("%s:%d: %v\n%s", b.page, b.line, err, document)
				}
			}
		}
	}
	if count < 10 {
		t.Errorf("the pages have %d whole objects: this test looks in the wrong place", count)
	}
}
