package agent

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/elect"
)

// addNewService gives all speakers a Service whose address nobody has held, and returns how long
// the address has no answer, and when its holder is known.
func (c *clusterOnLAN) addNewService(check snapshot.WireCheck) (firstAnswer, claim time.Duration) {
	c.t.Helper()
	address := serviceIPv4.Next()
	key := view.ObjectKey{Namespace: "default", Name: "new"}
	for _, s := range c.speakerByName {
		s.PostChanges(c.t.Context(), NewSnapshotReplacedChange(&snapshot.Snapshot{
			Pools:            []*snapshot.Pool{{Name: "p", Ranges: []snapshot.Range{{First: serviceIPv4, Last: address}}}},
			L2Advertisements: []*snapshot.L2Advertisement{{Name: "ad", Pools: []string{"p"}, WireCheck: check}},
		}))
	}
	time.Sleep(2 * time.Second)
	begun := time.Now()
	for _, s := range c.speakerByName {
		s.PostChanges(c.t.Context(), NewServiceUpsertedChange(view.Service{Key: key, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{address}}),
			NewEndpointsReplacedChange(view.Endpoints{Service: key, AnyServing: true, ServingNodes: []string{"node4"}, ReadyNodes: []string{"node4"}}))
	}
	for len(c.requestOnceAndListAnswerers(address)) == 0 {
		if time.Since(begun) > 5*time.Second {
			c.t.Fatal("no node answers for the new address")
		}
	}
	firstAnswer = time.Since(begun)
	for !c.isTaken(address) {
		time.Sleep(time.Millisecond)
	}
	claim = time.Since(begun)
	time.Sleep(time.Second)
	c.requireOneAnsweringSpeaker(address)
	return firstAnswer, claim
}

// isTaken reports whether a speaker says that it holds the address.
func (c *clusterOnLAN) isTaken(address netip.Addr) bool {
	for _, s := range c.speakerByName {
		_, events := s.lastStatusAndAllEvents()
		for _, e := range events {
			if e.Kind == elect.EventAddressTaken && e.Address == address {
				return true
			}
		}
	}
	return false
}

// With wireCheck Warn the clients of a new Service do not wait for the question whether a host uses
// its address. The status says that the node holds the address only when that is known.
func TestNewServiceIsAnsweredBeforeItsAddressIsTaken(t *testing.T) {
	for name, c := range map[string]struct {
		check   snapshot.WireCheck
		isEarly bool
	}{"Enforce": {snapshot.WireCheckEnforce, false}, "Warn": {snapshot.WireCheckWarn, true}} {
		t.Run(name, func(t *testing.T) {
			runInSyncedCluster(t, func(l *clusterOnLAN) {
				answer, claim := l.addNewService(c.check)
				if isEarly := answer < 10*time.Millisecond; isEarly != c.isEarly || claim < 60*time.Millisecond {
					t.Errorf("the first answer comes after %v, the claim after %v", answer, claim)
				}
			})
		})
	}
}

// Two new Services have wireCheck Warn. The address of one is free: the node answers before it
// announces the address. A host uses the other address: the node does not announce it, and soon
// does not answer for it either.
func TestNewServicesAreAnsweredOnRealLinks(t *testing.T) {
	m := newRealLinksHarness(t)
	eth0 := m.connectNewNodeLink("eth0")
	m.nodeNamespace.AddAddressToLink("eth0", "192.168.0.11/24")
	m.awaitAnswersFrom("the node has its link", eth0)
	free, used := serviceIPv4.Next(), m.addressOfClient
	changes := []PlannerInputChange{NewSnapshotReplacedChange(&snapshot.Snapshot{
		Pools:            []*snapshot.Pool{{Name: "p", Ranges: []snapshot.Range{{First: serviceIPv4, Last: used}}}},
		L2Advertisements: []*snapshot.L2Advertisement{{Name: "ad", Pools: []string{"p"}, WireCheck: snapshot.WireCheckWarn}},
	})}
	for name, address := range map[string]netip.Addr{"free": free, "used": used} {
		key := view.ObjectKey{Namespace: "default", Name: name}
		changes = append(changes, NewServiceUpsertedChange(view.Service{Key: key, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{address}}),
			NewEndpointsReplacedChange(view.Endpoints{Service: key, AnyServing: true, ServingNodes: []string{"node1"}, ReadyNodes: []string{"node1"}}))
	}
	m.agent.PostChanges(t.Context(), changes...)
	for begun := time.Now(); time.Since(begun) < 2*time.Second || len(m.framesAbout(free)) == 0 && time.Since(begun) < 30*time.Second; {
		m.sendClientRequest(free)
		m.sendClientRequest(used)
		<-time.After(2 * time.Millisecond)
	}
	announced := slices.IndexFunc(m.framesAbout(free), func(f frameOfNode) bool { return f.isAnnouncement })
	if announced < 1 {
		t.Errorf("the announcement of the free address is frame %d, want answers before it", announced)
	}
	frames := m.framesAbout(used)
	if slices.ContainsFunc(frames, func(f frameOfNode) bool { return f.isAnnouncement }) {
		t.Error("the node announces the address of another host")
	}
	if n := len(frames); n > 0 && frames[n-1].receivedAt.Sub(frames[0].receivedAt) > time.Second {
		t.Errorf("the node answers for the address of another host for %v", frames[n-1].receivedAt.Sub(frames[0].receivedAt))
	}
}
