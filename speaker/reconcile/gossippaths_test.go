package reconcile

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/members"
	"github.com/gantry-lb/gantry/speaker/status"
)

// TestBlockedPathIsReported reports that UDP to a member is blocked, then everything, then nothing:
// each change is one event about the node, and the condition names what is blocked.
func TestBlockedPathIsReported(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "self"}}).Build()
	recorder := events.NewFakeRecorder(8)
	var faults []members.PathFault
	w := NewStatusWriter(StatusWriterOptions{
		Client: api, LiveReader: api, Events: recorder, Log: slog.New(slog.DiscardHandler), Self: "self", Namespace: names.Namespace, Now: time.Now,
		SkippedLinks: func() []facts.SkippedLink { return nil }, GossipPathFaults: func() []members.PathFault { return faults },
	})
	w.missing.observeMembers([]string{"other", "self"}, "self", time.Now())
	for _, tc := range []struct {
		faults           []members.PathFault
		condition, event string
		unreachable      []string
	}{
		{nil, "with every other one", "", nil},
		{[]members.PathFault{{NodeName: "gone", UDP: true}}, "with every other one", "", nil},
		{[]members.PathFault{{NodeName: "other", UDP: true}}, "the speakers of other (UDP), although", "other (UDP)", []string{"other"}},
		{[]members.PathFault{{NodeName: "other", UDP: true, TCP: true}}, "the speakers of other, although", "other,", []string{"other"}},
		{[]members.PathFault{{NodeName: "other", TCP: true}}, "the speakers of other (TCP), although", "other (TCP)", []string{"other"}},
		{nil, "with every other one", "works again", nil},
	} {
		faults = tc.faults
		for range 2 { // the second time nothing is new
			w.reportGossip(t.Context())
		}
		s := status.BuildSpeakerStatus(w.statusInputs(agent.Status{}))
		if c := meta.FindStatusCondition(s.Conditions, names.ConditionGossip); !strings.Contains(c.Message, tc.condition) || !slices.Equal(s.Unreachable, tc.unreachable) {
			t.Errorf("%+v: the condition says %q, and %v are unreachable, want %q and %v", tc.faults, c.Message, s.Unreachable, tc.condition, tc.unreachable)
		}
		var got []string
		for len(recorder.Events) > 0 {
			got = append(got, <-recorder.Events)
		}
		if all := strings.Join(got, "\n"); tc.event == "" && len(got) > 0 || tc.event != "" && (len(got) != 1 || !strings.Contains(all, tc.event)) {
			t.Errorf("%+v: the events are %q, want one with %q", tc.faults, got, tc.event)
		}
	}
}

// TestProtocolOfASilentMemberIsNamed has a member whose datagrams do not arrive, so that the
// election has lost it.
func TestProtocolOfASilentMemberIsNamed(t *testing.T) {
	w := NewStatusWriter(StatusWriterOptions{
		Self: "self", Now: time.Now, Log: slog.New(slog.DiscardHandler),
		GossipPathFaults: func() []members.PathFault { return []members.PathFault{{NodeName: "other", UDP: true}} },
	})
	w.missing.observeMembers([]string{"self"}, "self", time.Now())
	w.missing.checkByName = map[string]missingNode{"other": {isUnreachable: true}}
	nodes, protocolByNode := w.unreachableNodes()
	if !slices.Equal(nodes, []string{"other"}) || protocolByNode["other"] != "UDP" {
		t.Errorf("%v are unreachable, by these protocols alone: %v, want other by UDP", nodes, protocolByNode)
	}
}
