package continuity

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// fakePacketRules are packet rules in memory.
type fakePacketRules struct {
	kernelError, writeError error
	// forwardsError and forwardingError are those of the rules that forward only.
	forwardsError, forwardingError error
	hasProxy, isRemoved            bool
	steering                       intent.Steering
	writes                         int
	forgotten                      []intent.Steering
	forwarding                     []intent.Forwarding // all that was written
	// CheckKernel waits until kernelAnswer is closed; it may be nil.
	kernelAnswer chan struct{}
}

func (f *fakePacketRules) CheckKernel() error {
	if f.kernelAnswer != nil {
		<-f.kernelAnswer
	}
	return f.kernelError
}
func (f *fakePacketRules) HasServiceProxyRules() (bool, error) { return f.hasProxy, nil }
func (f *fakePacketRules) HasLeftoversToRemove() bool          { return false }
func (f *fakePacketRules) SetSteering(s intent.Steering) error {
	if f.writeError == nil {
		f.steering = s
		f.writes++
	}
	return f.writeError
}
func (f *fakePacketRules) DeleteConnectionsToDeadEndpoints(s intent.Steering) (int, error) {
	f.forgotten = append(f.forgotten, s)
	return len(s), nil
}
func (f *fakePacketRules) CheckKernelForwards() error {
	return errors.Join(f.kernelError, f.forwardsError)
}
func (f *fakePacketRules) SetForwarding(n intent.Forwarding) error {
	err := errors.Join(f.writeError, f.forwardingError)
	if err == nil {
		f.forwarding = append(f.forwarding, n)
	}
	return err
}
func (f *fakePacketRules) RemoveTable() error { f.isRemoved, f.steering = true, nil; return nil }

var (
	address = netip.MustParseAddr("192.0.2.1")
	webKey  = view.ObjectKey{Namespace: "default", Name: "web"}
	// webService is a Service that kube-proxy serves.
	webService = view.Service{Key: webKey, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{address}, Traffic: &view.ServiceTraffic{Ports: []view.TrafficPort{{Port: view.Port{Protocol: "TCP", Number: 80}}}}}
)

func webSlice(nodes ...string) []view.EndpointSlice {
	s := &view.SliceEndpoints{Ports: []view.TrafficPort{{Port: view.Port{Protocol: "TCP", Number: 8080}}}}
	for _, n := range nodes {
		s.Endpoints = append(s.Endpoints, view.SliceEndpoint{Address: netip.AddrFrom4([4]byte{10, 244, n[len(n)-1] - '0', 2}), Node: n, IsReady: true})
	}
	return []view.EndpointSlice{{WithAddresses: s}}
}

// aliveTraffic are the facts of a node that holds the address of the Service while all nodes live.
func aliveTraffic() agent.TrafficFacts {
	return agent.TrafficFacts{
		MemberNames: []string{"node1", "node2", "node3"}, CarriedBindings: []intent.Binding{{Address: address, LinkIndexes: []int{2}}},
		UsableLinks: facts.LinkSet{{Index: 2}, {Index: 3}},
	}
}

func deadTraffic() agent.TrafficFacts {
	s := aliveTraffic()
	s.DeclaredDeadMemberNames = []string{"node3"}
	return s
}

// runEngine runs an engine for a Service with a Pod on node2 and node3.
func runEngine(t *testing.T, f *fakePacketRules, test func(e *Engine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		e := NewEngine(Options{AroundDeadNodes: true, PacketRules: f, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		ended := make(chan struct{})
		go func() { defer close(ended); _ = e.Run(ctx) }()
		e.SetService(webService)
		e.SetEndpointSlices(webKey, webSlice("node2", "node3"))
		e.ObserveTraffic(aliveTraffic())
		synctest.Wait()
		if f.writes != 0 {
			t.Error("rules were written while all nodes live")
		}
		test(e)
		cancel()
		<-ended
		if !f.isRemoved {
			t.Error("the rules were not removed at the end")
		}
	})
}

func TestDeathIsSteeredAroundAtOnceUntilTheNodeIsBack(t *testing.T) {
	f := &fakePacketRules{hasProxy: true}
	runEngine(t, f, func(e *Engine) {
		e.ObserveTraffic(deadTraffic())
		synctest.Wait()
		if len(f.steering) != 1 || len(f.steering[0].LivingEndpoints) != 1 || len(f.forgotten) != 1 {
			t.Fatalf("steered is %v, want the port of the Service; %d times connections were forgotten, want once", f.steering, len(f.forgotten))
		}
		e.ObserveTraffic(aliveTraffic())
		time.Sleep(minDecisionInterval)
		synctest.Wait()
		if len(f.steering) != 0 {
			t.Errorf("the node is back, and steered is still %v", f.steering)
		}
	})
}

// TestMemberThatVanishesCountsAsDead: the gossip can remove a dead member before its watchers have
// lost patience and the election declares it dead.
func TestMemberThatVanishesCountsAsDead(t *testing.T) {
	f := &fakePacketRules{hasProxy: true}
	runEngine(t, f, func(e *Engine) {
		gone := aliveTraffic()
		gone.MemberNames = []string{"node1", "node2"}
		e.ObserveTraffic(gone)
		time.Sleep(minDecisionInterval)
		synctest.Wait()
		if len(f.steering) != 0 {
			t.Fatalf("a member left in order, and steered is %v", f.steering)
		}
		e.ObserveTraffic(aliveTraffic())
		synctest.Wait()
		gone.VanishedAtByMember = map[string]time.Time{"node3": time.Now()}
		e.ObserveTraffic(gone)
		time.Sleep(minDecisionInterval)
		synctest.Wait()
		if len(f.steering) != 1 || len(f.steering[0].LivingEndpoints) != 1 {
			t.Fatalf("a member vanished, and steered is %v, want the port of the Service", f.steering)
		}
		e.ObserveTraffic(aliveTraffic())
		time.Sleep(minDecisionInterval)
		synctest.Wait()
		if len(f.steering) != 0 {
			t.Fatalf("the member is back, and steered is still %v", f.steering)
		}
		e.ObserveTraffic(gone)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if len(f.steering) != 0 {
			t.Errorf("a member vanished long ago, and steered is still %v", f.steering)
		}
		time.Sleep(20 * time.Minute)
		e.ObserveTraffic(gone)
		time.Sleep(minDecisionInterval)
		synctest.Wait()
		if len(f.steering) != 0 {
			t.Errorf("a member whose death is forgotten is steered around again: %v", f.steering)
		}
	})
}

func TestSteeringFollowsNodeThatFlaps(t *testing.T) {
	f := &fakePacketRules{hasProxy: true}
	runEngine(t, f, func(e *Engine) {
		for i := range 30 { // for longer than the steering around one death lasts
			e.ObserveTraffic(deadTraffic())
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if len(f.steering) != 1 {
				t.Fatalf("death %d: steered is %v, want the port of the Service", i, f.steering)
			}
			e.ObserveTraffic(aliveTraffic())
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if len(f.steering) != 0 {
				t.Fatalf("return %d: steered is still %v", i, f.steering)
			}
		}
	})
}

func TestSteeringFollowsEndpointsAndEndsAfterAMinute(t *testing.T) {
	f := &fakePacketRules{hasProxy: true}
	runEngine(t, f, func(e *Engine) {
		e.ObserveTraffic(deadTraffic())
		synctest.Wait()
		e.SetEndpointSlices(webKey, webSlice("node1", "node2", "node3"))
		time.Sleep(minDecisionInterval)
		synctest.Wait()
		if len(f.steering) != 1 || len(f.steering[0].LivingEndpoints) != 2 || len(f.forgotten) != 1 {
			t.Errorf("with another Pod steered is %v, want two living endpoints; %d times connections were forgotten, want once", f.steering, len(f.forgotten))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(f.steering) != 0 {
			t.Errorf("after a minute steered is still %v", f.steering)
		}
	})
}

func TestAnsweredUDPFlowsAreForgottenOnlyIfTheNodeStaysDead(t *testing.T) {
	f := &fakePacketRules{hasProxy: true}
	runEngine(t, f, func(e *Engine) {
		udp := webService
		udp.Traffic = &view.ServiceTraffic{Ports: []view.TrafficPort{{Port: view.Port{Protocol: "UDP", Number: 53}}}}
		slices := webSlice("node2", "node3")
		slices[0].WithAddresses.Ports[0].Protocol = "UDP"
		e.SetService(udp)
		e.SetEndpointSlices(webKey, slices)
		synctest.Wait()
		e.ObserveTraffic(deadTraffic())
		synctest.Wait()
		if len(f.forgotten) != 1 || len(f.forgotten[0][0].LongDeadEndpoints) != 0 {
			t.Fatalf("at the death were forgotten %v, want once, only flows without an answer", f.forgotten)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if len(f.forgotten) != 2 || len(f.forgotten[1][0].LongDeadEndpoints) != 1 {
			t.Errorf("after 3 s were forgotten %v, want also the answered flows to one endpoint", f.forgotten)
		}
	})
}

func TestAddressesThatRoutersSendAreSteeredOnUsableLinks(t *testing.T) {
	e := NewEngine(Options{})
	e.deadSinceByNode = map[string]time.Time{"node3": {}}
	e.traffic = deadTraffic()
	if got := e.announcedAddresses()[address]; len(got) != 1 || got[0] != 2 {
		t.Errorf("the held address may arrive on %v, want the link 2", got)
	}
	routed, withdrawn := address.Next(), address.Next().Next()
	e.traffic.Plan.BGPVerdicts = plan.NewSortedList(
		&plan.BGPVerdict{Reason: names.ReasonAnnounced, Addresses: []netip.Addr{address, routed}},
		&plan.BGPVerdict{Reason: names.ReasonNodeExcluded, Addresses: []netip.Addr{withdrawn}})
	for a, want := range map[netip.Addr][]int{address: {2, 3}, routed: {2, 3}, withdrawn: nil} {
		if got := e.announcedAddresses()[a]; !slices.Equal(got, want) {
			t.Errorf("%v may arrive on %v, want the links %v", a, got, want)
		}
	}
}

func TestNothingIsSteeredWithoutServiceProxyUntilItStarts(t *testing.T) {
	f := &fakePacketRules{}
	runEngine(t, f, func(e *Engine) {
		if got := e.SteeringFault().Reason; got != names.ReasonNoServiceProxy {
			t.Errorf("the fault is %q, want %q", got, names.ReasonNoServiceProxy)
		}
		e.ObserveTraffic(deadTraffic())
		synctest.Wait()
		if len(f.steering) != 0 {
			t.Errorf("without kube-proxy steered is %v", f.steering)
		}
		f.hasProxy = true
		time.Sleep(proxyCheckInterval)
		synctest.Wait()
		if e.SteeringFault().IsSet() || len(f.steering) != 1 {
			t.Errorf("after kube-proxy has started, steered is %v, and the fault is %v", f.steering, e.SteeringFault())
		}
	})
}

func TestRefusedRulesAreReportedAndTriedAgain(t *testing.T) {
	f := &fakePacketRules{hasProxy: true, writeError: errors.New("out of memory")}
	runEngine(t, f, func(e *Engine) {
		e.ObserveTraffic(deadTraffic())
		synctest.Wait()
		if got := e.SteeringFault().Reason; got != names.ReasonPacketRulesRefused {
			t.Errorf("the fault is %q, want %q", got, names.ReasonPacketRulesRefused)
		}
		f.writeError = nil
		time.Sleep(writeRetryDelay)
		synctest.Wait()
		if e.SteeringFault().IsSet() || len(f.steering) != 1 {
			t.Errorf("when the kernel accepts the rules, steered is %v, and the fault is %v", f.steering, e.SteeringFault())
		}
	})
}

// TestSteeringOutlivesFaultsOfForwarding: a node dies while the kernel refuses to forward.
func TestSteeringOutlivesFaultsOfForwarding(t *testing.T) {
	for name, f := range map[string]*fakePacketRules{
		"refused write": {hasProxy: true, forwardingError: errors.New("out of memory")},
		"no module":     {hasProxy: true, forwardsError: errors.New("no such file or directory")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				e := NewEngine(Options{AroundDeadNodes: true, KeepConnections: true, NodeName: "node1", PacketRules: f, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
				ended := make(chan struct{})
				go func() { defer close(ended); _ = e.Run(ctx) }()
				e.SetService(webService)
				e.SetEndpointSlices(webKey, webSlice("node2", "node3"))
				dead := deadTraffic()
				dead.HasPlan = true
				e.ObserveTraffic(aliveTraffic())
				synctest.Wait()
				e.ObserveTraffic(dead)
				for range 40 { // also after each check and each write that is tried again
					time.Sleep(writeRetryDelay)
					synctest.Wait()
					if len(f.steering) != 1 || e.SteeringFault().IsSet() {
						t.Fatalf("steered is %v, and the fault is %v, want the port of the Service", f.steering, e.SteeringFault())
					}
					if e.ForwardingFault().Reason != names.ReasonPacketRulesRefused {
						t.Fatalf("the fault of forwarding is %v, want %q", e.ForwardingFault(), names.ReasonPacketRulesRefused)
					}
				}
				f.forwardingError, f.forwardsError = nil, nil
				time.Sleep(proxyCheckInterval)
				synctest.Wait()
				if e.ForwardingFault().IsSet() || len(f.forwarding) == 0 || len(f.steering) != 1 {
					t.Errorf("when the kernel accepts all, the fault is %v, forwarded is %v, and steered %v", e.ForwardingFault(), f.forwarding, f.steering)
				}
				cancel()
				<-ended
			})
		})
	}
}

// TestRulesGoAtOnceWhenKubeProxyGoes: what a check after a write finds does not wait for the next
// event.
func TestRulesGoAtOnceWhenKubeProxyGoes(t *testing.T) {
	f := &fakePacketRules{hasProxy: true, writeError: errors.New("out of memory")}
	runEngine(t, f, func(e *Engine) {
		e.ObserveTraffic(deadTraffic())
		synctest.Wait()
		f.writeError, f.hasProxy = nil, false
		time.Sleep(writeRetryDelay)
		synctest.Wait()
		if got := e.SteeringFault().Reason; got != names.ReasonNoServiceProxy || len(f.steering) != 0 {
			t.Errorf("without kube-proxy the fault is %q, and steered is %v", got, f.steering)
		}
	})
}

func TestMissingCapabilityIsReported(t *testing.T) {
	f := &fakePacketRules{kernelError: errors.New("operation not permitted")}
	runEngine(t, f, func(e *Engine) {
		if got := e.SteeringFault(); got.Reason != names.ReasonPacketRulesRefused {
			t.Errorf("the fault is %v, want %q", got, names.ReasonPacketRulesRefused)
		}
	})
}

// TestKernelThatDoesNotAnswerDelaysNobody posts more changes than a channel would hold.
func TestKernelThatDoesNotAnswerDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		f := &fakePacketRules{hasProxy: true, kernelAnswer: answer}
		e := NewEngine(Options{AroundDeadNodes: true, PacketRules: f, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		ended, posted := make(chan struct{}), make(chan struct{})
		go func() { defer close(ended); _ = e.Run(ctx) }()
		go func() {
			defer close(posted)
			for range 1000 {
				e.SetService(webService)
				e.SetEndpointSlices(webKey, webSlice("node2"))
				e.RemoveService(view.ObjectKey{Namespace: "default", Name: "gone"})
			}
			e.SetEndpointSlices(webKey, webSlice("node2", "node3"))
		}()
		synctest.Wait()
		select {
		case <-posted:
		default:
			t.Error("who reads Services waits for the kernel")
		}
		close(answer)
		e.ObserveTraffic(deadTraffic())
		time.Sleep(2 * minDecisionInterval)
		synctest.Wait()
		if len(f.steering) != 1 || len(f.steering[0].DeadEndpoints) != 1 {
			t.Errorf("when the kernel has answered, steered is %v, want the port with the newest endpoints", f.steering)
		}
		cancel()
		<-ended
	})
}
