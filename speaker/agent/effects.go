package agent

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// step feeds the election and performs its effects in order: the order matters in a planned move.
func (a *Agent) step(in elect.Input) {
	for _, e := range a.machine.Step(a.o.Now(), in) {
		a.perform(e)
	}
	if _, tick := in.(elect.Tick); !tick {
		a.restate = true
	}
}

func (a *Agent) perform(e elect.Effect) {
	switch e := e.(type) {
	case elect.Send:
		a.o.Members.Send(e.To, e.Payload)
	case elect.Probe:
		a.o.Layer2.Probe(layer2.Probe{ID: e.ID, Address: e.Address, Links: e.Links, Attempts: e.Attempts, Interval: e.Interval})
	case elect.AskGateway:
		a.askGateway(e)
	case elect.Holding:
		// The fence is renewed first: a holder that has just begun must answer at once.
		a.o.Layer2.Renew(a.machine.Fence(a.o.Now()))
		a.o.Layer2.Apply(e.Claims)
		if len(e.Announce) > 0 {
			a.o.Layer2.Announce(e.Announce)
		}
		a.claims, a.restate, a.tell = e.Claims, true, true
	case elect.Rejoin:
		a.o.Members.Rejoin()
	case elect.Note:
		a.notes = append(a.notes, e)
		a.tell = true
		a.o.Log.Info(e.Text, "address", e.Address, "reason", e.Kind)
	case elect.Drained:
		select {
		case <-a.drained:
		default:
			close(a.drained)
		}
	}
}

// askGateway asks the first default gateway. Without one the answer is that nobody was asked.
func (a *Agent) askGateway(e elect.AskGateway) {
	for _, l := range a.in.usable().Links {
		for _, g := range l.Gateways {
			a.o.Layer2.Probe(layer2.Probe{
				ID: e.ID, Address: g, Links: []int{l.Index}, Attempts: e.Attempts, Interval: e.Interval, Kind: layer2.Ask,
			})
			return
		}
	}
	a.step(elect.Probed{Result: facts.ProbeResult{ID: e.ID, Unasked: true}})
}

// report takes in what the layer-2 engine found.
func (a *Agent) report(r layer2.Report) {
	switch r := r.(type) {
	case facts.ProbeResult:
		a.step(elect.Probed{Result: r})
	case facts.ForeignClaim:
		a.step(elect.Foreign{Claim: r})
	case layer2.PortFailed:
		p := portID{r.Link.Index, r.Family}
		a.in.failed[p] = true
		if delete(a.in.denied, p); r.Denied() {
			a.in.denied[p] = r.Err.Error()
		}
		a.o.Log.Error("layer 2 is not usable on a link", "link", r.Link.Name, "family", r.Family.String(), "error", r.Err)
		a.replan, a.tell = true, true
	case layer2.PortOpened:
		delete(a.in.failed, portID{r.Link.Index, r.Family})
		delete(a.in.denied, portID{r.Link.Index, r.Family})
		a.replan, a.tell = true, true
	}
}

// setLinks takes in a new set of links and hands it to the engine.
func (a *Agent) setLinks(links facts.LinkSet) {
	a.in.links = links
	// A link that is gone takes its faults with it; one that comes back is tried afresh.
	maps.DeleteFunc(a.in.failed, func(p portID, _ bool) bool { _, ok := links.ByIndex(p.link); return !ok })
	maps.DeleteFunc(a.in.denied, func(p portID, _ string) bool { _, ok := links.ByIndex(p.link); return !ok })
	macs := make([]facts.MAC, 0, len(links))
	for _, l := range links {
		macs = append(macs, l.MAC)
	}
	slices.SortFunc(macs, func(x, y facts.MAC) int { return slices.Compare(x[:], y[:]) })
	if len(macs) > 0 { // a node without links is still known by those it had
		a.o.Members.SetMACs(slices.Compact(macs))
	}
	a.o.Layer2.SetLinks(links)
	a.replan = true
}

func (a *Agent) status() Status {
	held := make([]netip.Addr, 0, len(a.claims))
	for _, c := range a.claims {
		held = append(held, c.Address)
	}
	slices.SortFunc(held, netip.Addr.Compare)
	s := Status{Plan: a.plan, Holders: a.machine.Holders(), Held: held, Notes: a.notes}
	s.Denied, _ = a.in.refused()
	return s
}
