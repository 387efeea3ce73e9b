package events

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
)

// TestRepeatedWarningIsOneSeries repeats a Warning, also from a restarted controller. Kubernetes
// shows one event with a count. Another text, and the same text about another Service, are events
// of their own.
func TestRepeatedWarningIsOneSeries(t *testing.T) {
	isRefusing := false
	api := fake.NewClientBuilder().WithScheme(scheme.Scheme).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if isRefusing {
				return errors.New("refused")
			}
			return c.Create(ctx, o, opts...)
		},
	}).Build()
	now := time.Unix(1_700_000_000, 0)
	service := func(name string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}}
	}
	record := func(about *corev1.Service, text string) bool {
		r := NewSeriesRecorder(SeriesRecorderOptions{LiveReader: api, Client: api, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }})
		return r.RecordSeriesEvent(t.Context(), about, corev1.EventTypeWarning, names.EventAnnounceFailed, text)
	}
	for range 3 {
		now = now.Add(30 * time.Minute)
		if !record(service("web"), "NoSession: 0 of 2 sessions") {
			t.Error("an event is not taken")
		}
	}
	record(service("web"), "NoSession: 0 of 3 sessions")
	record(service("dns"), "NoSession: 0 of 2 sessions")
	var list eventsv1.EventList
	if err := api.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 3 {
		t.Errorf("there are %d events, want 3", len(list.Items))
	}
	for _, e := range list.Items {
		isRepeated := e.Regarding.Name == "web" && e.Note == "NoSession: 0 of 2 sessions"
		switch {
		case isRepeated && (e.Series == nil || e.Series.Count != 3 || !e.Series.LastObservedTime.Time.Equal(now)):
			t.Errorf("the repeated event has the series %+v, want a count of 3, and the last time", e.Series)
		case !isRepeated && e.Series != nil:
			t.Errorf("the event %q about %s has the series %+v", e.Note, e.Regarding.Name, e.Series)
		}
	}
	isRefusing = true
	if record(service("new"), "NoSession: 0 of 2 sessions") {
		t.Error("a refused event counts as taken: it would not be tried again")
	}
}
