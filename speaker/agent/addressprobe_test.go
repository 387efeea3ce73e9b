package agent

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/plan"
	"github.com/gantry-lb/gantry/speaker/probing"
)

// foreignMAC is the Ethernet address of a host outside of the cluster.
var foreignMAC = facts.MAC{2, 0, 0, 0, 0, 0x99}

// addForeignHost connects a host that answers for the address.
func (c *clusterOnLAN) addForeignHost(a netip.Addr) {
	c.t.Helper()
	p, err := c.segment.AddHost("foreign").OpenPort(facts.Link{Index: 1, Name: "eth0", MAC: foreignMAC}, ipfamily.IPv4)
	if err != nil {
		c.t.Fatal(err)
	}
	var read sync.WaitGroup
	read.Go(func() {
		_ = p.ReceiveFrames(func(q layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) {
			if q.TargetIP != a {
				return layer2.ARPOrNDPFrame{}, false
			}
			reply, why := layer2.BuildReply(q, foreignMAC)
			return reply, why == layer2.NotDropped
		}, func() bool { return true })
	})
	c.t.Cleanup(func() {
		if err := p.Close(); err != nil {
			c.t.Error(err)
		}
		read.Wait()
	})
}

// TestAddressProbesReportAnsweringHosts: the controller asks about an address that a foreign host
// has, and about one that no host has.
func TestAddressProbesReportAnsweringHosts(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		taken := probing.Question{ID: "taken", Address: serviceIPv4.Next(), Pool: "p"}
		free := probing.Question{ID: "free", Address: serviceIPv4.Next().Next(), Pool: "p"}
		c.addForeignHost(taken.Address)
		s := c.speakerByName["node2"]
		s.probeQuestionUpdates <- []probing.Question{taken, free}
		time.Sleep(30 * time.Second)
		s.mu.Lock()
		answers := slices.Clone(s.probeAnswers)
		s.mu.Unlock()
		slices.SortFunc(answers, func(x, y probing.Answer) int { return x.Address.Compare(y.Address) })
		want := []probing.Answer{{Question: taken, AnsweringMACs: foreignMAC.String()}, {Question: free}}
		if !slices.Equal(answers, want) {
			c.t.Errorf("the answers are %+v, want %+v", answers, want)
		}
		c.requireOneAnsweringSpeaker(serviceIPv4)
	})
}

// TestHeldAddressIsNotProbed: the controller asks about an address that another speaker holds.
func TestHeldAddressIsNotProbed(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		holder := c.requireOneAnsweringSpeaker(serviceIPv4)
		for _, s := range c.speakerByName {
			if s != holder {
				c.segment.TakeSentFrames()
				s.probeQuestionUpdates <- []probing.Question{{ID: "held", Address: serviceIPv4, Pool: "p"}}
				time.Sleep(30 * time.Second)
				for _, f := range c.segment.TakeSentFrames() {
					// with a sender address it is the question whether the link is alive
					isProbe := f.Frame.Operation == layer2.Request && f.Frame.SenderIP.IsUnspecified()
					if f.SenderName == s.name && isProbe && f.Frame.TargetIP == serviceIPv4 {
						c.t.Fatalf("%s probes an address that %s holds", s.name, holder.name)
					}
				}
				s.mu.Lock()
				answers := slices.Clone(s.probeAnswers)
				s.mu.Unlock()
				if len(answers) > 0 {
					c.t.Errorf("%s answers %+v while a member holds the address", s.name, answers)
				}
				return
			}
		}
		c.t.Error("every speaker is the holder")
	})
}

// TestHeldAddressIsAskedForByOneNode: an operator asks what a node hears about an address that
// another one holds.
func TestHeldAddressIsAskedForByOneNode(t *testing.T) {
	runInSyncedCluster(t, func(c *clusterOnLAN) {
		holder := c.requireOneAnsweringSpeaker(serviceIPv4)
		for _, s := range c.speakerByName {
			question := probing.Question{ID: s.name, Address: serviceIPv4, Pool: "p", IsForThisNode: true}
			s.probeQuestionUpdates <- []probing.Question{question}
			time.Sleep(5 * time.Second)
			s.mu.Lock()
			answers := slices.Clone(s.probeAnswers)
			s.mu.Unlock()
			// The holder does not hear itself.
			if len(answers) != 1 || answers[0].Question != question || (answers[0].AnsweringMACs == "") != (s == holder) {
				c.t.Errorf("%s answers %+v while %s holds the address", s.name, answers, holder.name)
			}
		}
		c.requireOneAnsweringSpeaker(serviceIPv4)
	})
}

// TestApplyChangesReportsWhetherClusterIsSynced: only the mark says that the state is complete.
func TestApplyChangesReportsWhetherClusterIsSynced(t *testing.T) {
	p := plan.NewPlanner(plan.Inputs{SelfNode: "node1"})
	if ApplyChangesToPlanner(p, exampleSnapshotChange(), exampleServiceChange(), exampleEndpointsChange()) {
		t.Error("the state counts as complete without the mark")
	}
	if !ApplyChangesToPlanner(p, NewNodeRemovedChange("node4"), NewClusterSyncedChange()) {
		t.Error("the state does not count as complete after the mark")
	}
}
