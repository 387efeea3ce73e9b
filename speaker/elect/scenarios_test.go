package elect

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// writeStateForFingerprint writes all that decides what the Machine does next.
func (m *Machine) writeStateForFingerprint(w io.Writer) {
	since := func(t time.Time) time.Duration { return m.now.Sub(t) }
	for _, ip := range modelAddresses {
		a := m.addressesByIP[ip]
		if a == nil {
			continue
		}
		fmt.Fprint(w, a.highestKnownClaim, a.isHeldBySelf, a.isRechecking, a.countedForNode, since(a.nextWorkDueAt), a.queuePosition.IsQueued(), a.orphanClaim, since(a.orphanSince), since(a.lastConflictProbeAt))
		if c := a.acquisition; c != nil {
			fmt.Fprint(w, c.expectedTaker, c.isProbing, c.answeredProbeCount, c.nextProbeDelay, c.takeReason)
		}
		if v := a.move; v != nil {
			fmt.Fprint(w, *v)
		}
		fmt.Fprint(w, m.outbox.claimRepeatsLeftByAddress[a])
	}
	l := m.lease
	fmt.Fprint(w, l.isExpired, since(l.expiredAt), since(l.lastAnsweredMessageSentAt), since(l.lastReachabilityProbeAt))
	fmt.Fprint(w, l.firstValidSyncID, l.recheckRunning, l.addressCountLeftToRecheck, l.isAnsweringInIsolation, m.mayHaveStaleMessages())
	fmt.Fprint(w, since(m.gateways.askedAt), since(m.gateways.answeredAt), m.gateways.isSilent, m.gateways.awaited, len(m.gateways.contestingClaimByAddress), len(m.gateways.recentClaims), since(m.gateways.recentClaimsAt), len(m.pendingProbes.addressesAnsweredEarly))
	fmt.Fprint(w, m.memberNames, m.shutdownHandoverRequested, m.acquisitionsAllowed, since(m.liveness.lastOwnBeaconSentAt), m.syncRequests.lastID, m.pendingProbes.lastProbeID)
	for _, n := range slices.Sorted(maps.Keys(m.liveness.recordsByMember)) {
		h := *m.liveness.recordsByMember[n]
		fmt.Fprint(w, n, h.lastSeq, since(h.lastSignOfLifeAt), h.isSilent, since(h.silenceReportedAt), h.retractionsLeft)
		fmt.Fprint(w, since(h.lastBeaconHeardAt), h.beaconDelay.currentDelay(m.now), since(h.beaconDelay.observedAt))
		fmt.Fprint(w, since(h.digestDiffersSince), since(h.syncRequestedAt), since(m.lastSyncAnswerAtByMember[n]))
	}
	fmt.Fprint(w, m.liveness.reportedNoncesBySilentNode, m.liveness.deadRunNonceByNode, m.liveness.leavingNodes)
	for _, n := range slices.Sorted(maps.Keys(m.liveness.deathConfirmationDelayByNode)) {
		fmt.Fprint(w, n, m.liveness.deathConfirmationDelay(n, m.stepContext()), since(m.liveness.deathConfirmationDelayByNode[n].observedAt))
	}
	for _, n := range slices.Sorted(maps.Keys(m.liveness.reportedNoncesBySilentNode)) {
		fmt.Fprint(w, since(m.liveness.suspectedSinceByNode[n]))
	}
	fmt.Fprint(w, m.liveness.ownStepDelay.currentDelay(m.now), since(m.liveness.ownStepDelay.observedAt))
	fmt.Fprint(w, since(m.liveness.lastMessageReceivedAt), since(m.liveness.claimsChangedAt))
	fmt.Fprint(w, m.liveness.connectedWitnessesBySilentNode, len(m.syncRequests.requestsByID))
}

// modelScenario is a fault, and what must be true afterwards.
type modelScenario struct {
	// startsWithHolders is set when all addresses have holders at the beginning. No choices are
	// made before.
	startsWithHolders    bool
	injectFault          func(*modelRun)
	slotCountWithChoices int // slots with choices
	// repairFault ends the fault; nil if it is permanent.
	repairFault func(*modelRun)
	// wireCheck is that of all addresses.
	wireCheck intent.WireCheckMode
	// maxHolderChangesPerAddress is how often an address may change its holder.
	maxHolderChangesPerAddress int
}

// newFaultOnChosenNode applies the fault to a chosen node.
func newFaultOnChosenNode(f func(w *modelRun, n *modelNode)) func(*modelRun) {
	return func(w *modelRun) { f(w, w.nodes[w.choiceSource.choose(3)]) }
}

var modelScenarios = map[string]modelScenario{
	"all start at once": {slotCountWithChoices: 40, maxHolderChangesPerAddress: 1},
	"all start at once, and early answers are allowed": {slotCountWithChoices: 40, maxHolderChangesPerAddress: 1, wireCheck: intent.WireCheckWarn},
	"a node dies": {startsWithHolders: true, slotCountWithChoices: 60, maxHolderChangesPerAddress: 2, injectFault: newFaultOnChosenNode(func(_ *modelRun, n *modelNode) {
		n.machine, n.heldAddresses = nil, nil
	})},
	"a speaker stops": {startsWithHolders: true, slotCountWithChoices: 40, maxHolderChangesPerAddress: 2, injectFault: newFaultOnChosenNode(func(w *modelRun, n *modelNode) {
		n.isShuttingDown = true
		w.stepNode(n, ShutdownHandoverRequested{})
	})},
	"a speaker stops and another one dies": {startsWithHolders: true, slotCountWithChoices: 60, maxHolderChangesPerAddress: 4, injectFault: newFaultOnChosenNode(func(w *modelRun, n *modelNode) {
		n.isShuttingDown = true
		w.stepNode(n, ShutdownHandoverRequested{})
		other := w.nodes[(n.id+1+w.choiceSource.choose(2))%3]
		other.machine, other.heldAddresses = nil, nil
	})},
	"a process is paused": {startsWithHolders: true, slotCountWithChoices: 90, maxHolderChangesPerAddress: 2, injectFault: newFaultOnChosenNode(func(w *modelRun, n *modelNode) {
		n.pausedUntilSlot = w.currentSlot + []int{9, 21, 27, 30, 35, 60}[w.choiceSource.choose(6)]
	})},
	"gossip is blocked and the segment is not": {startsWithHolders: true, slotCountWithChoices: 80, maxHolderChangesPerAddress: 1, injectFault: newFaultOnChosenNode(func(w *modelRun, n *modelNode) {
		w.gossipPartitionByNode[n.id] = 1
	}), repairFault: func(w *modelRun) { w.gossipPartitionByNode = [3]int{} }},
	"a node is deaf": {startsWithHolders: true, slotCountWithChoices: 80, maxHolderChangesPerAddress: 1, injectFault: newFaultOnChosenNode(func(w *modelRun, n *modelNode) {
		w.isDeafByNode[n.id] = true
	}), repairFault: func(w *modelRun) { w.isDeafByNode = [3]bool{} }},
	"the LAN is cut": {startsWithHolders: true, slotCountWithChoices: 80, maxHolderChangesPerAddress: 3, injectFault: newFaultOnChosenNode(func(w *modelRun, n *modelNode) {
		w.gossipPartitionByNode[n.id], w.lanPartitionByNode[n.id] = 1, 1
	}), repairFault: func(w *modelRun) { w.gossipPartitionByNode, w.lanPartitionByNode = [3]int{}, [3]int{} }},
	"the LAN is cut, and one node is alone with the gateway": {startsWithHolders: true, slotCountWithChoices: 110, maxHolderChangesPerAddress: 3, injectFault: newFaultOnChosenNode(func(w *modelRun, n *modelNode) {
		for i := range w.nodes {
			if i != n.id {
				w.gossipPartitionByNode[i], w.lanPartitionByNode[i] = 1, 1
			}
		}
		w.keptAddresses = maps.Clone(n.heldAddresses)
		w.keeperIndex = n.id
	}), repairFault: func(w *modelRun) { w.gossipPartitionByNode, w.lanPartitionByNode = [3]int{}, [3]int{} }},
	"one direction of the gossip between two nodes is cut": {startsWithHolders: true, slotCountWithChoices: 80, maxHolderChangesPerAddress: 1, injectFault: newFaultOnChosenNode(func(w *modelRun, n *modelNode) {
		w.isPathCut[n.id][(n.id+1+w.choiceSource.choose(2))%3] = true
	}), repairFault: func(w *modelRun) { w.isPathCut = [3][3]bool{} }},
	"a node is mute": {startsWithHolders: true, slotCountWithChoices: 80, maxHolderChangesPerAddress: 1, injectFault: newFaultOnChosenNode(func(w *modelRun, n *modelNode) {
		for i := range w.nodes {
			w.isPathCut[n.id][i] = true
		}
	}), repairFault: func(w *modelRun) { w.isPathCut = [3][3]bool{} }},
}

func TestAllModelRunsKeepOneAnswererPerEpoch(t *testing.T) {
	for name, s := range modelScenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, seen, runs := &exhaustiveChooser{}, map[uint64]bool{}, 0
			for more := true; more && (chooseMaxModelRuns() == 0 || runs < chooseMaxModelRuns()); more = c.nextPath() {
				s.runOnce(t, c, seen)
				runs++
			}
			t.Logf("%d runs, %d states", runs, len(seen))
		})
	}
}

// runOnce is one run of the scenario.
func (s modelScenario) runOnce(t *testing.T, c *exhaustiveChooser, seen map[uint64]bool) {
	w := &modelRun{t: t, choiceSource: c, lossesLeft: 1, delaysLeft: 1, messageReorderingsLeft: 1, seenStates: seen, wireCheck: s.wireCheck}
	if s.startsWithHolders {
		w.endLossesDelaysAndReordering()
		w.startNodes()
		w.runSlots(200)
		w.lossesLeft, w.delaysLeft, w.messageReorderingsLeft, w.seenStates = 1, 1, 1, seen
	} else {
		w.startNodes()
	}
	w.pendingFault, w.maxFaultSlot = s.injectFault, w.currentSlot+20
	w.runSlots(s.slotCountWithChoices)
	if w.reachedSeenState {
		return
	}
	w.endLossesDelaysAndReordering()
	if s.repairFault != nil {
		s.repairFault(w)
	}
	w.runSlots(300)
	for i, a := range modelAddresses {
		var holders []string
		for _, n := range w.nodes {
			if w.isAnswering(n, a) {
				holders = append(holders, modelNodeName(n.id))
				if n.isShuttingDown {
					w.failRun("%s stopped and still answers for %s", modelNodeName(n.id), a)
				}
			}
		}
		if len(holders) != 1 {
			w.failRun("in the end %v answer for %s, want one node", holders, a)
		}
		if w.keptAddresses[a] && holders[0] != modelNodeName(w.keeperIndex) {
			w.failRun("%s lost %s, although the gateway answered it", modelNodeName(w.keeperIndex), a)
		}
		if w.takeCountByAddress[i] > s.maxHolderChangesPerAddress {
			w.failRun("%s was taken %d times, want %d at most", a, w.takeCountByAddress[i], s.maxHolderChangesPerAddress)
		}
	}
}
