package validcondition

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// startConfigurationReader returns a Reader that runs and has read all objects of the API server.
func startConfigurationReader(t *testing.T, c client.Client, scope configuration.ConfigurationScope) *configurationreader.Reader {
	t.Helper()
	r := configurationreader.NewReader(configurationreader.Options{
		ReadObjects: func(ctx context.Context) (snapshot.ConfigurationObjects, error) {
			return configurationreader.ReadAllObjects(ctx, c, scope)
		},
		Log: slog.New(slog.DiscardHandler),
	})
	go func() { _ = r.Start(t.Context()) }()
	readConfigurationNow(t, r)
	return r
}

func readConfigurationNow(t *testing.T, r *configurationreader.Reader) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if _, err := r.ReadNow(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestValidConditionObservesGenerationThatWasRead edits an advertisement. Its condition says
// nothing of the edit until the edit was read.
func TestValidConditionObservesGenerationThatWasRead(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	ad := &v1beta1.L2Advertisement{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "ad", UID: "u", Generation: 1}}
	ad.Spec.IPAddressPools = []string{"missing"}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(ad).WithStatusSubresource(ad, &v1beta1.ConfigurationState{}).Build()
	scope := configuration.ConfigurationScope{Namespace: names.DefaultNamespace}
	w := NewConditionWriter(Options{Client: c, Log: slog.New(slog.DiscardHandler), Scope: scope, ConfigurationReader: startConfigurationReader(t, c, scope)})
	wantCondition := func(reason names.Reason, generation int64) {
		t.Helper()
		if _, err := w.Reconcile(t.Context(), ctrl.Request{}); err != nil {
			t.Fatal(err)
		}
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(ad), ad); err != nil {
			t.Fatal(err)
		}
		if ad.Status.Gantry == nil {
			t.Fatal("the advertisement has no condition")
		}
		got := meta.FindStatusCondition(ad.Status.Gantry.Conditions, names.ConditionValid)
		if got == nil || got.Reason != string(reason) || got.ObservedGeneration != generation {
			t.Errorf("the condition is %v, want %s of generation %d", got, reason, generation)
		}
	}
	wantCondition(names.ReasonUnknownPool, 1)
	ad.Spec.IPAddressPools, ad.Generation = nil, 2
	if err := c.Update(t.Context(), ad); err != nil {
		t.Fatal(err)
	}
	wantCondition(names.ReasonUnknownPool, 1)
	readConfigurationNow(t, w.ConfigurationReader)
	wantCondition(names.ReasonValid, 2)
}
