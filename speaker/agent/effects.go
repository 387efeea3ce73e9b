package agent

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// step feeds the election and performs its effects in order: the order matters in a planned move. What is answered for
// is handed over before the first message goes out.
func (a *Agent) step(in []elect.Input) {
	var h holds
	a.overhear(in)
	for _, e := range a.machine.Step(a.o.Now(), in...) {
		switch e := e.(type) {
		case elect.Hold:
			a.claims[e.Claim.Address] = e.Claim
			h.changed = true
		case elect.Drop:
			delete(a.claims, e.Address)
			h.changed = true
		case elect.Announce:
			h.announce = append(h.announce, e.Address)
		default:
			a.apply(&h)
			a.perform(e)
		}
	}
	a.apply(&h)
	a.restate = a.restate || len(in) > 0
}

// overhear tells the engine for what the node is a candidate.
func (a *Agent) overhear(in []elect.Input) {
	for _, i := range in {
		bids, ok := i.(elect.Bids)
		if !ok {
			continue
		}
		candidate, gone := make([]intent.Claim, 0, len(bids.Changed)), slices.Clone(bids.Gone)
		for _, b := range bids.Changed {
			if b.Eligible(a.o.Self) && len(b.Links) > 0 {
				candidate = append(candidate, intent.Claim{Address: b.Address, Links: b.Links})
			} else {
				gone = append(gone, b.Address)
			}
		}
		a.o.Layer2.Overhear(candidate, gone)
	}
}

// holds gathers what the engine has to be told.
type holds struct {
	changed  bool
	announce []netip.Addr
}

// apply tells the engine what to answer for. The fence is renewed first: a holder that has just begun must answer at once.
func (a *Agent) apply(h *holds) {
	if !h.changed && len(h.announce) == 0 {
		return
	}
	a.o.Layer2.Renew(a.machine.Fence(a.o.Now()))
	if h.changed {
		claims := make([]intent.Claim, 0, len(a.claims))
		for _, c := range a.claims {
			claims = append(claims, c)
		}
		a.o.Layer2.Apply(claims)
		a.restate, a.tell = true, true
	}
	if len(h.announce) > 0 {
		a.o.Layer2.Announce(h.announce)
	}
	*h = holds{}
}

func (a *Agent) perform(e elect.Effect) {
	switch e := e.(type) {
	case elect.Send:
		a.o.Members.Send(e.To, e.Payload)
	case elect.Probe:
		a.o.Layer2.Probe(layer2.Probe{ID: e.ID, Address: e.Address, Links: e.Links, Attempts: e.Attempts, Interval: e.Interval})
	case elect.Ask:
		a.ask(e)
	case elect.Rejoin:
		a.o.Members.Rejoin()
	case elect.Note:
		if e.Foreign() { // the engine passes over what is not held
			a.o.Layer2.Defend(e.Address)
		}
		a.notes = append(a.notes, e)
		a.tell = true
		a.metrics.count(e)
		a.o.Log.Info(e.Text, "address", e.Address, "reason", reason(e))
	case elect.Drained:
		select {
		case <-a.drained:
		default:
			close(a.drained)
		}
	}
}

func reason(n elect.Note) string {
	if n.Reason != "" {
		return string(n.Reason)
	}
	return n.Kind
}

// asks are the questions whether anybody answers on the wire. One question of the election is several on the wire.
type asks struct {
	last uint64
	open map[uint64]*asking // by the election's ID
	of   map[uint64]uint64  // the wire's ID -> the election's
	turn int                // which of the other nodes was asked first
}

type asking struct{ left int }

// asksFrom keeps their IDs apart from those of the election's own questions.
const asksFrom = 1 << 63

// most bounds how many gateways, and how many other nodes, are asked.
const most = 3

// ask asks the default gateways, and nodes on the same segment. When there are none the answer is that nobody was asked.
func (a *Agent) ask(e elect.Ask) {
	var targets []layer2.Probe
	for _, l := range a.links {
		for _, g := range l.Gateways[:min(len(l.Gateways), most)] {
			targets = append(targets, layer2.Probe{Address: g, Links: []int{l.Index}})
		}
	}
	gateways := min(len(targets), most)
	targets = targets[:gateways]
	for _, name := range a.inTurn() {
		peer := a.peers[name]
		for _, l := range a.links {
			on := slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool { return p.Contains(peer) })
			if on && len(targets) < gateways+most {
				targets = append(targets, layer2.Probe{Address: peer, Links: []int{l.Index}})
			}
		}
	}
	if len(targets) == 0 {
		a.step([]elect.Input{elect.Probed{Result: facts.ProbeResult{ID: e.ID, Unasked: true}}})
		return
	}
	a.asks.open[e.ID] = &asking{left: len(targets)}
	for _, p := range targets {
		a.asks.last++
		p.ID, p.Attempts, p.Interval, p.Kind = asksFrom+a.asks.last, e.Attempts, e.Interval, layer2.Ask
		a.asks.of[p.ID] = e.ID
		a.o.Layer2.Probe(p)
	}
}

// inTurn lists the other nodes in the order in which they are asked: members first, since of those that were members many may
// be gone, and others first each time, since some may be dead.
func (a *Agent) inTurn() []string {
	var live, gone []string
	for _, name := range slices.Sorted(maps.Keys(a.peers)) {
		switch {
		case name == a.o.Self:
		case slices.Contains(a.members, name):
			live = append(live, name)
		default:
			gone = append(gone, name)
		}
	}
	if len(live) > 0 {
		a.asks.turn = (a.asks.turn + 1) % len(live)
		live = slices.Concat(live[a.asks.turn:], live[:a.asks.turn])
	}
	return append(live, gone...)
}

// answered turns the wire's answer to a part of a question into the election's: the first that came, or that there was none.
func (a *Agent) answered(in []elect.Input, r facts.ProbeResult) []elect.Input {
	id := a.asks.of[r.ID]
	delete(a.asks.of, r.ID)
	q := a.asks.open[id]
	if q == nil {
		return in
	}
	if q.left--; len(r.Answers) == 0 && q.left > 0 {
		return in
	}
	delete(a.asks.open, id)
	r.ID = id
	return append(in, elect.Probed{Result: r})
}

// report takes in what the layer-2 engine found.
func (a *Agent) report(in []elect.Input, r layer2.Report) []elect.Input {
	switch r := r.(type) {
	case facts.ProbeResult:
		if r.ID >= asksFrom {
			return a.answered(in, r)
		}
		if r.ID >= surveysFrom {
			r.ID -= surveysFrom
			a.surveys.desk.Found(r, a.world(), a.o.Now())
			return in
		}
		return append(in, elect.Probed{Result: r})
	case facts.ForeignClaim:
		return append(in, elect.Foreign{Claim: r})
	case layer2.PortFailed:
		a.ports.fail(r)
		a.o.Log.Error("layer 2 is not usable on a link", "link", r.Link.Name, "family", r.Family.String(), "error", r.Err)
		a.tell = true
		a.plug()
	case layer2.PortOpened:
		a.ports.open(r)
		a.tell = true
		a.plug()
	}
	return in
}

// setMembers notes where the members are: they can be asked on the wire when the gossip is silent.
func (a *Agent) setMembers(set facts.MemberSet) elect.Input {
	a.surveys.members = set
	a.members, a.tell, a.memory.changed = make([]string, 0, len(set.Members)), true, true
	for _, m := range set.Members {
		a.peers[m.Name] = m.Address
		a.members = append(a.members, m.Name)
	}
	return elect.Members{Set: set}
}

// setLinks takes in a new set of links and hands it to the engine.
func (a *Agent) setLinks(links facts.LinkSet) {
	a.links = links
	a.ports.prune(links)
	macs := make([]facts.MAC, 0, len(links))
	for _, l := range links {
		macs = append(macs, l.MAC)
	}
	slices.SortFunc(macs, func(x, y facts.MAC) int { return slices.Compare(x[:], y[:]) })
	if len(macs) > 0 { // a node without links is still known by those it had
		a.o.Members.SetMACs(slices.Compact(macs))
	}
	a.o.Layer2.SetLinks(links)
	a.tell = true
	a.plug()
}

// plug hands the links to the planning, in the place of those that it did not take yet.
func (a *Agent) plug() {
	u := a.ports.usable(a.links)
	a.memory.stale = true
	for {
		select {
		case a.usable <- u:
			return
		default:
		}
		select {
		case <-a.usable:
		default:
		}
	}
}

func (a *Agent) status() Status {
	held := slices.SortedFunc(maps.Keys(a.claims), netip.Addr.Compare)
	s := Status{Plan: a.plan, Holders: a.machine.Holders(), Held: held, Notes: a.notes, Links: a.ports.mark(a.links), Faults: a.ports.faults(), Members: a.members}
	for _, ip := range held {
		s.Claims = append(s.Claims, a.claims[ip])
	}
	s.Denied, _ = a.ports.refused(a.links)
	return s
}
