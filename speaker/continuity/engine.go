// Package continuity serves new connections while a node is dead and Kubernetes does not know it
// yet, and open connections when their address moves. It joins what the API server says about
// Services and endpoints with what the agent says about dead nodes and the holders of addresses,
// and passes the decisions of the packages steering and forwarding to the kernel. One goroutine
// owns the state. Nothing else in the speaker waits for it.
package continuity

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/steering"
)

// PacketRules are the packet rules of this node. *packetrules.Writer has them. The methods are
// called by one goroutine, and return when the kernel has answered.
type PacketRules interface {
	// CheckKernel returns why the kernel refuses the rules.
	CheckKernel() error
	// HasServiceProxyRules reports whether kube-proxy has rules on this node.
	HasServiceProxyRules() (bool, error)
	// SetSteering replaces what is steered. After an error nothing has changed.
	SetSteering(s intent.Steering) error
	// DeleteConnectionsToDeadEndpoints makes clients choose anew that the kernel sends to dead
	// endpoints. It returns how many connections it forgot.
	DeleteConnectionsToDeadEndpoints(s intent.Steering) (int, error)
	// HasLeftoversToRemove reports whether SetSteering has to be called to remove what an earlier
	// run left.
	HasLeftoversToRemove() bool
	// RemoveTable removes all rules that steer.
	RemoveTable() error
	// CheckKernelForwards returns why the kernel refuses the rules that forward.
	CheckKernelForwards() error
	// SetForwarding changes what is forwarded. It has to be called now and then although nothing
	// changed.
	SetForwarding(f intent.Forwarding) error
}

// Options configure an Engine.
type Options struct {
	// LoadBalancerClass is the class of the Services to serve; empty serves those without a class.
	LoadBalancerClass string
	NodeName          string
	// AroundDeadNodes steers new connections around dead nodes. KeepConnections forwards packets of
	// open connections to former holders.
	AroundDeadNodes, KeepConnections bool
	PacketRules                      PacketRules
	Now                              func() time.Time
	Log                              *slog.Logger
}

// Engine steers new connections around dead nodes, and keeps open ones when addresses move. Only
// Run uses its state.
type Engine struct {
	options        Options
	pendingChanges *pendingChanges
	trafficUpdates *latest.Value[agent.TrafficFacts]
	metrics        steeringMetrics
	// steeringFeature and forwardingFeature are what is wrong with each.
	steeringFeature, forwardingFeature feature

	services        map[view.ObjectKey]*steering.Service
	deadSinceByNode map[string]time.Time
	traffic         agent.TrafficFacts
	forwarding      forwardingState
	decision        steering.Outcome
	written         intent.Steering // what the kernel has
	// mustDecide is set after a change of the inputs. decidedAt is when the last decision was made.
	mustDecide bool
	decidedAt  time.Time
}

const (
	// minDecisionInterval bounds how often everything is decided again. The death of a node does
	// not wait for it.
	minDecisionInterval = 50 * time.Millisecond
	// writeRetryDelay is the delay after the kernel refused rules.
	writeRetryDelay = time.Second
	// proxyCheckInterval is the time between two searches for the rules of kube-proxy, while there
	// are none: it may start later than the speaker.
	proxyCheckInterval = 15 * time.Second
)

// NewEngine returns an Engine that does nothing before Run.
func NewEngine(o Options) *Engine {
	return &Engine{
		steeringFeature:   feature{activity: "steer new connections around dead nodes", isOn: o.AroundDeadNodes},
		forwardingFeature: feature{activity: "keep open connections when addresses move", isOn: o.KeepConnections},
		options:           o, pendingChanges: newPendingChanges(), trafficUpdates: latest.NewValue[agent.TrafficFacts](), metrics: newSteeringMetrics(),
		services: map[view.ObjectKey]*steering.Service{}, forwarding: newForwardingState(),
	}
}

// SetService adds or replaces a Service. It does not block.
func (e *Engine) SetService(s view.Service) {
	if !s.IsLoadBalancer || s.LoadBalancerClass != e.options.LoadBalancerClass {
		e.RemoveService(s.Key)
		return
	}
	e.pendingChanges.merge(s.Key, serviceChange{exposure: &exposure{s.AssignedAddresses, s.Traffic, s.HasLocalTrafficPolicy}})
}

// RemoveService removes a Service. It does not block.
func (e *Engine) RemoveService(k view.ObjectKey) {
	e.pendingChanges.merge(k, serviceChange{exposure: &exposure{}})
}

// SetEndpointSlices replaces the EndpointSlices of a Service. The caller must not change them any
// more. It does not block.
func (e *Engine) SetEndpointSlices(k view.ObjectKey, all []view.EndpointSlice) {
	e.pendingChanges.merge(k, serviceChange{slices: &all})
}

// SetNode adds or replaces a node with its internal addresses. It does not block.
func (e *Engine) SetNode(name string, addresses []netip.Addr) {
	e.pendingChanges.mergeNode(name, addresses)
}

// RemoveNode removes a node that is gone. It does not block.
func (e *Engine) RemoveNode(name string) { e.pendingChanges.mergeNode(name, nil) }

// ObserveTraffic takes what the agent knows. It does not block.
func (e *Engine) ObserveTraffic(t agent.TrafficFacts) { e.trafficUpdates.Put(t) }

// Run steers and forwards until ctx ends. It then removes the rules that steer.
func (e *Engine) Run(ctx context.Context) error {
	defer e.removeRules()
	e.checkSteering()
	e.checkForwarding()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			e.forwardAtEnd()
			return nil
		case <-e.pendingChanges.wake.C():
			services, nodes := e.pendingChanges.take() // many changes cost one decision
			for k, c := range services {
				e.applyChange(k, c)
			}
			for name, addresses := range nodes {
				e.forwarding.applyNode(name, addresses)
			}
		case t := <-e.trafficUpdates.C():
			e.applyTraffic(t)
		case <-timer.C:
		}
		now := e.options.Now()
		e.checkIfDue(now)
		if e.options.AroundDeadNodes {
			e.decideIfDue(now)
			e.writeIfNeeded()
		}
		e.forwardIfDue(now)
		timer.Reset(max(e.nextDeadline().Sub(e.options.Now()), 0))
	}
}

func (e *Engine) applyChange(k view.ObjectKey, c serviceChange) {
	s := steering.Service{}
	if known := e.services[k]; known != nil {
		s = *known
	}
	c.applyTo(&s)
	e.mustDecide = e.mustDecide || len(e.deadSinceByNode) > 0
	e.forwarding.mustDecide = true
	if s.Traffic == nil && !s.HasLocalPolicy && len(s.Slices) == 0 {
		delete(e.services, k)
		return
	}
	e.services[k] = &s
}

func (e *Engine) applyTraffic(t agent.TrafficFacts) {
	e.traffic = t
	dead := steering.FollowDeaths(e.deadSinceByNode, t.MemberNames, t.DeclaredDeadMemberNames, t.VanishedAtByMember, e.options.Now())
	if !maps.Equal(dead, e.deadSinceByNode) {
		e.decidedAt = time.Time{}
	}
	e.mustDecide = e.mustDecide || len(dead) > 0 || len(e.deadSinceByNode) > 0
	e.deadSinceByNode = dead
	e.forwarding.applyMembers(t.Members)
}

// decideIfDue decides what should be steered.
func (e *Engine) decideIfDue(now time.Time) {
	isTimeOver := !e.decision.NextDueAt.IsZero() && !now.Before(e.decision.NextDueAt)
	if !e.mustDecide && !isTimeOver || now.Before(e.decidedAt.Add(minDecisionInterval)) {
		return
	}
	e.mustDecide, e.decidedAt = false, now
	e.decision = steering.Decide(steering.Inputs{
		Services: e.services, DeadSinceByNode: e.deadSinceByNode, LinkIndexesByAddress: e.announcedAddresses(),
	}, e.decision, now)
}

// announcedAddresses returns the addresses that this node announces or is about to take, with the
// links on which packets for them may come from outside. Routers may send packets over each of the
// usable links; the links of Pods are not among these.
func (e *Engine) announcedAddresses() map[netip.Addr][]int {
	out := map[netip.Addr][]int{}
	if len(e.deadSinceByNode) == 0 {
		return out
	}
	for _, b := range e.traffic.CarriedBindings {
		out[b.Address] = b.LinkIndexes
	}
	var all []int
	for _, l := range e.traffic.UsableLinks {
		all = append(all, l.Index)
	}
	slices.Sort(all)
	for v := range e.traffic.Plan.BGPVerdicts.All() {
		if v.Reason != names.ReasonAnnounced {
			continue
		}
		for _, a := range v.Addresses {
			if held := out[a]; held == nil {
				out[a] = all
			} else {
				out[a] = steering.UnionOfLinks(held, all)
			}
		}
	}
	return out
}

// wantedSteering is what the kernel should have now.
func (e *Engine) wantedSteering() intent.Steering {
	if !e.steeringFeature.mayWrite() {
		return nil
	}
	return e.decision.Steering
}

// writeIfNeeded passes a changed decision to the kernel, and makes clients of dead endpoints choose
// anew.
func (e *Engine) writeIfNeeded() {
	f, now, want := &e.steeringFeature, e.options.Now(), e.wantedSteering()
	if now.Before(f.retryAt) || want.IsSameAs(e.written) && f.retryAt.IsZero() && !e.options.PacketRules.HasLeftoversToRemove() {
		return
	}
	if err := e.options.PacketRules.SetSteering(want); err != nil {
		e.setWriteFault(f, err, now)
		return
	}
	if !f.retryAt.IsZero() {
		f.retryAt = time.Time{}
		e.checkSteering()
	}
	if (len(want) == 0) != (len(e.written) == 0) {
		e.options.Log.Info("steering new connections around dead nodes", "nodes", slices.Sorted(maps.Keys(e.deadSinceByNode)), "ports", len(want),
			"duration", e.options.Now().Sub(now))
	}
	e.metrics.steeredPortCount.Store(int64(len(want)))
	changed := portsWithNewDeadEndpoints(e.written, want)
	e.written = want
	if len(changed) == 0 {
		return
	}
	n, err := e.options.PacketRules.DeleteConnectionsToDeadEndpoints(changed)
	e.metrics.deletedConnectionCount.Add(uint64(n))
	if err != nil { // the clients' own timeouts help them
		e.options.Log.Warn("forgetting connections to dead endpoints", "error", err)
	}
}

// portsWithNewDeadEndpoints returns the ports with dead endpoints that were not dead before, or not
// for long.
func portsWithNewDeadEndpoints(before, now intent.Steering) intent.Steering {
	var out intent.Steering
	for _, p := range now {
		i, found := slices.BinarySearchFunc(before, p, func(x, y intent.SteeredPort) int { return x.ServiceAddressPort.Compare(y.ServiceAddressPort) })
		if !found || !slices.Equal(before[i].DeadEndpoints, p.DeadEndpoints) || !slices.Equal(before[i].LongDeadEndpoints, p.LongDeadEndpoints) {
			out = append(out, p)
		}
	}
	return out
}

// nextDeadline is when Run has to act without an input.
func (e *Engine) nextDeadline() time.Time {
	next := e.options.Now().Add(proxyCheckInterval)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	earlier(e.decision.NextDueAt)
	earlier(e.steeringFeature.retryAt)
	earlier(e.steeringFeature.nextCheck())
	earlier(e.forwardingFeature.nextCheck())
	if e.steeringFeature.retryAt.IsZero() && !e.wantedSteering().IsSameAs(e.written) {
		earlier(e.options.Now()) // a check after the write has changed what is wanted
	}
	if e.mustDecide && e.options.AroundDeadNodes {
		earlier(e.decidedAt.Add(minDecisionInterval))
	}
	earlier(e.nextForwardingDeadline())
	return next
}

func (e *Engine) removeRules() {
	if err := e.options.PacketRules.RemoveTable(); err != nil && !e.SteeringFault().IsSet() {
		e.options.Log.Warn("the packet rules stay until they expire", "error", err)
	}
}
