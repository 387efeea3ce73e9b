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
	in   Inputs
	plan Plan
	// services are the decisions as they stand, users the Services of each address.
	services map[view.Key]decision
	users    map[netip.Addr]map[view.Key]struct{}
	fields   map[string]*field // by the advertisements; see fieldFor
	dirty    map[view.Key]struct{}
	all      bool // everything is to be decided anew
	// shares are what each Service adds to the routes, prefixes which Services add to each.
	shares   map[view.Key]share
	prefixes map[netip.Prefix]map[view.Key]struct{}
}

// NewPlanner returns a Planner that has decided nothing. It takes the inputs over: they may be edited through it alone.
func NewPlanner(in Inputs) *Planner {
	if in.Services == nil {
		in.Services = map[view.Key]view.Service{}
	}
	if in.Endpoints == nil {
		in.Endpoints = map[view.Key]view.Endpoints{}
	}
	if in.Nodes == nil {
		in.Nodes = map[string]view.Node{}
	}
	return &Planner{
		in: in, services: map[view.Key]decision{}, users: map[netip.Addr]map[view.Key]struct{}{},
		fields: map[string]*field{}, dirty: map[view.Key]struct{}{}, all: true, shares: map[view.Key]share{},
		prefixes: map[netip.Prefix]map[view.Key]struct{}{},
	}
}

// Plan returns the Plan as of the last Update.
func (p *Planner) Plan() Plan { return p.plan }

// Inputs returns what the Plan rests on. It must not be edited.
func (p *Planner) Inputs() Inputs { return p.in }

// SetService puts a Service in the place of its former View.
func (p *Planner) SetService(s view.Service) {
	if old, ok := p.in.Services[s.Key]; ok && reflect.DeepEqual(old, s) {
		return
	}
	p.in.Services[s.Key] = s
	p.dirty[s.Key] = struct{}{}
}

// RemoveService forgets a Service.
func (p *Planner) RemoveService(k view.Key) {
	delete(p.in.Services, k)
	p.dirty[k] = struct{}{}
}

// SetEndpoints puts the endpoints of a Service in the place of its former ones; none at all are forgotten.
func (p *Planner) SetEndpoints(e view.Endpoints) {
	if reflect.DeepEqual(p.in.Endpoints[e.Service], e) {
		return
	}
	p.in.Endpoints[e.Service] = e
	if !e.Serving {
		delete(p.in.Endpoints, e.Service)
	}
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
		for k := range p.services {
			p.dirty[k] = struct{}{}
		}
		for k := range p.in.Services {
			p.dirty[k] = struct{}{}
		}
	}
	touched := map[netip.Addr]struct{}{}
	var verdicts, gone []Verdict
	for _, k := range sortedKeys(p.dirty) {
		p.forget(k, touched)
		s, ok := p.in.Services[k]
		if !ok || !s.LoadBalancer || s.Class != p.in.Class {
			gone = append(gone, Verdict{Service: k})
			continue
		}
		d := p.decide(&s)
		p.services[k] = d
		for _, a := range d.verdict.Addresses {
			if p.users[a] == nil {
				p.users[a] = map[view.Key]struct{}{}
			}
			p.users[a][k] = struct{}{}
			touched[a] = struct{}{}
		}
		verdicts = append(verdicts, d.verdict)
	}
	p.route(anew)
	clear(p.dirty)
	p.plan.Verdicts = p.plan.Verdicts.edit(verdicts, gone, func(x, y Verdict) int { return x.Service.Compare(y.Service) })
	return p.bid(touched)
}

// forget takes a Service off its addresses.
func (p *Planner) forget(k view.Key, touched map[netip.Addr]struct{}) {
	d, ok := p.services[k]
	if !ok {
		return
	}
	delete(p.services, k)
	for _, a := range d.verdict.Addresses {
		delete(p.users[a], k)
		if len(p.users[a]) == 0 {
			delete(p.users, a)
		}
		touched[a] = struct{}{}
	}
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
	for _, k := range sortedKeys(p.users[a]) {
		d := p.services[k]
		if d.candidates == nil {
			continue
		}
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
