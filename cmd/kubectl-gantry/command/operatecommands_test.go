package command

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestDrainOfMistypedNamespaceChangesNothing has Gantry in namespace metallb-system, and the user
// names another one.
func TestDrainOfMistypedNamespaceChangesNothing(t *testing.T) {
	const speakers = "/apis/gantry.dev/v1alpha1/speakerstatuses"
	answers := map[string]string{
		"/api/v1/nodes/node1": `{"kind":"Node","apiVersion":"v1","metadata":{"name":"node1","resourceVersion":"1"}}`,
		speakers:              `{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{},"items":[{"metadata":{"name":"node1","namespace":"metallb-system"}}]}`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer, isKnown := answers[r.URL.Path]
		_, resource, isNamespaced := strings.Cut(r.URL.Path, "/namespaces/metallb-sytem/")
		switch {
		case r.Method != http.MethodGet && r.URL.Query().Get("dryRun") == "":
			t.Errorf("it sends %s %s", r.Method, r.URL)
		case isKnown:
		case isNamespaced && !strings.Contains(resource, "/"):
			answer = `{"kind":"List","apiVersion":"v1","metadata":{},"items":[]}`
		default:
			w.WriteHeader(http.StatusNotFound)
			answer = `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`
		}
		fmt.Fprint(w, answer)
	}))
	defer server.Close()
	status, out, errOut := runWithoutKubeconfig(t, "--server", server.URL, "--gantry-namespace", "metallb-sytem", "drain", "node1", "--timeout", "1ms")
	if status != 2 || !strings.Contains(out, "draining node1: nothing was changed: Gantry is not in namespace metallb-sytem, but in metallb-system") {
		t.Errorf("it exits with %d and says %s%s", status, out, errOut)
	}
}
