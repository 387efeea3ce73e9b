package announcedcondition

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// TestFlappingSessionAndEditsCauseFewWrites has many Services that are announced over two sessions.
// For a minute, one session ends and returns again and again, and a person or a program edits an
// advertisement and every Service once a second. A text may be written now and then, and nothing
// else.
func TestFlappingSessionAndEditsCauseFewWrites(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.setSessionWithTor("node1", names.Explanation{})
	h.setSessionWithTor("node2", names.Explanation{})
	var services []string
	for i := range 20 {
		services = append(services, fmt.Sprint("web", i))
		h.createService(services[i])
	}
	lookAtAll := func() {
		t.Helper()
		for _, name := range services {
			if _, err := h.writer.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKey{Namespace: "default", Name: name}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	edit := func(o client.Object, second int) {
		t.Helper()
		if err := h.api.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			t.Fatal(err)
		}
		o.SetAnnotations(map[string]string{"example.com/edited": fmt.Sprint(second)})
		if err := h.api.Update(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	lookAtAll()
	h.now = h.now.Add(time.Minute)
	lookAtAll()
	h.serviceWrites, h.sentEvents = 0, nil
	const seconds = 60
	for second := range seconds {
		fault := names.Explanation{}
		if second%2 == 0 {
			fault = names.NewExplanation(names.ReasonConnectionLost, "it is gone")
		}
		h.setSessionWithTor("node2", fault)
		advertisement := &v1beta1.BGPAdvertisement{}
		advertisement.Namespace, advertisement.Name = names.DefaultNamespace, "first"
		edit(advertisement, second+1)
		for _, name := range services {
			s := &corev1.Service{}
			s.Namespace, s.Name = "default", name
			edit(s, second+1)
		}
		if _, err := h.configurationReader.ReadNow(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.now = h.now.Add(time.Second)
		lookAtAll()
	}
	if limit := seconds * int(time.Second/minOverallReminderInterval); h.serviceWrites > limit {
		t.Errorf("%d writes of %d Services, want at most %d", h.serviceWrites, len(services), limit)
	}
	if len(h.sentEvents) > 0 {
		t.Errorf("%d events, want none: the Services are announced all the time; the first is %q", len(h.sentEvents), h.sentEvents[0])
	}
}
