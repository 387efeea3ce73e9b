package agent

import (
	"net/netip"
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
