package elect

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// seedCountPerTest returns the number of seeds that each property is tried with.
func seedCountPerTest() int64 {
	if testing.Short() {
		return 3
	}
	return 20
}

// faultScenarioByName are faults of a few nodes. Each runs with many seeds, with and without loss
// of messages.
var faultScenarioByName = map[string]func(w *clusterSimulation){
	"all start at once and each address is taken": func(w *clusterSimulation) {
		w.runSimulationFor(2*time.Second, w.newTwoHoldersCheck(handoverOverlapTimeout))
		w.runThenRequireOneHolderEach(3*time.Second, "start")
	},
	"another node takes over within a second and keeps the address": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		others := w.answeredAddressesByNode()
		w.killSpeaker(old)
		w.runSimulationFor(time.Second, w.newTwoHoldersCheck(handoverOverlapTimeout))
		next := w.runThenRequireOneHolderEach(time.Millisecond, "takeover")
		for n, held := range others { // addresses of other nodes stay where they are
			for _, a := range held {
				if now := w.answeringNodes(a); n != old && now[0] != n {
					w.t.Errorf("%s died and %s moved from %s to %s", old, a, n, now[0])
				}
			}
		}
		w.runSimulationFor(10*time.Second, w.newTwoHoldersCheck(handoverOverlapTimeout))
		w.startSpeaker(old)
		w.runSimulationFor(5*time.Second, w.newTwoHoldersCheck(handoverOverlapTimeout))
		if got := w.runThenRequireOneHolderEach(time.Second, "return"); got != next {
			w.t.Errorf("%s came back and the address moved from %s to %s", old, next, got)
		}
	},
	"a stopping speaker hands over without a gap": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		one := w.newTwoHoldersCheck(handoverOverlapTimeout)
		w.stepNode(w.nodesByName[old], ShutdownHandoverRequested{})
		w.runSimulationFor(3*time.Second, func() {
			one()
			if len(w.answeringNodes(w.addresses[0])) == 0 {
				w.t.Fatal("no node answers during the handover")
			}
		})
		if !w.nodesByName[old].handoverFinished {
			w.t.Error("the machine does not report the end of the handover")
		}
	},
	"a node that may not hold the address any more hands it over": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		w.nodesByName[old].hasServingEndpoint = false
		w.deliverBids()
		w.runSimulationFor(2*time.Second, w.newTwoHoldersCheck(handoverOverlapTimeout))
		if next := w.runThenRequireOneHolderEach(time.Second, "exclusion"); next == old {
			w.t.Errorf("%s keeps the address that it may not hold", old)
		}
	},
	"a holder whose endpoints end hands over when the proxy of another node is ready": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		for _, n := range w.nodesByName {
			n.isServiceProxyLate = true
		}
		w.nodesByName[old].hasServingEndpoint, w.nodesByName[old].inEndpointGracePeriod = false, true
		w.deliverBids()
		w.runSimulationFor(5*time.Second, w.newAlwaysAnsweredCheck())
		if now := w.answeringNodes(w.addresses[0]); !slices.Contains(now, old) {
			w.t.Errorf("after 5 s %v answer, want %s, whose successor is not ready", now, old)
		}
		ready := w.nodeNames[0]
		if ready == old {
			ready = w.nodeNames[1]
		}
		w.nodesByName[ready].isServiceProxyLate = false
		w.deliverBids()
		w.runSimulationFor(time.Second, w.newAlwaysAnsweredCheck())
		if next := w.runThenRequireOneHolderEach(time.Millisecond, "another node is ready"); next != ready {
			w.t.Errorf("%s answers, want %s, the only node that is ready", next, ready)
		}
	},
	"a holder whose endpoints have ended releases the address": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		for _, n := range w.nodesByName {
			n.isServiceProxyLate = true
		}
		w.nodesByName[old].hasServingEndpoint, w.nodesByName[old].inEndpointGracePeriod = false, true
		w.deliverBids()
		w.runSimulationFor(time.Second, w.newAlwaysAnsweredCheck())
		w.nodesByName[old].inEndpointGracePeriod = false
		w.deliverBids()
		w.runSimulationFor(time.Second, nil)
		if now := w.answeringNodes(w.addresses[0]); len(now) > 0 {
			w.t.Errorf("%v answer although no node can serve", now)
		}
		for _, n := range w.nodesByName {
			n.isServiceProxyLate = false
		}
		w.deliverBids()
		if next := w.runThenRequireOneHolderEach(time.Second, "the others are ready"); next == old {
			w.t.Errorf("%s answers without endpoints", old)
		}
	},
	"a partition heals to one holder within a second": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		w.cutOffNodes(1, old)
		w.runSimulationFor(10*time.Second, w.newTwoHoldersCheck(handoverOverlapTimeout))
		var next string // on the side of the other nodes and the gateway
		for _, n := range w.answeringNodes(w.addresses[0]) {
			if n != old {
				next = n
			}
		}
		w.healCuts()
		if now := w.runThenRequireOneHolderEach(time.Second, "healing"); now != next && w.messageLossRate == 0 {
			w.t.Errorf("%s took the address from %s, which had taken over and was alive", now, next)
		}
		w.runSimulationFor(5*time.Second, w.newTwoHoldersCheck(handoverOverlapTimeout))
	},
	"after a partition the holder keeps the address that the gateway answers": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		others := slices.DeleteFunc(slices.Clone(w.nodeNames), func(n string) bool { return n == old })
		w.cutOffNodes(1, others...)
		w.runSimulationFor(10*time.Second, w.newTwoHoldersCheck(handoverOverlapTimeout))
		if both := w.answeringNodes(w.addresses[0]); len(both) != 2 {
			w.t.Errorf("%v answer, want a node on each side", both)
		}
		w.healCuts()
		if now := w.runThenRequireOneHolderEach(time.Second, "healing"); now != old {
			w.t.Errorf("%s took the address from %s, which the gateway answered all the time", now, old)
		}
		w.runSimulationFor(5*time.Second, w.newTwoHoldersCheck(handoverOverlapTimeout))
	},
	"a short cut heals to one holder": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		w.cutOffNodes(1, old)
		w.runSimulationFor(time.Duration(w.random.Intn(1500))*time.Millisecond, w.newTwoHoldersCheck(handoverOverlapTimeout))
		w.healCuts()
		w.runSimulationFor(time.Second, w.newTwoHoldersCheck(handoverOverlapTimeout))
		w.runThenRequireOneHolderEach(time.Millisecond, "healing")
	},
	"blocked gossip alone makes no second holder": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		part := []string{old}
		if w.random.Intn(2) == 0 {
			for _, n := range w.nodeNames[:len(w.nodeNames)/2] {
				if n != old {
					part = append(part, n)
				}
			}
		}
		taken := w.addressTakeCount
		w.blockGossipOf(1, part...)
		w.runSimulationFor(15*time.Second, w.newTwoHoldersCheck(0))
		w.healCuts()
		w.runSimulationFor(3*time.Second, w.newTwoHoldersCheck(0))
		if got := w.runThenRequireOneHolderEach(time.Millisecond, "healing"); got != old || w.addressTakeCount != taken {
			w.t.Errorf("%d addresses moved though every holder was alive, the first one from %s to %s", w.addressTakeCount-taken, old, got)
		}
	},
	"a short pause changes nothing": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		taken := w.addressTakeCount
		for range 5 {
			w.pauseSpeaker(old, 100*time.Millisecond)
			w.runSimulationFor(time.Second, w.newTwoHoldersCheck(0))
		}
		if w.messageLossRate == 0 && w.addressTakeCount != taken {
			w.t.Errorf("pauses of 100 ms moved %d addresses", w.addressTakeCount-taken)
		}
		w.runThenRequireOneHolderEach(time.Second, "after the pause")
	},
	"a paused holder never answers together with its successor": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		w.pauseSpeaker(old, 200*time.Millisecond+time.Duration(w.random.Intn(2000))*time.Millisecond)
		w.runSimulationFor(5*time.Second, w.newTwoHoldersCheck(0))
		w.runThenRequireOneHolderEach(time.Second, "after the pause")
	},
	"a paused candidate takes nothing from the node that took over": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		w.killSpeaker(old)
		one, paused := w.newTwoHoldersCheck(0), false
		w.runSimulationFor(5*time.Second, func() {
			one()
			for _, q := range w.openProbes {
				if !paused {
					paused = true
					w.pauseSpeaker(q.prober.name, 201*time.Millisecond+time.Duration(w.random.Intn(800))*time.Millisecond)
				}
			}
		})
		w.runThenRequireOneHolderEach(time.Second, "after the pause")
	},
	"a paused candidate takes nothing that was offered to another node": func(w *clusterSimulation) {
		old := w.runThenRequireOneHolderEach(6*time.Second, "start")
		m := w.nodesByName[old].machine
		ranked := m.rankCandidates(m.addressesByIP[w.addresses[0]], func(string) bool { return false })
		ranked = slices.DeleteFunc(ranked, func(s rankedCandidate) bool { return s.node == old })
		paused := ranked[0].node
		w.pauseSpeaker(paused, 201*time.Millisecond+time.Duration(w.random.Intn(800))*time.Millisecond)
		w.stepNode(w.nodesByName[old], ShutdownHandoverRequested{})
		one := w.newTwoHoldersCheck(handoverOverlapTimeout)
		w.runSimulationFor(5*time.Second, func() {
			one()
			for _, a := range w.addresses {
				if h := w.answeringNodes(a); slices.Contains(h, paused) && !slices.Contains(h, old) && len(h) > 1 {
					w.t.Fatalf("%v answer for %s after the pause of %s", h, a, paused)
				}
			}
		})
		w.runThenRequireOneHolderEach(time.Second, "after the pause")
	},
	"a deleted Service loses its address": func(w *clusterSimulation) {
		w.runThenRequireOneHolderEach(6*time.Second, "start")
		for _, name := range w.nodeNames {
			w.stepNode(w.nodesByName[name], BidsChanged{AddressesWithoutBid: w.addresses})
		}
		w.runSimulationFor(time.Second, nil)
		for _, a := range w.addresses {
			if h := w.answeringNodes(a); len(h) > 0 {
				w.t.Errorf("%v still answer for %s", h, a)
			}
		}
	},
}

// answeredAddressesByNode groups the addresses by the nodes that answer for them.
func (w *clusterSimulation) answeredAddressesByNode() map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for _, a := range w.addresses {
		for _, n := range w.answeringNodes(a) {
			out[n] = append(out[n], a)
		}
	}
	return out
}

func TestSimulatedFaultsNeverLeaveTwoHolders(t *testing.T) {
	for name, scenario := range faultScenarioByName {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range seedCountPerTest() {
				for _, loss := range []float64{0, 0.1} {
					w := newClusterSimulation(t, seed, 3+int(seed%4), 1+int(seed%5))
					w.messageLossRate = loss
					if seed%3 == 0 {
						w.maxMessageDelay = 20 * time.Millisecond // messages overtake each other
					}
					w.startAllSpeakers()
					scenario(w)
					if t.Failed() {
						t.Fatalf("seed %d, loss %v", seed, loss)
					}
				}
			}
		})
	}
}

func TestTakeoverTimeIn100Nodes(t *testing.T) {
	if testing.Short() {
		t.Skip("100 nodes take ten seconds")
	}
	var all []time.Duration
	for seed := range int64(2) {
		w := newClusterSimulation(t, seed, 100, 300)
		w.messageLossRate = 0.01
		w.startAllSpeakers()
		w.runThenRequireOneHolderEach(6*time.Second, "start")
		for i := range 5 {
			w.killSpeaker(w.nodeNames[(i*17+int(seed))%100])
			w.runSimulationFor(time.Second, nil)
			w.runThenRequireOneHolderEach(time.Millisecond, "takeover")
		}
		all = append(all, w.takeoverDelays...)
		before := w.messageCount
		w.runSimulationFor(5*time.Second, nil)
		if each := float64(w.messageCount-before) / 5 / 2 / 95; each > 25.5 {
			t.Errorf("%.1f packets a second go between a node and each of its watchers, want at most 25", each)
		}
	}
	slices.Sort(all)
	if len(all) == 0 {
		t.Fatal("no address moved")
	}
	if p99 := all[len(all)*99/100]; p99 > 600*time.Millisecond {
		t.Errorf("the 99th percentile of %d takeovers is %v, want 600 ms at most", len(all), p99)
	}
	t.Logf("%d takeovers: median %v, 99th percentile %v, longest %v",
		len(all), all[len(all)/2], all[len(all)*99/100], all[len(all)-1])
}

// TestTwoHundredNodesSurviveACutAndFiveDeaths: a large cluster is cut in two, loses five nodes and
// gets them back.
func TestTwoHundredNodesSurviveACutAndFiveDeaths(t *testing.T) {
	if testing.Short() {
		t.Skip("200 nodes take ten seconds")
	}
	w := newClusterSimulation(t, 1, 200, 60)
	w.messageLossRate = 0.01
	w.startAllSpeakers()
	w.runThenRequireOneHolderEach(3*time.Second, "start")
	w.cutOffNodes(1, w.nodeNames[:70]...)
	w.runSimulationFor(6*time.Second, nil)
	w.healCuts()
	w.runThenRequireOneHolderEach(time.Second, "healing")
	dead := w.nodeNames[20:25]
	for _, n := range dead {
		w.killSpeaker(n)
	}
	w.runSimulationFor(time.Second, nil)
	w.runThenRequireOneHolderEach(time.Millisecond, "five deaths at once")
	for _, n := range dead {
		w.startSpeaker(n)
	}
	taken := w.addressTakeCount
	w.runSimulationFor(time.Second, nil)
	w.runThenRequireOneHolderEach(time.Millisecond, "their return")
	if w.addressTakeCount != taken {
		t.Errorf("%d addresses moved because nodes came back", w.addressTakeCount-taken)
	}
}
