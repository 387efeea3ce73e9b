package plan

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Planner keeps a Plan in step with its inputs. It belongs to one goroutine; the Plans that it gives are immutable.
type Planner struct {
	in   Inputs // without Services and Endpoints: these are in records
	plan Plan
	// records are what is known and decided of each Service; users are the Services of each address that may be held by layer 2.
	records map[view.Key]*record
	users   map[netip.Addr]sharers
	fields  map[string]*field // by the advertisements; see fieldFor
	dirty   map[view.Key]struct{}
	all     bool // everything is to be decided anew
	// prefixes are the Services that add to each.
	prefixes map[netip.Prefix]sharers
	peers    lists // of the names of peers
}

// NewPlanner returns a Planner that has decided nothing.
func NewPlanner(in Inputs) *Planner {
	p := &Planner{
		in: in, records: map[view.Key]*record{}, users: map[netip.Addr]sharers{}, fields: map[string]*field{},
		dirty: map[view.Key]struct{}{}, all: true, prefixes: map[netip.Prefix]sharers{},
	}
	p.in.Services, p.in.Endpoints = nil, nil
	if p.in.Nodes = maps.Clone(in.Nodes); p.in.Nodes == nil {
		p.in.Nodes = map[string]view.Node{}
	}
	for _, s := range in.Services {
		p.SetService(s)
	}
	for _, e := range in.Endpoints {
		p.SetEndpoints(e)
	}
	return p
}

// Plan returns the Plan as of the last Update.
func (p *Planner) Plan() Plan { return p.plan }

// Snapshot returns the configuration that the Plan rests on.
func (p *Planner) Snapshot() *snapshot.Snapshot { return p.in.Snapshot }

// Inputs returns what the Plan rests on: of the Services those of our class, and what the rules look at of them. It costs time
// in proportion to their number.
func (p *Planner) Inputs() Inputs {
	out := p.in
	out.Nodes, out.Services, out.Endpoints = maps.Clone(p.in.Nodes), map[view.Key]view.Service{}, map[view.Key]view.Endpoints{}
	for k, r := range p.records {
		if r.of != nil {
			out.Services[k] = r.of.view(k, p.in.Class)
		}
		if r.endpoints.serving {
			out.Endpoints[k] = r.endpoints.view(k)
		}
	}
	return out
}

// SetService puts a Service in the place of its former View. One that is not ours is forgotten.
func (p *Planner) SetService(s view.Service) {
	if !s.LoadBalancer || s.Class != p.in.Class {
		p.RemoveService(s.Key)
		return
	}
	r, now := p.record(s.Key), newService(&s)
	if r.of != nil && r.of.same(now) {
		return
	}
	r.of = now
	p.dirty[s.Key] = struct{}{}
}

// record returns that of a Service, a new one if there is none.
func (p *Planner) record(k view.Key) *record {
	r := p.records[k]
	if r == nil {
		r = &record{}
		p.records[k] = r
	}
	return r
}

// RemoveService forgets a Service.
func (p *Planner) RemoveService(k view.Key) {
	if r := p.records[k]; r != nil && r.of != nil {
		r.of = nil
		p.dirty[k] = struct{}{}
	}
}

// SetEndpoints puts the endpoints of a Service in the place of its former ones; none at all are forgotten.
func (p *Planner) SetEndpoints(e view.Endpoints) {
	if p.records[e.Service] == nil && !e.Serving {
		return
	}
	r, now := p.record(e.Service), newEndpoints(&e)
	if r.endpoints.same(now) {
		return
	}
	r.endpoints = now
	p.dirty[e.Service] = struct{}{}
}

// SetNode puts a node in the place of its former View.
func (p *Planner) SetNode(n view.Node) {
	if old, ok := p.in.Nodes[n.Name]; ok && reflect.DeepEqual(old, n) { // as for each heartbeat
		return
	}
	p.in.Nodes[n.Name] = n
	p.all = true
}

// RemoveNode forgets a node.
func (p *Planner) RemoveNode(name string) {
	delete(p.in.Nodes, name)
	p.all = true
}

// SetSnapshot puts a new configuration in the place of the former.
func (p *Planner) SetSnapshot(s *snapshot.Snapshot) { p.in.Snapshot, p.all = s, true }

// SetLinks puts the links on which frames can be sent in the place of the former ones.
func (p *Planner) SetLinks(links facts.LinkSet) {
	if !reflect.DeepEqual(p.in.Links, links) {
		p.in.Links, p.all = links, true
	}
}

// SetDenied says that raw sockets are refused, or are not.
func (p *Planner) SetDenied(d Denial) {
	if denied := d == Refused; p.in.Denied != denied {
		p.in.Denied, p.all = denied, true
	}
}

// Denial says whether raw sockets are refused on this node.
type Denial bool

// The values of a Denial.
const (
	Granted Denial = false
	Refused Denial = true
)

// Update decides what changed since the last call.
func (p *Planner) Update() Delta {
	anew := p.all
	if anew {
		p.all = false
		clear(p.fields)
		p.peers = nil
		for k := range p.records {
			p.dirty[k] = struct{}{}
		}
	}
	touched := map[netip.Addr]struct{}{}
	var verdicts, gone []*Verdict
	order := sortedKeys(p.dirty)
	for _, k := range order {
		r := p.records[k]
		if r == nil {
			continue
		}
		p.forget(k, r, touched)
		if r.of == nil {
			if r.verdict != nil {
				gone = append(gone, r.verdict)
				r.verdict = nil
			}
			continue
		}
		v, d := p.decide(k, r)
		if r.verdict == nil || !r.verdict.same(v) {
			r.verdict = v
			verdicts = append(verdicts, v)
		}
		if d == nil {
			continue
		}
		d.verdict = r.verdict
		r.decision = d
		for _, a := range r.verdict.Addresses {
			p.users[a] = p.users[a].with(k)
			touched[a] = struct{}{}
		}
	}
	p.route(order, anew)
	for _, k := range order {
		if r := p.records[k]; r != nil && r.of == nil && !r.endpoints.serving {
			delete(p.records, k)
		}
	}
	clear(p.dirty)
	p.plan.Verdicts = p.plan.Verdicts.edit(verdicts, gone, func(x, y *Verdict) int { return x.Service.Compare(y.Service) })
	return p.bid(touched)
}

// forget takes a Service off its addresses.
func (p *Planner) forget(k view.Key, r *record, touched map[netip.Addr]struct{}) {
	if r.decision == nil {
		return
	}
	for _, a := range r.decision.verdict.Addresses {
		if p.users[a] = p.users[a].without(k); len(p.users[a]) == 0 {
			delete(p.users, a)
		}
		touched[a] = struct{}{}
	}
	r.decision = nil
}

// bid makes the bids of the addresses anew.
func (p *Planner) bid(touched map[netip.Addr]struct{}) Delta {
	var d Delta
	var gone []intent.Bid
	byAddress := func(x, y intent.Bid) int { return x.Address.Compare(y.Address) }
	for _, a := range slices.SortedFunc(maps.Keys(touched), netip.Addr.Compare) {
		old, had := p.plan.Bids.find(intent.Bid{Address: a}, byAddress)
		b, ok := p.join(a)
		switch {
		case ok && (!had || !b.Same(old)):
			d.Changed = append(d.Changed, b)
		case !ok && had:
			d.Gone = append(d.Gone, a)
			gone = append(gone, intent.Bid{Address: a})
		}
	}
	p.plan.Bids = p.plan.Bids.edit(d.Changed, gone, byAddress)
	return d
}

// join puts the Services of an address together: a node has to be able to serve all of them, because one node answers
// for the address. Where no node can, the first Service in order decides.
func (p *Planner) join(a netip.Addr) (intent.Bid, bool) {
	b := intent.Bid{Address: a, Grace: true}
	for _, k := range p.users[a] {
		d := p.records[k].decision
		if b.Candidates == nil {
			b.Candidates = d.candidates
		} else if both := common(b.Candidates, d.candidates); both != nil {
			b.Candidates = both
		}
		b.Rebalance = b.Rebalance || d.rebalance
		b.Grace = b.Grace && (d.grace || d.verdict.Eligible)
		b.Links = append(b.Links, d.links[a]...)
		for _, o := range d.verdict.Addresses {
			if o != a {
				b.Siblings = append(b.Siblings, o)
			}
		}
	}
	if b.Candidates == nil {
		return b, false
	}
	slices.Sort(b.Links)
	b.Links = slices.Compact(b.Links)
	if !b.Eligible(p.in.Self) || len(b.Links) == 0 {
		b.Links = nil
	} else {
		b.Grace = false
	}
	slices.SortFunc(b.Siblings, netip.Addr.Compare)
	b.Siblings = slices.Compact(b.Siblings)
	return b, true
}

// common returns the nodes of both, with the sums of their scores.
func common(x, y *intent.Candidates) *intent.Candidates {
	if x == y {
		return x
	}
	scores := map[string]int{}
	for i, n := range x.Nodes {
		if j, ok := slices.BinarySearch(y.Nodes, n); ok {
			scores[n] = x.Scores[i] + y.Scores[j]
		}
	}
	return intent.NewCandidates(scores)
}
