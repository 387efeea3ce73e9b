package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// requestHolder tells all speakers that the Service asks for a node.
func (c *clusterOnLAN) requestHolder(node string) {
	for _, s := range c.speakerByName {
		s.PostChanges(c.t.Context(), NewServiceUpsertedChange(view.Service{
			Key: serviceKey, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{serviceIPv4, serviceIPv6}, RequestedHolder: node,
		}))
	}
}

func TestRequestedNodeTakesTheAddresses(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		former := c.requireOneAnsweringSpeaker(serviceIPv4)
		requested := "node1"
		if former.name == requested {
			requested = "node2"
		}
		c.requestHolder(requested)
		if gap, order := c.measureLongestAnswerGap(serviceIPv4, 15*time.Second); gap > 2*time.Millisecond {
			t.Errorf("during the move %v answer, and none for %s", order, gap)
		}
		for _, a := range []netip.Addr{serviceIPv4, serviceIPv6} {
			if now := c.requireOneAnsweringSpeaker(a); now.name != requested {
				t.Errorf("%s holds %s, want %s", now.name, a, requested)
			}
		}
		c.requestHolder("node9")
		time.Sleep(15 * time.Second)
		now := c.requireOneAnsweringSpeaker(serviceIPv4)
		status, _ := now.lastStatusAndAllEvents()
		if v := status.Plan.Layer2Verdicts.Slice()[0]; now.name != requested || v.RequestedHolderFault.Reason != names.ReasonHolderUnavailable {
			t.Errorf("%s holds the address, and says of the requested node: %+v", now.name, v.RequestedHolderFault)
		}
	})
}

// TestRequestedNodeThatDiesLosesTheAddresses: a wish does not keep other nodes from serving.
func TestRequestedNodeThatDiesLosesTheAddresses(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		c.requestHolder("node3")
		time.Sleep(15 * time.Second)
		former := c.requireOneAnsweringSpeaker(serviceIPv4)
		former.disconnectNode()
		time.Sleep(2 * time.Second)
		now := c.requireOneAnsweringSpeaker(serviceIPv4)
		status, _ := now.lastStatusAndAllEvents()
		if v := status.Plan.Layer2Verdicts.Slice()[0]; former.name != "node3" || v.RequestedHolderFault.Reason != names.ReasonHolderUnavailable {
			t.Errorf("%s held the address; %s says of the requested node: %+v", former.name, now.name, v.RequestedHolderFault)
		}
	})
}
