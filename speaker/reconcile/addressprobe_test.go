package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/speaker/probing"
)

// newAddressProbe returns an AddressProbe; an outcome means that it has its answer.
func newAddressProbe(name, address, outcome string) *v1alpha1.AddressProbe {
	return &v1alpha1.AddressProbe{
		ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: name, UID: types.UID("uid-of-" + name)},
		Spec:       v1alpha1.AddressProbeSpec{Address: address, Pool: "p"},
		Status:     v1alpha1.AddressProbeStatus{Outcome: outcome},
	}
}

// newNodeProbe returns an AddressProbe for the speaker of one node.
func newNodeProbe(name, address, node string) *v1alpha1.AddressProbe {
	p := newAddressProbe(name, address, "")
	p.Spec.Node = node
	return p
}

// TestAddressProbeObjectsAreProbedAndAnswered runs an AddressProbeWriter with an API server in
// memory.
func TestAddressProbeObjectsAreProbedAndAnswered(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	api := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.AddressProbe{}).WithObjects(
		newAddressProbe("free", "192.0.2.1", ""), newAddressProbe("used", "2001:db8::1", ""),
		newAddressProbe("answered", "192.0.2.3", v1alpha1.ProbeOutcomeSilent), newAddressProbe("malformed", "no address", ""),
		newNodeProbe("own", "192.0.2.4", "node1"), newNodeProbe("elsewhere", "192.0.2.5", "node2"),
	).Build()
	informers := &informertest.FakeInformers{Scheme: scheme}
	informer, err := informers.FakeInformerFor(ctx, &v1alpha1.AddressProbe{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	w := NewAddressProbeWriter(AddressProbeWriterOptions{
		Client: api, Cache: informers, Log: slog.New(slog.DiscardHandler), Self: "node1", Namespace: names.DefaultNamespace, Now: func() time.Time { return now },
	})
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	informer.Add(newAddressProbe("free", "192.0.2.1", "")) // it may come before the handler does
	w.probesChangedSignal.Signal()
	questions := <-w.OpenQuestionUpdates()
	var asked []string
	for _, q := range questions {
		asked = append(asked, fmt.Sprintf("%s of pool %s, %v", q.Address, q.Pool, q.IsForThisNode))
	}
	slices.Sort(asked)
	if want := []string{"192.0.2.1 of pool p, false", "192.0.2.4 of pool p, true", "2001:db8::1 of pool p, false"}; !slices.Equal(asked, want) {
		t.Fatalf("the questions are %q, want %q", asked, want)
	}
	for _, q := range questions {
		a := probing.Answer{Question: q}
		if q.Address.Is6() {
			a.AnsweringMACs = "02:00:00:00:00:01"
		}
		a.IsNotSent = q.IsForThisNode
		w.ObserveAnswer(a)
	}
	w.ObserveAnswer(probing.Answer{Question: probing.Question{ID: "gone/uid", Address: netip.MustParseAddr("192.0.2.9")}})
	w.ObserveAnswer(probing.Answer{Question: probing.Question{ID: "answered/another-uid", Address: netip.MustParseAddr("192.0.2.3")}, AnsweringMACs: "02:00:00:00:00:02"})
	for name, want := range map[string]v1alpha1.AddressProbeStatus{
		"free": {Outcome: v1alpha1.ProbeOutcomeSilent, Node: "node1"},
		"used": {Outcome: v1alpha1.ProbeOutcomeAnswered, By: "02:00:00:00:00:01", Node: "node1"},
		"own":  {Outcome: v1alpha1.ProbeOutcomeNotSent, Node: "node1"},
	} {
		p := awaitProbeOutcome(t, api, name)
		if p.Status.Outcome != want.Outcome || p.Status.By != want.By || p.Status.Node != want.Node || p.Status.Time == nil || !p.Status.Time.Time.Equal(now) {
			t.Errorf("AddressProbe %s has the status %+v, want %+v at %s", name, p.Status, want, now)
		}
	}
	if p := awaitProbeOutcome(t, api, "answered"); p.Status.Outcome != v1alpha1.ProbeOutcomeSilent {
		t.Errorf("an answer to an earlier AddressProbe of this name was written: %+v", p.Status)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the writer ended with %v", err)
	}
}

// awaitProbeOutcome waits until an AddressProbe has an answer.
func awaitProbeOutcome(t *testing.T, api client.Client, name string) *v1alpha1.AddressProbe {
	t.Helper()
	for tries := 0; ; tries++ {
		var p v1alpha1.AddressProbe
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: name}, &p); err != nil {
			t.Fatal(err)
		}
		if p.Status.Outcome != "" {
			return &p
		}
		if tries == 3000 {
			t.Fatalf("AddressProbe %s has no answer", name)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
