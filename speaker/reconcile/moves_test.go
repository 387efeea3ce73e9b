package reconcile

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/status"
)

// TestMovesCauseNoWriteOfTheirOwn records moves of a node whose earlier speaker has written
// one. A move alone costs no write.
func TestMovesCauseNoWriteOfTheirOwn(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	before := &v1alpha1.SpeakerStatus{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "self"}}
	before.Status.Moves = []v1alpha1.AddressMoveBetweenNodes{{At: metav1.NewTime(now.Add(-time.Hour)), Address: "192.0.2.1", To: "self", Cause: string(names.ReasonUnheld)}}
	writes := 0
	api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(before).WithStatusSubresource(before).WithInterceptorFuncs(interceptor.Funcs{
		SubResourceApply: func(ctx context.Context, c client.Client, sub string, o runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
			writes++
			return c.SubResource(sub).Apply(ctx, o, opts...)
		},
	}).Build()
	w := NewStatusWriter(StatusWriterOptions{Client: api, UncachedReader: api, Log: slog.New(slog.DiscardHandler), Self: "self", Namespace: names.DefaultNamespace, Now: func() time.Time { return now }})
	write := func(wantWrites int, wantMoves string) {
		t.Helper()
		if err := w.writeSpeakerStatus(t.Context(), status.BuildSpeakerStatus(status.StatusInputs{Self: "self", HeldAddressConflicts: &status.Conflicts{}, AcquireConflicts: &status.Conflicts{}})); err != nil {
			t.Fatal(err)
		}
		var o v1alpha1.SpeakerStatus
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: "self"}, &o); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range o.Status.Moves {
			got = append(got, m.Address)
		}
		if writes != wantWrites || strings.Join(got, " ") != wantMoves {
			t.Errorf("after %d writes the moves are %q, want %d: %s", writes, got, wantWrites, wantMoves)
		}
	}
	take := func(address string) {
		w.moves.RecordMove(elect.Event{Kind: elect.EventAddressTaken, Address: netip.MustParseAddr(address), Reason: names.ReasonHolderGone, FormerHolder: "other"}, "self", nil, now)
	}
	take("192.0.2.2")
	write(1, "192.0.2.2 192.0.2.1")
	now = now.Add(time.Second)
	take("192.0.2.3")
	write(1, "192.0.2.2 192.0.2.1")
	now = now.Add(lastSeenInterval)
	write(2, "192.0.2.3 192.0.2.2 192.0.2.1")
}
