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

// Memory is what an agent goes on from when its process is started again while the API server is away. It is immutable.
type Memory struct {
	// Bids are those of the last Plan, sorted by address. Their links are of the same boot of the node.
	Bids []intent.Bid
	// Claims are all that were known, sorted by address.
	Claims []elect.Claim
	// Peers are where the other speakers were, sorted.
	Peers []netip.Addr
	// BGP is what routers were told.
	BGP bgp.Desired
}

const (
	// memorable bounds how often the Memory is made, which costs time in proportion to the number of addresses.
	memorable = time.Second
	// forbear is how long a Plan is waited for before the Memory takes its place.
	forbear = time.Second
)

// memory is what the agent knows of its Memory.
type memory struct {
	// earlier are the bids of an earlier life, as long as there is no Plan of this one.
	earlier []intent.Bid
	stale   bool      // the election has to hear of them, or of other links
	since   time.Time // when the agent began
	planned bool      // there is a Plan
	changed bool      // the bids or the peers are not those that were remembered last
	digest  uint64    // of the claims that were remembered last
	at      time.Time // when that was
}

// recall begins with what an earlier life knew.
func (a *Agent) recall(m *Memory) {
	if m == nil {
		return
	}
	a.memory.earlier, a.memory.stale, a.memory.since = m.Bids, true, a.o.Now()
	a.step([]elect.Input{elect.Restored{Claims: m.Claims}})
}

// revive adds the bids of the earlier life, on the links that are there now, when no Plan comes. A Plan takes their place.
func (a *Agent) revive(in []elect.Input) []elect.Input {
	m := &a.memory
	if m.planned || m.earlier == nil || !m.stale || a.o.Now().Sub(m.since) < forbear {
		return in
	}
	m.stale = false
	out := elect.Bids{Changed: slices.Clone(m.earlier)}
	usable := a.ports.usable(a.links).links
	for i := range out.Changed {
		b := &out.Changed[i]
		b.Links = slices.DeleteFunc(slices.Clone(b.Links), func(index int) bool { return !carried(usable, index, b.Address) })
	}
	return append(in, out)
}

func carried(links facts.LinkSet, index int, a netip.Addr) bool {
	l, ok := links.ByIndex(index)
	return ok && l.Carries(a)
}

// supersede has the first Plan take the place of what was recalled: what it does not name is gone.
func (a *Agent) supersede(p planned) {
	if !a.memory.planned {
		for _, b := range a.memory.earlier {
			if _, still := p.changed[b.Address]; !still {
				p.gone[b.Address] = struct{}{}
			}
		}
	}
	a.memory.planned, a.memory.changed, a.memory.earlier = true, true, nil
}

// resume is ready to read when routers are to be told what an earlier life told them; nil when it told them nothing.
func (a *Agent) resume() <-chan time.Time {
	if m := a.o.Remembered; m == nil || len(m.BGP.Peers) == 0 {
		return nil
	}
	return time.After(forbear)
}

// remember hands the Memory over when it changed.
func (a *Agent) remember(now time.Time) {
	m := &a.memory
	digest := a.machine.Digest()
	if a.o.Remember == nil || !m.planned || now.Sub(m.at) < memorable || (!m.changed && digest == m.digest) {
		return
	}
	m.at, m.changed, m.digest = now, false, digest
	out := Memory{Bids: a.plan.Bids.Slice(), Claims: a.machine.Claims(), BGP: desired(a.plan)}
	for name, address := range a.peers {
		if name != a.o.Self && address.IsValid() {
			out.Peers = append(out.Peers, address)
		}
	}
	slices.SortFunc(out.Peers, netip.Addr.Compare)
	a.o.Remember(out)
}
