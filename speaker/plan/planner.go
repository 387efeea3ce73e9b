package plan

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Planner keeps a Plan up to date as its inputs change. It belongs to one goroutine. The Plans that
// it returns are immutable.
type Planner struct {
	inputs Inputs // without Services and Endpoints, which are in recordByService
	plan   Plan
	// recordByService has the inputs and the decisions of each Service. servicesByAddress has the
	// Services of each address that some node may hold by layer 2.
	recordByService       map[view.ObjectKey]*serviceRecord
	servicesByAddress     map[netip.Addr]sortedServiceKeys
	admittedNodesByAds    map[string]*nodesAdmittedByAds // by the names of the advertisements
	servicesToDecideAgain map[view.ObjectKey]struct{}
	isAnyNodeUnfit        bool // as of the last time that everything was decided
	// candidatesByEdit are Candidates with edited scores; see fitness.go.
	candidatesByEdit map[string]*intent.Candidates
	mustReplanAll    bool // everything has to be decided again
	// servicesByPrefix has the Services that contribute to the route of each prefix.
	servicesByPrefix map[netip.Prefix]sortedServiceKeys
	peerNameLists    nameListCache // of lists of peer names
	// advertisementNameLists are lists of the names of BGPAdvertisements.
	advertisementNameLists nameListCache
	// healthChecks are those of the Plan; see proxy.go.
	healthChecks      map[view.ObjectKey]intent.HealthCheck
	lastHealthCheckID uint64
	// ownPublishedLinks describe UsableLinks and DownLinks; nil until they are needed.
	// subnetsOfNodes are the subnets of all nodes; see nodelinks.go.
	ownPublishedLinks *facts.PublishedLinks
	subnetsOfNodes    []netip.Prefix
	isFirstUpdateDone bool
}

// NewPlanner returns a Planner that has decided nothing.
func NewPlanner(in Inputs) *Planner {
	p := &Planner{
		inputs: in, recordByService: map[view.ObjectKey]*serviceRecord{}, servicesByAddress: map[netip.Addr]sortedServiceKeys{}, admittedNodesByAds: map[string]*nodesAdmittedByAds{},
		servicesToDecideAgain: map[view.ObjectKey]struct{}{}, mustReplanAll: true, servicesByPrefix: map[netip.Prefix]sortedServiceKeys{},
		healthChecks: map[view.ObjectKey]intent.HealthCheck{},
	}
	p.inputs.Services, p.inputs.Endpoints, p.inputs.ProxyRulesStateByService = nil, nil, nil
	if p.inputs.Nodes = maps.Clone(in.Nodes); p.inputs.Nodes == nil {
		p.inputs.Nodes = map[string]view.Node{}
	}
	for _, s := range in.Services {
		p.SetService(s)
	}
	for _, e := range in.Endpoints {
		p.SetEndpoints(e)
	}
	p.isFirstUpdateDone = in.ProxyRulesStateByService != nil
	for k, state := range in.ProxyRulesStateByService {
		p.ensureRecord(k).proxyRulesState = state
	}
	return p
}

// Plan returns the Plan of the last Update.
func (p *Planner) Plan() Plan { return p.plan }

// Snapshot returns the configuration on which the Plan is based.
func (p *Planner) Snapshot() *snapshot.Snapshot { return p.inputs.Snapshot }

// Inputs returns the inputs of the Plan: only Services of our class, with only the fields that the
// rules use. It takes time in proportion to their number.
func (p *Planner) Inputs() Inputs {
	out := p.inputs
	out.Nodes, out.Services, out.Endpoints = maps.Clone(p.inputs.Nodes), map[view.ObjectKey]view.Service{}, map[view.ObjectKey]view.Endpoints{}
	if p.isFirstUpdateDone {
		out.ProxyRulesStateByService = map[view.ObjectKey]ProxyRulesState{}
	}
	for k, r := range p.recordByService {
		if r.proxyRulesState != ProxyRulesNotReady {
			out.ProxyRulesStateByService[k] = r.proxyRulesState
		}
		if r.service != nil {
			out.Services[k] = r.service.toServiceView(k, p.inputs.LoadBalancerClass)
		}
		if r.endpoints.anyCanServe {
			out.Endpoints[k] = r.endpoints.toEndpointsView(k)
		}
	}
	return out
}

// SetService adds or replaces a Service. A Service of another class or type is removed.
func (p *Planner) SetService(s view.Service) {
	if !s.IsLoadBalancer || s.LoadBalancerClass != p.inputs.LoadBalancerClass {
		p.RemoveService(s.Key)
		return
	}
	r, now := p.ensureRecord(s.Key), newServiceFacts(&s)
	if r.service != nil && r.service.equal(now) {
		return
	}
	r.service = now
	p.servicesToDecideAgain[s.Key] = struct{}{}
}

// ensureRecord returns the record of a Service, and makes one if there is none.
func (p *Planner) ensureRecord(k view.ObjectKey) *serviceRecord {
	r := p.recordByService[k]
	if r == nil {
		r = &serviceRecord{}
		p.recordByService[k] = r
	}
	return r
}

// RemoveService removes a Service.
func (p *Planner) RemoveService(k view.ObjectKey) {
	if r := p.recordByService[k]; r != nil && r.service != nil {
		r.service = nil
		p.servicesToDecideAgain[k] = struct{}{}
	}
}

// SetEndpoints replaces the endpoints of a Service.
func (p *Planner) SetEndpoints(e view.Endpoints) {
	if p.recordByService[e.Service] == nil && !e.AnyServing {
		return
	}
	r, now := p.ensureRecord(e.Service), newEndpointFacts(&e)
	if r.endpoints.equal(now) {
		return
	}
	r.endpoints = now
	p.servicesToDecideAgain[e.Service] = struct{}{}
}

// SetNode adds or replaces a node.
func (p *Planner) SetNode(n view.Node) {
	if old, ok := p.inputs.Nodes[n.Name]; ok && reflect.DeepEqual(old, n) { // as in each heartbeat
		return
	}
	p.inputs.Nodes[n.Name] = n
	p.mustReplanAll = true
}

// RemoveNode removes a node.
func (p *Planner) RemoveNode(name string) {
	delete(p.inputs.Nodes, name)
	p.mustReplanAll = true
}

// SetSnapshot replaces the configuration.
func (p *Planner) SetSnapshot(s *snapshot.Snapshot) { p.inputs.Snapshot, p.mustReplanAll = s, true }

// SetLinks replaces the links on which frames can be sent, and those that are down.
func (p *Planner) SetLinks(usable, down facts.LinkSet) {
	if !reflect.DeepEqual(p.inputs.UsableLinks, usable) || !reflect.DeepEqual(p.inputs.DownLinks, down) {
		p.inputs.UsableLinks, p.inputs.DownLinks, p.mustReplanAll = usable, down, true
	}
}

// SetRawSocketPermission sets whether raw sockets are permitted.
func (p *Planner) SetRawSocketPermission(d RawSocketPermission) {
	if denied := d == RawSocketsDenied; p.inputs.RawSocketsDenied != denied {
		p.inputs.RawSocketsDenied, p.mustReplanAll = denied, true
	}
}

// RawSocketPermission says whether raw sockets are permitted on this node.
type RawSocketPermission bool

// The values of RawSocketPermission.
const (
	RawSocketsPermitted RawSocketPermission = false
	RawSocketsDenied    RawSocketPermission = true
)

// NeedsUpdate reports whether anything has changed since the last Update that could change the
// Plan. Many events change none of it, such as a new condition of a Service.
func (p *Planner) NeedsUpdate() bool { return p.mustReplanAll || len(p.servicesToDecideAgain) > 0 }

// Update decides what changed since the last call.
func (p *Planner) Update() BidDelta {
	all := p.mustReplanAll
	if all {
		p.mustReplanAll = false
		clear(p.admittedNodesByAds)
		p.ownPublishedLinks, p.subnetsOfNodes = nil, nil
		p.isAnyNodeUnfit, p.candidatesByEdit = p.hasUnfitNodes(), nil
		p.peerNameLists, p.advertisementNameLists = nil, nil
		for k := range p.recordByService {
			p.servicesToDecideAgain[k] = struct{}{}
		}
	}
	touched := map[netip.Addr]struct{}{}
	var verdicts, gone []*Layer2Verdict
	order := sortedKeysOfServiceSet(p.servicesToDecideAgain)
	p.updateProxyRulesAndHealthChecks(order)
	for _, k := range order {
		r := p.recordByService[k]
		if r == nil {
			continue
		}
		p.removeServiceFromAddresses(k, r, touched)
		if r.service == nil {
			if r.layer2Verdict != nil {
				gone = append(gone, r.layer2Verdict)
				r.layer2Verdict = nil
			}
			continue
		}
		v, d := p.decideLayer2(k, r)
		if r.layer2Verdict == nil || !r.layer2Verdict.equal(v) {
			r.layer2Verdict = v
			verdicts = append(verdicts, v)
		}
		if d == nil {
			continue
		}
		d.verdict = r.layer2Verdict
		r.layer2Decision = d
		for a := range d.decisionByAddress {
			p.servicesByAddress[a] = p.servicesByAddress[a].withService(k)
			touched[a] = struct{}{}
		}
	}
	p.updateRoutes(order, all)
	for _, k := range order {
		if r := p.recordByService[k]; r != nil && r.service == nil && !r.endpoints.anyCanServe {
			delete(p.recordByService, k)
		}
	}
	clear(p.servicesToDecideAgain)
	p.plan.Layer2Verdicts = p.plan.Layer2Verdicts.withEdits(verdicts, gone, func(x, y *Layer2Verdict) int { return x.Service.Compare(y.Service) })
	return p.updateBids(touched)
}

// removeServiceFromAddresses removes a Service from its addresses.
func (p *Planner) removeServiceFromAddresses(k view.ObjectKey, r *serviceRecord, touched map[netip.Addr]struct{}) {
	if r.layer2Decision == nil {
		return
	}
	for a := range r.layer2Decision.decisionByAddress {
		if p.servicesByAddress[a] = p.servicesByAddress[a].withoutService(k); len(p.servicesByAddress[a]) == 0 {
			delete(p.servicesByAddress, a)
		}
		touched[a] = struct{}{}
	}
	r.layer2Decision = nil
}

// updateBids computes the bids of the touched addresses again.
func (p *Planner) updateBids(touched map[netip.Addr]struct{}) BidDelta {
	var d BidDelta
	var gone []intent.Bid
	byAddress := func(x, y intent.Bid) int { return x.Address.Compare(y.Address) }
	for _, a := range slices.SortedFunc(maps.Keys(touched), netip.Addr.Compare) {
		old, had := p.plan.Bids.lookup(intent.Bid{Address: a}, byAddress)
		b, ok := p.combineBidOfServices(a)
		switch {
		case ok && (!had || !b.Equal(old)):
			d.ChangedBids = append(d.ChangedBids, b)
		case !ok && had:
			d.AddressesWithoutBid = append(d.AddressesWithoutBid, a)
			gone = append(gone, intent.Bid{Address: a})
		}
	}
	p.plan.Bids = p.plan.Bids.withEdits(d.ChangedBids, gone, byAddress)
	return d
}

// combineBidOfServices combines the Services of an address. One node answers for the address, so it
// has to be able to serve all of them. If no node can, the first Service in order decides.
func (p *Planner) combineBidOfServices(a netip.Addr) (intent.Bid, bool) {
	b := intent.Bid{Address: a, InEndpointGracePeriod: true, WireCheck: intent.WireCheckOff}
	for _, k := range p.servicesByAddress[a] {
		d := p.recordByService[k].layer2Decision
		one := d.decisionByAddress[a]
		if b.Candidates == nil {
			b.Candidates = one.candidates
		} else if both := commonCandidates(b.Candidates, one.candidates); both != nil {
			b.Candidates = both
		}
		b.MayRebalance = b.MayRebalance || d.mayRebalance || one.canMoveToRequestedNode
		b.WireCheck = min(b.WireCheck, d.wireCheck) // the strictest
		b.InEndpointGracePeriod = b.InEndpointGracePeriod && (one.canSelfServeUntilTaken || one.exclusionReasonOfSelf == names.ReasonNotHolder)
		b.OwnLinkIndexes = append(b.OwnLinkIndexes, one.ownLinkIndexes...)
		for o := range d.decisionByAddress {
			if o != a {
				b.SiblingAddresses = append(b.SiblingAddresses, o)
			}
		}
	}
	if b.Candidates == nil {
		return b, false
	}
	slices.Sort(b.OwnLinkIndexes)
	b.OwnLinkIndexes = slices.Compact(b.OwnLinkIndexes)
	if !b.IsCandidate(p.inputs.SelfNode) || len(b.OwnLinkIndexes) == 0 {
		b.OwnLinkIndexes = nil
	} else {
		b.InEndpointGracePeriod = false
	}
	slices.SortFunc(b.SiblingAddresses, netip.Addr.Compare)
	b.SiblingAddresses = slices.Compact(b.SiblingAddresses)
	return b, true
}

// commonCandidates returns the nodes that both have, with the sums of their scores.
func commonCandidates(x, y *intent.Candidates) *intent.Candidates {
	if x == y {
		return x
	}
	scores := map[string]int{}
	for i, n := range x.Nodes {
		if j, ok := slices.BinarySearch(y.Nodes, n); ok {
			scores[n] = x.PreferenceScores[i] + y.PreferenceScores[j]
		}
	}
	return intent.NewCandidates(scores)
}
