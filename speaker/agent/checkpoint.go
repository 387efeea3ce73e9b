package agent

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Checkpoint is what an agent resumes from when it restarts while the API server is unreachable. It
// is immutable.
type Checkpoint struct {
	// BidsOfLastPlan are those of the last plan, sorted by address. Their link indexes are valid
	// for this boot of the node only.
	BidsOfLastPlan []intent.Bid
	// Claims are all known claims, sorted by address.
	Claims []elect.Claim
	// MemberAddresses are the addresses of the other speakers, sorted.
	MemberAddresses []netip.Addr
	// DesiredBGP is what was announced to routers.
	DesiredBGP bgp.DesiredState
	// ServiceProxyAnswered is set if the service proxy has answered its health check since the node
	// booted.
	ServiceProxyAnswered bool
}

const (
	// minCheckpointSaveInterval bounds how often a Checkpoint is made. The cost is proportional to
	// the number of addresses.
	minCheckpointSaveInterval = time.Second
	// firstPlanBeforeRestoreTimeout is how long a starting agent waits for a plan before it uses
	// the Checkpoint.
	firstPlanBeforeRestoreTimeout = time.Second
)

// checkpointState is the state of restoring and saving.
type checkpointState struct {
	// restoredBids are the bids of the checkpoint, until there is a plan.
	restoredBids []intent.Bid
	// the election does not know them, or not with the current links
	mustPassRestoredBidsToElection bool
	startedAt                      time.Time // when the agent started
	hasFirstPlan                   bool      // there is a plan
	// the bids or the members changed since the last checkpoint
	changedSinceSave   bool
	savedClaimsVersion elect.ClaimsVersion // of the last checkpoint
	savedAt            time.Time           // when the last checkpoint was made
}

// restoreCheckpoint starts with the claims and bids of an earlier run.
func (a *Agent) restoreCheckpoint(c *Checkpoint) {
	if c == nil {
		return
	}
	a.checkpoint.restoredBids, a.checkpoint.mustPassRestoredBidsToElection = c.BidsOfLastPlan, true
	a.checkpoint.startedAt = a.options.Now()
	a.stepElection([]elect.Input{elect.ClaimsRestored{Claims: c.Claims}})
}

// appendRestoredBidsUntilFirstPlan adds the restored bids, with the current links, when there is no
// plan yet. The first plan replaces them.
func (a *Agent) appendRestoredBidsUntilFirstPlan(in []elect.Input) []elect.Input {
	c := &a.checkpoint
	if c.hasFirstPlan || c.restoredBids == nil || !c.mustPassRestoredBidsToElection ||
		a.options.Now().Sub(c.startedAt) < firstPlanBeforeRestoreTimeout {
		return in
	}
	c.mustPassRestoredBidsToElection = false
	out := elect.BidsChanged{Bids: slices.Clone(c.restoredBids)}
	usable := a.portFaults.toPlannerLinks(a.ownUsableLinks).links
	for i := range out.Bids {
		b := &out.Bids[i]
		b.OwnLinkIndexes = slices.DeleteFunc(slices.Clone(b.OwnLinkIndexes), func(index int) bool {
			return !canLinkAnswerForAddress(usable, index, b.Address)
		})
	}
	return append(in, out)
}

func canLinkAnswerForAddress(links facts.LinkSet, index int, a netip.Addr) bool {
	l, ok := links.FindByIndex(index)
	return ok && l.CanSendFamilyOf(a)
}

// dropRestoredBidsNotInPlan ends the use of the restored bids when the first plan comes. If the
// plan has no bid for an address with a restored bid, nobody asks for this address any more.
func (a *Agent) dropRestoredBidsNotInPlan(p planUpdate) {
	if !a.checkpoint.hasFirstPlan {
		for _, b := range a.checkpoint.restoredBids {
			if _, still := p.changedBids[b.Address]; !still {
				p.addressesWithoutBid[b.Address] = struct{}{}
			}
		}
	}
	a.checkpoint.hasFirstPlan, a.checkpoint.changedSinceSave, a.checkpoint.restoredBids = true, true, nil
}

// startRestoredRoutesTimer fires when routers have to get the routes of the checkpoint. It is nil
// when there are none.
func (a *Agent) startRestoredRoutesTimer() <-chan time.Time {
	if c := a.options.RestoreFrom; c == nil || len(c.DesiredBGP.Peers) == 0 {
		return nil
	}
	return time.After(firstPlanBeforeRestoreTimeout)
}

// saveCheckpoint saves a Checkpoint if something changed.
func (a *Agent) saveCheckpoint(now time.Time) {
	c := &a.checkpoint
	version := a.electionMachine.ClaimsVersion()
	changed := c.changedSinceSave || version != c.savedClaimsVersion
	if a.options.SaveCheckpoint == nil || !c.hasFirstPlan || !changed || now.Sub(c.savedAt) < minCheckpointSaveInterval {
		return
	}
	c.savedAt, c.changedSinceSave, c.savedClaimsVersion = now, false, version
	out := Checkpoint{BidsOfLastPlan: a.plan.Bids.Slice(), Claims: a.electionMachine.KnownClaims(), DesiredBGP: desiredBGPOfPlan(a.plan), ServiceProxyAnswered: a.fitness.ownFitnessJudge.HasProxyAnswered()}
	for name, address := range a.addressByKnownMember {
		if name != a.options.NodeName && address.IsValid() {
			out.MemberAddresses = append(out.MemberAddresses, address)
		}
	}
	slices.SortFunc(out.MemberAddresses, netip.Addr.Compare)
	a.options.SaveCheckpoint(out)
}
