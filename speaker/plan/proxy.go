package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// ProxyRulesState says whether the service proxy of this node, mostly kube-proxy, has written its
// rules for the endpoints of a Service here. With the traffic policy Local, packets that arrive
// earlier are lost.
type ProxyRulesState uint8

// The values of ProxyRulesState.
const (
	// ProxyRulesNotReady: the proxy has not said that it knows an endpoint here, or there is none.
	ProxyRulesNotReady ProxyRulesState = iota
	// ProxyRulesPresumedReady: the endpoints were here before this speaker or before the policy
	// Local. The proxy may still say that it does not know them.
	ProxyRulesPresumedReady
	// ProxyRulesReady: the proxy knows an endpoint here, or answers no such questions. This lasts
	// until the last endpoint here has ended.
	ProxyRulesReady
)

// isProxyReady says whether packets for the Service that arrive at this node reach an endpoint
// here. If no endpoint is ready on any node, those that end count, and the proxy cannot be asked
// about them.
func (r *serviceRecord) isProxyReady() bool {
	return r.proxyRulesState != ProxyRulesNotReady ||
		!slices.ContainsFunc(r.endpoints.servingNodes, func(n nodeEndpoints) bool { return n.hasReadyEndpoint })
}

// SetHealthCheckResult sets what the service proxy of this node said about a Service. Results of
// earlier health checks are ignored.
func (p *Planner) SetHealthCheckResult(result facts.ServiceHealthCheckResult) {
	k := view.ObjectKey{Namespace: result.Namespace, Name: result.Name}
	if c, asked := p.healthChecks[k]; !asked || c.ID != result.ID {
		return
	}
	r, now := p.recordByService[k], ProxyRulesReady
	if result.Outcome == facts.ProxyLacksEndpoints {
		now = ProxyRulesNotReady
	}
	if r.proxyRulesState != now {
		r.proxyRulesState = now
		p.servicesToDecideAgain[k] = struct{}{}
	}
}

// updateProxyRulesAndHealthChecks updates the state of the proxy for the changed Services, and the
// health checks of the Plan.
func (p *Planner) updateProxyRulesAndHealthChecks(changed []view.ObjectKey) {
	edited := false
	for _, k := range changed {
		r := p.recordByService[k]
		if r == nil {
			continue
		}
		here, any := r.endpoints.endpointsOnNode(p.inputs.SelfNode)
		switch {
		case r.service == nil || !any:
			r.proxyRulesState = ProxyRulesNotReady
		case r.proxyRulesState == ProxyRulesNotReady && (!p.isFirstUpdateDone || !r.service.hasLocalTrafficPolicy):
			r.proxyRulesState = ProxyRulesPresumedReady
		}
		old, had := p.healthChecks[k]
		if !here.hasReadyEndpoint || !r.needsHealthCheck() {
			delete(p.healthChecks, k)
			edited = edited || had
			continue
		}
		now := p.newHealthCheck(k, r.service)
		if now.ID = old.ID; !had || now != old {
			p.lastHealthCheckID++
			now.ID = p.lastHealthCheckID
			p.healthChecks[k], edited = now, true
		}
	}
	p.isFirstUpdateDone = true
	if edited {
		p.plan.HealthChecks = slices.SortedFunc(maps.Values(p.healthChecks), func(x, y intent.HealthCheck) int {
			return cmp.Or(cmp.Compare(x.ServiceNamespace, y.ServiceNamespace), cmp.Compare(x.ServiceName, y.ServiceName))
		})
	}
}

// needsHealthCheck says whether the proxy has to be asked about ready endpoints here.
func (r *serviceRecord) needsHealthCheck() bool {
	s := r.service
	return s != nil && s.hasLocalTrafficPolicy && len(s.assignedAddresses) > 0 && r.proxyRulesState != ProxyRulesReady
}

// newHealthCheck returns the health check of a Service, for the families of its addresses.
func (p *Planner) newHealthCheck(k view.ObjectKey, s *serviceFacts) intent.HealthCheck {
	out := intent.HealthCheck{ServiceNamespace: k.Namespace, ServiceName: k.Name, HealthCheckNodePort: s.healthCheckNodePort}
	self := p.inputs.Nodes[p.inputs.SelfNode]
	for _, a := range s.assignedAddresses {
		if a.Is4() {
			out.NodeIPv4 = internalAddressOrLoopback(&self, ipfamily.IPv4, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		} else {
			out.NodeIPv6 = internalAddressOrLoopback(&self, ipfamily.IPv6, netip.IPv6Loopback())
		}
	}
	return out
}

// internalAddressOrLoopback returns the first internal address of the family, or else the loopback
// address.
func internalAddressOrLoopback(n *view.Node, f ipfamily.Family, loopback netip.Addr) netip.Addr {
	for _, a := range n.InternalAddresses {
		if ipfamily.FamilyOf(a) == f {
			return a
		}
	}
	return loopback
}
