package status

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
)

// TestGossipFaultsAreExplained checks what a user reads about each fault of the gossip.
func TestGossipFaultsAreExplained(t *testing.T) {
	for name, tc := range map[string]struct {
		state GossipFaults
		want  names.Reason
		texts []string
	}{
		"none":    {want: ""},
		"blocked": {GossipFaults{UnreachableNodes: []string{"b", "c"}}, names.ReasonGossipBlocked, []string{"the speakers of b, c,", "let TCP and UDP"}},
		"UDP alone": {GossipFaults{UnreachableNodes: []string{"b", "c"}, BlockedProtocolByNode: map[string]string{"c": "UDP"}},
			names.ReasonGossipBlocked, []string{"b, c (UDP)"}},
		"with many nodes": {GossipFaults{UnreachableNodes: []string{"b", "c", "d", "e", "f", "g", "h"}}, names.ReasonGossipBlocked, []string{"b, c, d, e, f and 2 more"}},
		"another key": {GossipFaults{UnreachableNodes: []string{"b"}, NodesWithOtherGossipKey: []string{"b"}, KeySecretNamespace: "lb"},
			names.ReasonGossipKeyDiffers, []string{"the speakers of b have another gossip key", "the Secret lb/" + names.GossipSecret}},
		"another key, from a file": {GossipFaults{NodesWithOtherGossipKey: []string{"b"}, KeyFile: "/etc/key"},
			names.ReasonGossipKeyDiffers, []string{"from the file /etc/key (--gossip-key-file)"}},
		"another key, and blocked with a third node": {GossipFaults{UnreachableNodes: []string{"b", "c"}, NodesWithOtherGossipKey: []string{"b"}},
			names.ReasonGossipKeyDiffers, []string{"the speakers of b have", "gossip is blocked with the speakers of c,"}},
	} {
		t.Run(name, func(t *testing.T) {
			why, c := tc.state.Explain(), buildGossipCondition(&tc.state)
			if why.Reason != tc.want {
				t.Fatalf("the reason is %q, want %q: %s", why.Reason, tc.want, why.Text)
			}
			if isFine := c.Status == metav1.ConditionTrue; isFine != (tc.want == "") || c.Message == "" {
				t.Errorf("the condition is %+v", c)
			}
			for _, text := range tc.texts {
				if !strings.Contains(why.Text, text) || !strings.Contains(c.Message, text) {
					t.Errorf("the text is %q, want %q in it", why.Text, text)
				}
			}
		})
	}
}

// TestStatusOfDeadSpeakerHoldsNothing checks what a living speaker writes about a dead one.
func TestStatusOfDeadSpeakerHoldsNothing(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := DeadSpeakerStatus("node2", "node1", now)
	c := meta.FindStatusCondition(s.Conditions, names.ConditionSpeakerReady)
	if s.Held != 0 || s.Routes != 0 || c == nil || c.Status != metav1.ConditionFalse || !c.LastTransitionTime.Time.Equal(now) {
		t.Fatalf("the status is %+v", s)
	}
	for _, node := range []string{"node1", "node2"} {
		if !strings.Contains(c.Message, node) {
			t.Errorf("the message %q does not name %s", c.Message, node)
		}
	}
	if !s.WasFoundDead() {
		t.Error("the speaker does not count as dead")
	}
}

// TestSessionOfADeadSpeakerIsUnknown keeps what was known of the session, and says that the rest is
// not known any more.
func TestSessionOfADeadSpeakerIsUnknown(t *testing.T) {
	now := time.Unix(1_700_000_000, 500)
	last := v1alpha1.BGPSessionStatus{Node: "node2", Peer: "tor", Address: "192.0.2.254", State: "Established", Families: []string{"ipv4-unicast"}, LastError: "cease"}
	for _, kind := range []string{names.ConditionEstablished, names.ConditionRoutesAnnounced, names.ConditionBFDWatchesPath} {
		last.Conditions = append(last.Conditions, metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: "Fine"})
	}
	s := SessionStatusOfDeadSpeaker(last, "node2 is dead", now)
	c := meta.FindStatusCondition(s.Conditions, names.ConditionEstablished)
	if s.State == last.State || c == nil || c.Status != metav1.ConditionUnknown || c.Reason != string(names.ReasonNoSpeaker) || c.Message != "node2 is dead" {
		t.Errorf("the status is %+v", s)
	}
	if s.Node != last.Node || s.Peer != last.Peer || s.Address != last.Address || s.LastError != last.LastError || !s.Since.Time.Equal(now.Truncate(time.Second)) {
		t.Errorf("the status does not say which session it was: %+v", s)
	}
	if len(s.Conditions) != 1 || len(s.Families) != 0 {
		t.Errorf("the status still says something about routes: %+v", s)
	}
	if last.Conditions[0].Status != metav1.ConditionTrue {
		t.Error("the status before was changed")
	}
}

// TestFitConditionExplainsEachUnfitReason has each Reason for which other nodes serve the
// addresses.
func TestFitConditionExplainsEachUnfitReason(t *testing.T) {
	var in StatusInputs
	if c := buildFitCondition(in); c.Status != metav1.ConditionTrue {
		t.Errorf("the condition of a fit node is %+v", c)
	}
	for reason := range textByUnfitReason {
		in.Plan.NodeUnfitReason = reason
		if c := buildFitCondition(in); c.Status != metav1.ConditionFalse || c.Reason != string(reason) || c.Message == "" {
			t.Errorf("%s: the condition is %+v", reason, c)
		}
	}
}
