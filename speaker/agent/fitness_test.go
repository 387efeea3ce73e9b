package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
)

// feedProxyAnswersForDuration tells all speakers for a time whether their service proxies answer.
func (c *clusterOnLAN) feedProxyAnswersForDuration(d time.Duration, silent ...string) {
	for range d / time.Second {
		for name, s := range c.speakerByName {
			s.serviceProxyHealthUpdates <- !slices.Contains(silent, name)
		}
		time.Sleep(time.Second)
	}
}

func TestNodeWithSilentProxyHandsAddressesOver(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		c.feedProxyAnswersForDuration(3 * time.Second)
		former := c.requireOneAnsweringSpeaker(serviceIPv4)
		c.feedProxyAnswersForDuration(29*time.Second, former.name)
		if now := c.requireOneAnsweringSpeaker(serviceIPv4); now != former {
			t.Errorf("%s took over from %s after less than the timeout", now.name, former.name)
		}
		c.feedProxyAnswersForDuration(5*time.Second, former.name)
		next := c.requireOneAnsweringSpeaker(serviceIPv4)
		if status, _ := former.lastStatusAndAllEvents(); next == former || status.Plan.NodeUnfitReason != names.ReasonServiceProxySilent {
			t.Errorf("%s holds the address, and %s is unfit because of %q", next.name, former.name, status.Plan.NodeUnfitReason)
		}
		if n := former.electionEventCount(t, "Given", names.ReasonNoTaker); n > 0 {
			t.Errorf("%s gave up %v addresses before another node took them", former.name, n)
		}
		c.feedProxyAnswersForDuration(60*time.Second, nodeNames...)
		if now := c.requireOneAnsweringSpeaker(serviceIPv4); now != next {
			t.Errorf("%s took over from %s although no proxy answers", now.name, next.name)
		}
		c.feedProxyAnswersForDuration(5 * time.Second)
		if now := c.requireOneAnsweringSpeaker(serviceIPv4); now != next {
			t.Errorf("%s took over from %s when all proxies answered again", now.name, next.name)
		}
	})
}

func TestUnfitNodeTakesAddressWhenLastFitNodeDies(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		c.feedProxyAnswersForDuration(3 * time.Second)
		fit := c.requireOneAnsweringSpeaker(serviceIPv4)
		others := slices.DeleteFunc(slices.Clone(nodeNames), func(n string) bool { return n == fit.name })
		c.feedProxyAnswersForDuration(40*time.Second, others...)
		fit.disconnectNode()
		c.feedProxyAnswersForDuration(5*time.Second, others...)
		c.requireOneAnsweringSpeaker(serviceIPv4)
	})
}

// TestNodeWithSilentLinkHandsAddressesOver cuts a node off the segment, while its link keeps the
// carrier and its gossip takes another way.
func TestNodeWithSilentLinkHandsAddressesOver(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		former := c.requireOneAnsweringSpeaker(serviceIPv4)
		former.lanHost.Disconnect()
		time.Sleep(45 * time.Second)
		now := c.requireOneAnsweringSpeaker(serviceIPv4)
		if status, _ := former.lastStatusAndAllEvents(); status.Plan.NodeUnfitReason != names.ReasonLinkSilent || len(status.HeldAddresses) > 0 {
			t.Errorf("%s holds the address, and %s is unfit because of %q and holds %v", now.name, former.name, status.Plan.NodeUnfitReason, status.HeldAddresses)
		}
	})
}
