package assign

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/test/apiserver"
)

// TestWorkerWritesOnRealAPIServer writes a Service's address and removes it, based on what the
// cache stores of the Service. Everything that is not ours stays, and a write based on an old state
// is refused.
func TestWorkerWritesOnRealAPIServer(t *testing.T) {
	config := apiserver.StartUntilTestEnds(t)
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	direct, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: names.DefaultNamespace}}
	if err := direct.Create(ctx, namespace); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	api := &ClientBackedAPI{CachedClient: direct, LiveReader: direct, Namespace: names.DefaultNamespace}
	t.Run("a Service", func(t *testing.T) { testStatusWriteAndRemovalKeepForeignContent(ctx, t, direct, api) })
	t.Run("the AddressLedger", func(t *testing.T) { testLedgerCreationAndSwapConflicts(ctx, t, direct, api) })
	t.Run("another resourceVersion", func(t *testing.T) { testBumpedResourceVersion(ctx, t, direct, api) })
	t.Run("two controllers at once", func(t *testing.T) { testTwoLeadersAssignNoAddressTwice(ctx, t, config, direct) })
}

func testStatusWriteAndRemovalKeepForeignContent(ctx context.Context, t *testing.T, direct client.Client, api *ClientBackedAPI) {
	o := newLoadBalancer("a")
	o.Spec.ClusterIPs = nil
	o.Labels = map[string]string{"tier": "front"}
	o.Spec.Selector = map[string]string{"app": "a"}
	o.Annotations = map[string]string{"example.com/theirs": "kept", corev1.LastAppliedConfigAnnotation: "{}"}
	if err := direct.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	o.Status.Conditions = []metav1.Condition{{Type: "example.com/Theirs", Status: metav1.ConditionTrue, Reason: "R", LastTransitionTime: metav1.Now().Rfc3339Copy()}}
	if err := direct.Status().Update(ctx, o); err != nil {
		t.Fatal(err)
	}
	live := func() *corev1.Service {
		s, err := api.ReadLiveService(ctx, serviceKey("a"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	cached := func() *corev1.Service {
		s, _ := CompactService(live().DeepCopy())
		return s.(*corev1.Service)
	}
	first, before := live(), cached()
	given := withDecidedStatus(before, allocate.Decision{Addresses: parseAddresses("192.0.2.1"), Explanation: names.NewExplanation(names.ReasonAssigned, "assigned")}, "p")
	written, err := api.PatchStatusAndAnnotations(ctx, before, given)
	if err != nil {
		t.Fatal(err)
	}
	if a := firstAddress(written); a.String() != "192.0.2.1" || written.Annotations[names.AnnotationAllocatedFromPool] != "p" || addressAssignedConditionReason(written) != names.ReasonAssigned {
		t.Errorf("it was written as %v %v", written.Annotations, written.Status)
	}
	if _, err := api.PatchStatusAndAnnotations(ctx, before, given); !apierrors.IsConflict(err) {
		t.Errorf("a write on an old state ends with %v, want a conflict", err)
	}
	now := cached()
	if _, err := api.PatchStatusAndAnnotations(ctx, now, withoutOurStatus(now, parseAddresses("192.0.2.1"))); err != nil {
		t.Fatal(err)
	}
	last := live()
	first.ResourceVersion, last.ResourceVersion, first.ManagedFields, last.ManagedFields = "", "", nil, nil
	if d := cmp.Diff(first, last); d != "" {
		t.Errorf("after its address was taken back the Service is not what it was (-before +after):\n%s", d)
	}
}

// testBumpedResourceVersion gives a new Service another resourceVersion twice, as for an incomplete
// AddressLedger. Nothing else changes but the condition.
func testBumpedResourceVersion(ctx context.Context, t *testing.T, direct client.Client, api *ClientBackedAPI) {
	o := newLoadBalancer("bumped")
	o.Spec.ClusterIPs = nil
	if err := direct.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	c := unrecordedWritesInvalidator{
		ServiceWorkerOptions: ServiceWorkerOptions{API: api, Now: time.Now, Log: slog.New(slog.DiscardHandler)},
		isServiceServed:      func(v *view.Service) bool { return v.IsLoadBalancer }, recordOutcome: func(writeOutcome) {}, invalidatedServices: map[view.ObjectKey]struct{}{},
	}
	for range 2 {
		var now corev1.Service
		if err := direct.Get(ctx, client.ObjectKeyFromObject(o), &now); err != nil {
			t.Fatal(err)
		}
		read := corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: now.Namespace, Name: now.Name, ResourceVersion: now.ResourceVersion}, Status: *now.Status.DeepCopy()}
		if failed, err := c.bumpResourceVersions(ctx, []*corev1.Service{&read}); failed > 0 {
			t.Fatal(err)
		}
		var after corev1.Service
		if err := direct.Get(ctx, client.ObjectKeyFromObject(o), &after); err != nil {
			t.Fatal(err)
		}
		if after.ResourceVersion == now.ResourceVersion || len(after.Status.Conditions) != 1 {
			t.Errorf("the Service has the resourceVersion %s as before, or other conditions: %v", after.ResourceVersion, after.Status.Conditions)
		}
		if d := cmp.Diff(now.Spec, after.Spec); d != "" {
			t.Errorf("its spec changed (-before +after):\n%s", d)
		}
	}
	if err := direct.Delete(ctx, o); err != nil {
		t.Fatal(err)
	}
}

func testLedgerCreationAndSwapConflicts(ctx context.Context, t *testing.T, direct client.Client, api *ClientBackedAPI) {
	l, err := api.ReadOrCreateLedger(ctx, names.PendingAssignmentsLedger)
	if err != nil {
		t.Fatal(err)
	}
	again, err := api.ReadOrCreateLedger(ctx, names.PendingAssignmentsLedger)
	if err != nil || again.UID != l.UID {
		t.Fatalf("a second controller made another one: %v", err)
	}
	if !l.Spec.Incomplete {
		t.Error("a new AddressLedger is complete, although it may replace one that was deleted")
	}
	l.Spec.Writer, l.Spec.Incomplete = "one", false
	if l, err = api.CompareAndSwapLedger(ctx, l); err != nil {
		t.Fatal(err)
	}
	for _, writer := range []string{"one again", "and again"} { // the first swap removes them
		l.Spec.Writer = writer
		if l, err = api.CompareAndSwapLedger(ctx, l); err != nil || len(l.ManagedFields) > 0 || l.Spec.Writer != writer {
			t.Fatalf("the AddressLedger is %+v with the managed fields %v: %v", l.Spec, l.ManagedFields, err)
		}
	}
	again.Spec.Writer = "two"
	if _, err := api.CompareAndSwapLedger(ctx, again); !apierrors.IsConflict(err) {
		t.Errorf("a swap on an old state ends with %v, want a conflict", err)
	}
	if err := direct.Delete(ctx, l); err != nil {
		t.Fatal(err)
	}
	if _, err := api.CompareAndSwapLedger(ctx, l); !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		t.Errorf("a swap of what was deleted ends with %v, want not found or a conflict", err)
	}
	if l, err = api.ReadOrCreateLedger(ctx, names.PendingAssignmentsLedger); err != nil || l.Spec.Writer != "" || !l.Spec.Incomplete {
		t.Errorf("the deleted object is created again as %+v: %v", l, err)
	}
}
