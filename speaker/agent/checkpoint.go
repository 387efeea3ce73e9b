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

// Checkpoint is what an agent goes on from when its process is started again while the API server is away. It is immutable.
type Checkpoint struct {
	// Bids are those of the last Plan, sorted by address. Their links are of the same boot of the node.
	Bids []intent.Bid
	// Claims are all that were known, sorted by address.
	Claims []elect.Claim
	// MemberAddresses are where the other speakers were, sorted.
	MemberAddresses []netip.Addr
	// BGP is what routers were told.
	BGP bgp.Desired
}

const (
	// checkpointInterval bounds how often the Memory is made, which costs time in proportion to the number of addresses.
	checkpointInterval = time.Second
	// planTimeout is how long a Plan is waited for before the Memory takes its place.
	planTimeout = time.Second
)

// checkpointState is what the agent knows of its Memory.
type checkpointState struct {
	// restoredBids are the bids of an earlier life, as long as there is no Plan of this one.
	restoredBids        []intent.Bid
	restoredBidsChanged bool      // the election has to hear of them, or of other links
	startedAt           time.Time // when the agent began
	hasPlan             bool      // there is a Plan
	contentChanged      bool      // the bids or the peers are not those that were remembered last
	savedDigest         uint64    // of the claims that were remembered last
	savedAt             time.Time // when that was
}

// restoreCheckpoint begins with what an earlier life knew.
func (a *Agent) restoreCheckpoint(m *Checkpoint) {
	if m == nil {
		return
	}
	a.checkpoint.restoredBids, a.checkpoint.restoredBidsChanged, a.checkpoint.startedAt = m.Bids, true, a.options.Now()
	a.stepElection([]elect.Input{elect.ClaimsRestored{Claims: m.Claims}})
}

// appendRestoredBids adds the bids of the earlier life, on the links that are there now, when no Plan comes. A Plan takes their place.
func (a *Agent) appendRestoredBids(in []elect.Input) []elect.Input {
	m := &a.checkpoint
	if m.hasPlan || m.restoredBids == nil || !m.restoredBidsChanged || a.options.Now().Sub(m.startedAt) < planTimeout {
		return in
	}
	m.restoredBidsChanged = false
	out := elect.BidsChanged{Bids: slices.Clone(m.restoredBids)}
	usable := a.portStates.usableLinks(a.links).links
	for i := range out.Bids {
		b := &out.Bids[i]
		b.Links = slices.DeleteFunc(slices.Clone(b.Links), func(index int) bool { return !canCarry(usable, index, b.Address) })
	}
	return append(in, out)
}

func canCarry(links facts.LinkSet, index int, a netip.Addr) bool {
	l, ok := links.FindByIndex(index)
	return ok && l.CanCarry(a)
}

// replaceRestoredBids has the first Plan take the place of what was recalled: what it does not name is gone.
func (a *Agent) replaceRestoredBids(p planUpdate) {
	if !a.checkpoint.hasPlan {
		for _, b := range a.checkpoint.restoredBids {
			if _, still := p.changedBids[b.Address]; !still {
				p.goneAddresses[b.Address] = struct{}{}
			}
		}
	}
	a.checkpoint.hasPlan, a.checkpoint.contentChanged, a.checkpoint.restoredBids = true, true, nil
}

// restoreRoutesTimer is ready to read when routers are to be told what an earlier life told them; nil when it told them nothing.
func (a *Agent) restoreRoutesTimer() <-chan time.Time {
	if m := a.options.RestoreFrom; m == nil || len(m.BGP.Peers) == 0 {
		return nil
	}
	return time.After(planTimeout)
}

// saveCheckpoint hands the Memory over when it changed.
func (a *Agent) saveCheckpoint(now time.Time) {
	m := &a.checkpoint
	digest := a.machine.ClaimsDigest()
	if a.options.SaveCheckpoint == nil || !m.hasPlan || now.Sub(m.savedAt) < checkpointInterval || (!m.contentChanged && digest == m.savedDigest) {
		return
	}
	m.savedAt, m.contentChanged, m.savedDigest = now, false, digest
	out := Checkpoint{Bids: a.plan.Bids.Slice(), Claims: a.machine.Claims(), BGP: desiredBGP(a.plan)}
	for name, address := range a.addressesByMember {
		if name != a.options.Self && address.IsValid() {
			out.MemberAddresses = append(out.MemberAddresses, address)
		}
	}
	slices.SortFunc(out.MemberAddresses, netip.Addr.Compare)
	a.options.SaveCheckpoint(out)
}
