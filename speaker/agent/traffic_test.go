package agent

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/layer2test"
)

// TestTrafficFactsDoNotWaitForLateElection: a Status waits while the election of this node runs
// late, what the packet rules depend on does not.
func TestTrafficFactsDoNotWaitForLateElection(t *testing.T) {
	now := time.Unix(1000, 0)
	statuses, traffic := 0, 0
	a := New(Options{
		NodeName: "node1", ElectionTiming: elect.DefaultTiming(), Layer2Engine: layer2.NewEngine(layer2test.NewLAN().AddHost("node1"), time.Now),
		Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler),
		ObserveStatus: func(Status) { statuses++ }, ObserveTraffic: func(TrafficFacts) { traffic++ },
	})
	a.electionMachine = elect.NewMachine("node1", 1, elect.DefaultTiming(), now)
	a.metrics.electionLatenessNanoseconds.Store(int64(time.Second))
	a.statusLastReportedAt, a.traffic.reportedAt = now, now
	a.statusChanged, a.traffic.hasChanged = true, true
	a.extendSendDeadlineSaveAndReport()
	if statuses != 0 || traffic != 1 {
		t.Errorf("at once came %d Statuses and %d TrafficFacts, want none and one", statuses, traffic)
	}
}

// TestTakenAddressIsInTrafficFactsBeforeItIsAnswered: the packet rules for the addresses of a dead
// node can stand before this node answers for them.
func TestTakenAddressIsInTrafficFactsBeforeItIsAnswered(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		dead := c.requireOneAnsweringSpeaker(serviceIPv4)
		carries := func(f TrafficFacts, a netip.Addr) bool {
			return slices.ContainsFunc(f.CarriedBindings, func(b intent.Binding) bool { return b.Address == a && len(b.LinkIndexes) > 0 })
		}
		dead.disconnectNode()
		time.Sleep(5 * time.Second)
		next := c.requireOneAnsweringSpeaker(serviceIPv4)
		next.mu.Lock()
		defer next.mu.Unlock()
		for _, f := range next.allTraffic {
			if isDead := slices.Contains(f.DeclaredDeadMemberNames, dead.name); isDead {
				if !carries(f.TrafficFacts, serviceIPv4) || f.isAnswered(serviceIPv4) {
					t.Errorf("when the death is known, %s carries %v; %s is answered: %t, want it carried, and answered later",
						next.name, f.CarriedBindings, serviceIPv4, f.isAnswered(serviceIPv4))
				}
				return
			}
		}
		t.Errorf("%s does not know of the death", next.name)
	})
}

// TestLateFormerHoldersAreReported: the packet rules and the checkpoint follow former holders that
// arrive after their claim.
func TestLateFormerHoldersAreReported(t *testing.T) {
	now := time.Unix(1000, 0)
	var traffic []TrafficFacts
	var saved []Checkpoint
	a := New(Options{
		NodeName: "node1", ElectionTiming: elect.DefaultTiming(), Layer2Engine: layer2.NewEngine(layer2test.NewLAN().AddHost("node1"), time.Now),
		Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler),
		ObserveStatus: func(Status) {}, ObserveTraffic: func(f TrafficFacts) { traffic = append(traffic, f) },
		SaveCheckpoint: func(c Checkpoint) { saved = append(saved, c) },
	})
	a.electionMachine = elect.NewMachine("node1", 1, elect.DefaultTiming(), now)
	a.checkpoint.hasFirstPlan = true
	claim := elect.Claim{Address: serviceIPv4, Holder: "node2", Nonce: 2, Epoch: 5}
	for _, formerHolders := range [][]string{nil, {"node3"}, {"node3"}} {
		now = now.Add(2 * minCheckpointSaveInterval)
		claim.FormerHolders = formerHolders
		other := elect.NewMachine("node2", 2, elect.DefaultTiming(), now)
		other.Step(now, elect.ClaimsRestored{Claims: []elect.Claim{claim}})
		a.electionMachine.Step(now, elect.RemoteStateReceived{EncodedClaims: other.EncodeAllClaims()})
		a.extendSendDeadlineSaveAndReport()
	}
	if len(traffic) != 2 || !slices.Equal(traffic[1].Holders[0].FormerHolders, claim.FormerHolders) {
		t.Errorf("the TrafficFacts are %+v, want two, the last one with the former holder", traffic)
	}
	if len(saved) != 2 || !slices.Equal(saved[1].Claims[0].FormerHolders, claim.FormerHolders) {
		t.Errorf("the checkpoints are %+v, want two, the last one with the former holder", saved)
	}
}

// TestVanishedMembersAreInTrafficFacts: a member that the gossip removes without a word counts as
// dead for the packet rules.
func TestVanishedMembersAreInTrafficFacts(t *testing.T) {
	now := time.Unix(1000, 0)
	var last TrafficFacts
	a := New(Options{
		NodeName: "node1", ElectionTiming: elect.DefaultTiming(), Layer2Engine: layer2.NewEngine(layer2test.NewLAN().AddHost("node1"), time.Now),
		Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler),
		ObserveStatus: func(Status) {}, ObserveTraffic: func(f TrafficFacts) { last = f },
	})
	a.electionMachine = elect.NewMachine("node1", 1, elect.DefaultTiming(), now)
	a.updateMembers(facts.MemberSet{Members: []facts.Member{{Name: "node1"}}, VanishedAtByMember: map[string]time.Time{"node2": now}})
	a.extendSendDeadlineSaveAndReport()
	if _, vanished := last.VanishedAtByMember["node2"]; !vanished || !slices.Equal(last.MemberNames, []string{"node1"}) {
		t.Errorf("the members are %v, vanished are %v, want node1, and node2 vanished", last.MemberNames, last.VanishedAtByMember)
	}
}
