package events

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"

	"github.com/gantry-lb/gantry/api/names"
)

// eventSink is an API server for events.
type eventSink struct {
	mu      sync.Mutex // guards created
	created []eventsv1.Event
}

// Create implements events.EventSink.
func (s *eventSink) Create(_ context.Context, e *eventsv1.Event) (*eventsv1.Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.created = append(s.created, *e)
	return e, nil
}

// Update implements events.EventSink.
func (s *eventSink) Update(_ context.Context, e *eventsv1.Event) (*eventsv1.Event, error) {
	return e, nil
}

// Patch implements events.EventSink. It only counts an event once more.
func (s *eventSink) Patch(_ context.Context, e *eventsv1.Event, _ []byte) (*eventsv1.Event, error) {
	return e, nil
}

// notes returns the texts of the events, sorted.
func (s *eventSink) notes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, e := range s.created {
		out = append(out, e.Note)
	}
	slices.Sort(out)
	return out
}

// TestEachTextIsAnEventSoon records events that have all but the text in common, and one of them
// twice. Kubernetes merges equal events, and a merged one keeps its first text for minutes.
func TestEachTextIsAnEventSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &eventSink{}
		broadcaster := events.NewBroadcaster(sink)
		if err := broadcaster.StartRecordingToSinkWithContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		r := NewRecorder(broadcaster.NewRecorder(scheme.Scheme, names.ControllerEventSource))
		about := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u", ResourceVersion: "7"}}
		var want []string
		for i := range 3 {
			want = append(want, fmt.Sprintf("Quarantined: a host answered for 192.0.2.%d", i), fmt.Sprintf("the annotation metallb.io/misspelt-%d is unknown", i))
		}
		for _, text := range append(want, want[0]) {
			r.RecordEvent(about, corev1.EventTypeWarning, names.EventAllocationFailed, text)
		}
		time.Sleep(time.Second)
		slices.Sort(want)
		if got := sink.notes(); !slices.Equal(got, want) {
			t.Errorf("after a second, the events are %q, want %q", got, want)
		}
		broadcaster.Shutdown()
	})
}
