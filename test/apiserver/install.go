package apiserver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/api/names"
)

// generatedCRDsDirectory returns the directory of the generated CRDs, which it finds from the path
// of this source file.
func generatedCRDsDirectory() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "config", "crd", "bases")
}

// installCRDsNamespaceAndPolicies creates the CRDs, the namespace and the policies, and waits until
// the API server serves the kinds. The API server rejects a CRD with a validation rule that is too
// expensive, so every test that starts one proves that the CRDs can be installed.
func installCRDsNamespaceAndPolicies(ctx context.Context, t testing.TB, config *rest.Config, programs []*serverProgram) {
	t.Helper()
	ctrl.SetLogger(logr.Discard()) // a test that needs a log passes one to the parts that it starts
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatalf("creating a client: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(generatedCRDsDirectory(), "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no CRD in %s: %v; run `make generate`", generatedCRDsDirectory(), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		crd := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(text, &crd.Object); err != nil {
			t.Fatalf("reading %s: %v", file, err)
		}
		if err := c.Create(ctx, crd); err != nil {
			t.Fatalf("installing %s: %v", filepath.Base(file), err)
		}
		retryUntilNoErrorOrProgramEnds(ctx, t, programs, func() error {
			if err := c.Get(ctx, client.ObjectKeyFromObject(crd), crd); err != nil {
				return err
			}
			return checkCRDEstablished(crd)
		})
	}
	ns := &corev1.Namespace{}
	ns.Name = names.DefaultNamespace
	if err := c.Create(ctx, ns); err != nil {
		t.Fatalf("creating the namespace: %v", err)
	}
	for _, file := range []string{"policy/policy.yaml", "policy/controller.yaml", "policy/speakers.yaml"} {
		createObjectsOfConfigFile(ctx, t, c, file)
	}
}

// CreateObjectsOfConfigFile creates the objects of a file in the directory config. Those that are
// there already stay as they are.
func CreateObjectsOfConfigFile(t testing.TB, admin *rest.Config, file string) {
	t.Helper()
	c, err := client.New(admin, client.Options{})
	if err != nil {
		t.Fatalf("creating a client: %v", err)
	}
	createObjectsOfConfigFile(t.Context(), t, c, file)
}

// createObjectsOfConfigFile creates the objects of a file in the directory config. Those that are
// there already stay as they are.
func createObjectsOfConfigFile(ctx context.Context, t testing.TB, c client.Client, file string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(generatedCRDsDirectory(), "..", "..", file))
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range strings.Split(string(text), "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatalf("reading %s: %v", file, err)
		}
		if err := c.Create(ctx, o); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatalf("installing %s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
}

// checkCRDEstablished returns nil once the API server serves the kind.
func checkCRDEstablished(crd *unstructured.Unstructured) error {
	conditions, _, err := unstructured.NestedSlice(crd.Object, "status", "conditions")
	if err != nil {
		return err
	}
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
			return nil
		}
	}
	return fmt.Errorf("the API server does not serve %s yet", crd.GetName())
}
