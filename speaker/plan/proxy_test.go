package plan

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// localTrafficPolicyInputs are those of node a. The Service has the policy Local, and is announced
// by both protocols.
func localTrafficPolicyInputs() Inputs {
	in := exampleInputs()
	editService(func(s *view.Service) { s.HasLocalTrafficPolicy, s.HealthCheckNodePort = true, 30000 })(&in)
	editNode("a", func(n *view.Node) { n.InternalAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.10")} })(&in)
	in.Snapshot.Peers = []*snapshot.Peer{{Name: "tor", Address: netip.MustParseAddr("192.0.2.1"), LocalASN: 64512, PeerASN: 65000, Port: 179}}
	in.Snapshot.BGPAdvertisements = []*snapshot.BGPAdvertisement{{Name: "ad", Pools: []string{"p"}, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128}}
	return in
}

// newEndpointsOnNodes returns endpoints of the Service on nodes, those in ready are ready.
func newEndpointsOnNodes(serving, ready []string) view.Endpoints {
	return view.Endpoints{Service: webServiceKey, AnyServing: len(serving) > 0, ServingNodes: serving, ReadyNodes: ready}
}

// proxyStep changes the inputs of a Planner. The wanted values are those of node a after it.
type proxyStep struct {
	change                  func(p *Planner)
	wantLayer2Reason        names.Reason
	wantBGPReason           names.Reason
	wantHealthCheck         bool // there is a health check
	wantCandidate           bool // it may hold the address
	wantEndpointGracePeriod bool
}

// answerHealthCheck answers the present health check.
func answerHealthCheck(outcome facts.ServiceHealthCheckOutcome) func(p *Planner) {
	return func(p *Planner) {
		for _, c := range p.Plan().HealthChecks {
			p.SetHealthCheckResult(facts.ServiceHealthCheckResult{ID: c.ID, Namespace: c.ServiceNamespace, Name: c.ServiceName, Outcome: outcome})
		}
	}
}

func replaceEndpoints(serving, ready []string) func(p *Planner) {
	return func(p *Planner) { p.SetEndpoints(newEndpointsOnNodes(serving, ready)) }
}

func TestAnnouncementsWaitForTheServiceProxy(t *testing.T) {
	const late, other, announced, none = names.ReasonServiceProxyNotReady, names.ReasonNotHolder, names.ReasonAnnounced, names.ReasonNoLocalEndpoints
	a, b, both := []string{"a"}, []string{"b"}, []string{"a", "b"}
	elsewhere := proxyStep{replaceEndpoints(b, b), none, none, false, false, false}
	arrives := proxyStep{replaceEndpoints(both, both), late, late, true, false, false}
	known := proxyStep{answerHealthCheck(facts.ProxyKnowsEndpoints), other, announced, false, true, false}
	for name, steps := range map[string][]proxyStep{
		"the proxy knows the endpoint": {elsewhere, arrives, known},
		"the proxy knows it later":     {elsewhere, arrives, {answerHealthCheck(facts.ProxyLacksEndpoints), late, late, true, false, false}, known},
		"the proxy is silent":          {elsewhere, arrives, {answerHealthCheck(facts.ProxySilent), other, announced, false, true, false}},
		"the endpoint ends": {
			elsewhere, arrives, known,
			{replaceEndpoints(both, b), none, announced, false, false, true},
			elsewhere, arrives,
		},
		"a second endpoint starts while the first ends": {
			elsewhere, arrives, known,
			{replaceEndpoints(both, b), none, announced, false, false, true},
			{replaceEndpoints(both, both), other, announced, false, true, false},
		},
		"the endpoints here were there at the start": {
			{replaceEndpoints(a, a), other, announced, true, true, false},
			known,
		},
		"the proxy has lost the endpoints at the start": {
			{replaceEndpoints(a, a), other, announced, true, true, false},
			{answerHealthCheck(facts.ProxyLacksEndpoints), late, late, true, false, false},
		},
		"no endpoint is ready on any node": {
			elsewhere,
			{replaceEndpoints(a, nil), other, announced, false, true, false},
		},
		"a Service becomes Local": {
			{func(p *Planner) {
				p.SetEndpoints(newEndpointsOnNodes(b, b))
				setServicePolicy(p, view.Service{})
			}, other, announced, false, true, false},
			{replaceEndpoints(both, both), other, announced, false, true, false},
			{func(p *Planner) {
				setServicePolicy(p, view.Service{HasLocalTrafficPolicy: true, HealthCheckNodePort: 30000})
			}, other, announced, true, true, false},
		},
		"a Service gets its address late": {
			elsewhere,
			{func(p *Planner) {
				s := localTrafficPolicyInputs().Services[webServiceKey]
				s.AssignedAddresses = nil
				p.SetService(s)
				p.SetEndpoints(newEndpointsOnNodes(both, both))
				p.Update()
				if checks := p.Plan().HealthChecks; len(checks) > 0 {
					t.Errorf("the health checks of a Service without an address are %v", checks)
				}
				p.SetService(localTrafficPolicyInputs().Services[webServiceKey])
			}, late, late, true, false, false},
			known,
		},
		"a Service is created again": {
			elsewhere, arrives, known,
			{func(p *Planner) {
				s := p.Inputs().Services[webServiceKey]
				p.RemoveService(webServiceKey)
				p.Update()
				s.HealthCheckNodePort = 30001
				p.SetService(s)
			}, late, late, true, false, false},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := localTrafficPolicyInputs()
			in.Endpoints = nil
			p := NewPlanner(in)
			for i, step := range steps {
				step.change(p)
				p.Update()
				checkProxyStep(t, i, p.Plan(), step)
			}
		})
	}
}

// setServicePolicy replaces the traffic policy of the Service.
func setServicePolicy(p *Planner, policy view.Service) {
	s := localTrafficPolicyInputs().Services[webServiceKey]
	s.HasLocalTrafficPolicy, s.HealthCheckNodePort = policy.HasLocalTrafficPolicy, policy.HealthCheckNodePort
	p.SetService(s)
}

func checkProxyStep(t *testing.T, i int, got Plan, want proxyStep) {
	t.Helper()
	layer2, bgp := got.Layer2Verdicts.Slice()[0], got.BGPVerdicts.Slice()[0]
	if layer2.Reason != want.wantLayer2Reason || bgp.Reason != want.wantBGPReason {
		t.Errorf("step %d: the reasons are %s and %s, want %s and %s", i, layer2.Reason, bgp.Reason, want.wantLayer2Reason, want.wantBGPReason)
	}
	if has := len(got.Routes) > 0; has != (want.wantBGPReason == names.ReasonAnnounced) {
		t.Errorf("step %d: the routes are %v", i, got.Routes)
	}
	if has := len(got.HealthChecks) > 0; has != want.wantHealthCheck {
		t.Errorf("step %d: the health checks are %v", i, got.HealthChecks)
	}
	bid := got.Bids.Slice()[0]
	if able := bid.IsCandidate("a") && len(bid.OwnLinkIndexes) > 0; able != want.wantCandidate || bid.InEndpointGracePeriod != want.wantEndpointGracePeriod {
		t.Errorf("step %d: may hold the address: %v, in grace: %v", i, able, bid.InEndpointGracePeriod)
	}
}

// TestHealthChecksNameAddressesOfTheNode asks at the node's own address, and at loopback if it has
// none of the family.
func TestHealthChecksNameAddressesOfTheNode(t *testing.T) {
	in := localTrafficPolicyInputs()
	in.Endpoints[webServiceKey] = newEndpointsOnNodes([]string{"a"}, []string{"a"})
	editService(func(s *view.Service) {
		s.AssignedAddresses = append(s.AssignedAddresses, netip.MustParseAddr("2001:db8::1"))
	})(&in)
	want := []intent.HealthCheck{{
		ID: 1, ServiceNamespace: "default", ServiceName: "web", HealthCheckNodePort: 30000, NodeIPv4: netip.MustParseAddr("192.0.2.10"), NodeIPv6: netip.IPv6Loopback(),
	}}
	if got := buildPlan(in).HealthChecks; !slices.Equal(got, want) {
		t.Errorf("the health checks are %v, want %v", got, want)
	}
}

// TestLateHealthCheckResultsAreIgnored: the result of an earlier health check of a Service comes
// after its endpoints have ended and returned.
func TestLateHealthCheckResultsAreIgnored(t *testing.T) {
	in := localTrafficPolicyInputs()
	in.Endpoints[webServiceKey] = newEndpointsOnNodes([]string{"b"}, []string{"b"})
	p := NewPlanner(in)
	p.Update()
	var earlier []intent.HealthCheck
	for range 2 {
		for _, node := range []string{"b", "a"} {
			p.SetEndpoints(newEndpointsOnNodes([]string{node}, []string{node}))
			p.Update()
		}
		if earlier == nil {
			earlier = p.Plan().HealthChecks
		}
	}
	p.SetHealthCheckResult(facts.ServiceHealthCheckResult{ID: earlier[0].ID, Namespace: "default", Name: "web", Outcome: facts.ProxyKnowsEndpoints})
	p.Update()
	if got := p.Plan().Layer2Verdicts.Slice()[0].Reason; got != names.ReasonServiceProxyNotReady {
		t.Errorf("the reason is %s after the result of an earlier health check", got)
	}
}

// TestASecondServiceDoesNotMoveASharedAddress adds a Service to an address that this node holds.
func TestASecondServiceDoesNotMoveASharedAddress(t *testing.T) {
	in := localTrafficPolicyInputs()
	editService(func(s *view.Service) { s.HasSharingAnnotation = true })(&in)
	in.Endpoints[webServiceKey] = newEndpointsOnNodes([]string{"a", "b"}, []string{"a", "b"})
	p := NewPlanner(in)
	p.Update()
	second := in.Services[webServiceKey]
	second.Key.Name = "second"
	e := newEndpointsOnNodes([]string{"a", "b"}, []string{"a", "b"})
	e.Service = second.Key
	p.SetService(second)
	p.SetEndpoints(e)
	p.Update()
	bid := p.Plan().Bids.Slice()[0]
	if !bid.IsCandidate("a") || len(bid.OwnLinkIndexes) == 0 {
		t.Errorf("the bid is %v, want one of node a: its first Service still works", bid)
	}
}
