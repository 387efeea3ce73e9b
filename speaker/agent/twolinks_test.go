package agent

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// managementLink is a second link of a speaker, which leads to another network.
func (s *testSpeaker) managementLink() facts.Link {
	mac := s.link.MAC
	mac[0] = 6
	return facts.Link{
		Index: 9, Name: "mgmt0", MAC: mac,
		AddressesWithPrefixLength: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, 0, mac[5]}), 24)},
	}
}

// The link of the holder to the clients goes down. The gossip goes on over the other link.
func TestAHolderWithoutItsLinkToTheClientsHandsOver(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		holder := c.requireOneAnsweringSpeaker(serviceIPv4)
		holder.linkSetsToAgent <- facts.LinkSet{holder.link, holder.managementLink()}
		time.Sleep(time.Second)
		if now := c.requireOneAnsweringSpeaker(serviceIPv4); now != holder {
			t.Fatalf("the address moved from %s to %s because of another link", holder.name, now.name)
		}
		down := holder.link
		down.IsDown = true
		holder.linkSetsToAgent <- facts.LinkSet{down, holder.managementLink()}
		holder.lanHost.Disconnect()
		gap, order := c.measureLongestAnswerGap(serviceIPv4, time.Second)
		if gap > 400*time.Millisecond || len(order) != 1 || order[0] == holder.name {
			t.Errorf("no node answered for %v, then %v did; want another node than %s within 400 ms", gap, order, holder.name)
		}
		time.Sleep(5 * time.Second)
		for _, name := range []netip.Addr{serviceIPv4, serviceIPv6} {
			if s := c.requireOneAnsweringSpeaker(name); s == holder {
				t.Errorf("%s holds %s without a link to the clients", s.name, name)
			}
		}
	})
}

// What a node says about its links reaches all planners, and stays known when the node dies.
func TestOnlyNodesWithLinkToClientsAreCandidates(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		holder := c.requireOneAnsweringSpeaker(serviceIPv4)
		able := c.otherSpeakers(holder)[0]
		for _, s := range c.otherSpeakers(holder) {
			if s != able {
				s.linkSetsToAgent <- facts.LinkSet{s.managementLink()}
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		status, _ := able.lastStatusAndAllEvents()
		for b := range status.Plan.Bids.All() {
			if b.Address == serviceIPv4 && len(b.Candidates.Nodes) != 2 {
				t.Errorf("%s takes %v for candidates, want the two nodes with a link to the clients", able.name, b.Candidates.Nodes)
			}
		}
		holder.disconnectNode()
		gap, order := c.measureLongestAnswerGap(serviceIPv4, time.Second)
		if gap > 400*time.Millisecond || len(order) != 1 || order[0] != able.name {
			t.Errorf("no node answered for %v, then %v did; want %s within 400 ms", gap, order, able.name)
		}
		if _, events := able.lastStatusAndAllEvents(); len(events) == 0 || events[len(events)-1].Reason != names.ReasonHolderGone || events[len(events)-1].Kind != elect.EventAddressTaken {
			t.Errorf("the events are %+v", events)
		}
	})
}
