package reconcile

import (
	"log/slog"
	"net/netip"
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
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/members"
	"github.com/gantry-lb/gantry/speaker/status"
)

// TestBlockedGossipPathIsReported reports that UDP to a member is blocked, then everything, then
// nothing: each change is one event about the node, and the condition names what is blocked.
func TestBlockedGossipPathIsReported(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "self"}}).Build()
	recorder := events.NewFakeRecorder(8)
	var faults []members.PathFault
	w := NewStatusWriter(StatusWriterOptions{
		Client: api, UncachedReader: api, Events: recorder, Log: slog.New(slog.DiscardHandler), Self: "self", Namespace: names.DefaultNamespace, Now: time.Now,
		SkippedLinks: func() []facts.SkippedLink { return nil }, GossipPathFaults: func() []members.PathFault { return faults },
	})
	w.missingNodes.updateAndListNodesToMarkDead([]string{"other", "self"}, "self", time.Now())
	for _, tc := range []struct {
		faults           []members.PathFault
		condition, event string
		unreachable      []string
	}{
		{nil, "with every other one", "", nil},
		{[]members.PathFault{{NodeName: "gone", UDPBlocked: true}}, "with every other one", "", nil},
		{[]members.PathFault{{NodeName: "other", UDPBlocked: true}}, "the speakers of other (UDP), although", "other (UDP)", []string{"other"}},
		{[]members.PathFault{{NodeName: "other", UDPBlocked: true, TCPBlocked: true}}, "the speakers of other, although", "other,", []string{"other"}},
		{[]members.PathFault{{NodeName: "other", TCPBlocked: true}}, "the speakers of other (TCP), although", "other (TCP)", []string{"other"}},
		{nil, "with every other one", "works again", nil},
	} {
		faults = tc.faults
		for range 2 { // the second time nothing is new
			w.reportBlockedGossip(t.Context())
		}
		s := status.BuildSpeakerStatus(w.collectStatusInputs(agent.Status{}))
		if c := meta.FindStatusCondition(s.Conditions, names.ConditionGossipComplete); !strings.Contains(c.Message, tc.condition) || !slices.Equal(s.Unreachable, tc.unreachable) {
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

// TestBlockedProtocolOfSilentMemberIsNamed has a member whose datagrams do not arrive, so that the
// election has lost it.
func TestBlockedProtocolOfSilentMemberIsNamed(t *testing.T) {
	w := NewStatusWriter(StatusWriterOptions{
		Self: "self", Now: time.Now, Log: slog.New(slog.DiscardHandler),
		GossipPathFaults: func() []members.PathFault { return []members.PathFault{{NodeName: "other", UDPBlocked: true}} },
	})
	w.missingNodes.updateAndListNodesToMarkDead([]string{"self"}, "self", time.Now())
	w.missingNodes.missingNodeByName = map[string]missingNode{"other": {isUnreachable: true}}
	g := w.collectGossipFaults()
	if !slices.Equal(g.UnreachableNodes, []string{"other"}) || g.BlockedProtocolByNode["other"] != "UDP" {
		t.Errorf("%v are unreachable, by these protocols alone: %v, want other by UDP", g.UnreachableNodes, g.BlockedProtocolByNode)
	}
}

// TestOtherGossipKeyIsReported has a speaker that runs, is no member, and sends messages with
// another key. Both the condition and the event name its node and the Secret.
func TestOtherGossipKeyIsReported(t *testing.T) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	now := metav1.Now()
	other := &v1alpha1.SpeakerStatus{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "other"}, Status: v1alpha1.SpeakerStatusStatus{
		LastSeen: &now, Conditions: []metav1.Condition{{Type: names.ConditionSpeakerReady, Status: metav1.ConditionTrue, Reason: string(names.ReasonSpeakerRuns)}},
	}}
	address := netip.MustParseAddr("192.0.2.12")
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address.String()}}}}
	api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "self"}}, node, other).Build()
	recorder := events.NewFakeRecorder(8)
	sources := []netip.Addr{address}
	later := time.Now()
	w := NewStatusWriter(StatusWriterOptions{
		Client: api, UncachedReader: api, Events: recorder, Log: slog.New(slog.DiscardHandler), Self: "self", Namespace: names.DefaultNamespace, Now: func() time.Time { return later },
		SkippedLinks: func() []facts.SkippedLink { return nil }, GossipAddressesWithOtherKey: func() []netip.Addr { return sources }, GossipKeyFile: "/etc/key",
	})
	w.missingNodes.updateAndListNodesToMarkDead([]string{"self"}, "self", later)
	w.missingNodes.observeNodes([]string{"other"}, later)
	for _, c := range []struct {
		sources []netip.Addr
		reason  names.Reason
		text    string
	}{
		{sources, names.ReasonGossipKeyDiffers, `the speakers of other have another gossip key than this one: let all speakers use the entry "key" of the Secret metallb-system/gantry-gossip; this one has its key from the file /etc/key (--gossip-key-file)`},
		{nil, names.ReasonGossipBlocked, "gossip is blocked with the speakers of other, although they run"},
	} {
		sources, later = c.sources, later.Add(vanishedSpeakerCheckDelay)
		if !w.checkMissingNodes(t.Context()) {
			t.Error("the result did not change")
		}
		s := status.BuildSpeakerStatus(w.collectStatusInputs(agent.Status{}))
		g := meta.FindStatusCondition(s.Conditions, names.ConditionGossipComplete)
		if g.Status != metav1.ConditionFalse || g.Reason != string(c.reason) || !strings.Contains(g.Message, c.text) || !slices.Equal(s.Unreachable, []string{"other"}) {
			t.Errorf("the condition is %+v, want %s: %s", g, c.reason, c.text)
		}
		if got := <-recorder.Events; !strings.Contains(got, c.text) {
			t.Errorf("the event is %q, want %q", got, c.text)
		}
	}
}
