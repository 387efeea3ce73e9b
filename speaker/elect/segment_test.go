package elect

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// The pace of acquire probes, as in package layer2.
const (
	probesPerBatch     = 100
	probeBatchInterval = 10 * time.Millisecond
)

// pacedProbeDelay returns when a node may send its next acquire probe.
func (w *clusterSimulation) pacedProbeDelay(n *simNode) time.Duration {
	if n.probesInBatch == probesPerBatch {
		n.probesInBatch, n.probeBatchAt = 0, n.probeBatchAt.Add(probeBatchInterval)
	}
	if n.probeBatchAt.Before(w.now) {
		n.probesInBatch, n.probeBatchAt = 0, w.now
	}
	n.probesInBatch++
	return n.probeBatchAt.Sub(w.now)
}

// performAcquireProbe collects answers while the probe is open.
func (w *clusterSimulation) performAcquireProbe(n *simNode, e AcquireProbe) {
	q, delay, m := &simProbe{prober: n, address: e.Address}, w.pacedProbeDelay(n), n.machine
	w.acquireProbeCount++
	w.scheduleEvent(delay, func() {
		w.openProbes = append(w.openProbes, q)
	})
	for i := range e.FramesPerLink {
		w.scheduleEvent(delay+time.Duration(i)*e.FrameInterval+time.Millisecond, func() {
			w.deliverProbeFrameOnLAN(n, q, e)
			for _, o := range w.openProbes {
				if o.prober != n && o.address == e.Address && w.canHearOnLAN(o.prober.name, n.name) {
					o.rivalProberMACs = append(o.rivalProberMACs, n.mac)
				}
			}
		})
	}
	w.scheduleEvent(delay+time.Duration(e.FramesPerLink)*e.FrameInterval, func() {
		w.openProbes = slices.DeleteFunc(w.openProbes, func(o *simProbe) bool { return o == q })
		if n.machine != m {
			return
		}
		n.probeResultsToDeliver = append(n.probeResultsToDeliver, ProbeFinished{facts.ProbeResult{
			ID: e.ID, Address: e.Address, AnsweringMACs: q.answeringMACs, RivalProberMACs: q.rivalProberMACs,
		}})
		if len(n.probeResultsToDeliver) == 1 { // one step processes all that come at one time
			w.scheduleEvent(0, func() {
				results := n.probeResultsToDeliver
				n.probeResultsToDeliver = nil
				w.stepNode(n, results...)
			})
		}
	})
}

// deliverProbeFrameOnLAN delivers a request of a probe. On busy processors a node answers when its
// reader gets a core.
func (w *clusterSimulation) deliverProbeFrameOnLAN(n *simNode, q *simProbe, e AcquireProbe) {
	if w.processors == nil {
		q.answeringMACs = append(q.answeringMACs, w.macsAnsweringOnLAN(n, e)...)
		return
	}
	for _, name := range w.nodeNames {
		o := w.nodesByName[name]
		if o != n && o.heldAddresses[e.Address] {
			w.processors.addWork(w.processors.probeAnswerTaskByNode[o], probeAnswerCPUTime, func() {
				if w.isAnswering(o, e.Address) {
					q.answeringMACs = append(q.answeringMACs, o.mac)
				}
			})
		}
	}
}

// deliverAnnouncementOnLAN delivers the announcement of an address to all on the segment.
func (w *clusterSimulation) deliverAnnouncementOnLAN(n *simNode, a netip.Addr) {
	w.scheduleEvent(100*time.Microsecond, func() {
		if !w.isAnswering(n, a) {
			return
		}
		for _, q := range w.openProbes {
			if q.prober != n && q.address == a && w.canHearOnLAN(q.prober.name, n.name) {
				q.answeringMACs = append(q.answeringMACs, n.mac)
			}
		}
		for _, name := range w.nodeNames {
			if o := w.nodesByName[name]; o != n && o.heldAddresses[a] && w.canHearOnLAN(name, n.name) {
				w.stepNode(o, ConflictDetected{facts.Conflict{Address: a, ForeignMAC: n.mac, LinkIndex: 1}})
			}
		}
	})
}

// isIsolatedOnLAN reports whether the node hears neither the gateway nor another node on the
// segment.
func (w *clusterSimulation) isIsolatedOnLAN(name string) bool {
	return w.lanPartitionByNode[name] != 0 && !slices.ContainsFunc(w.nodeNames, func(o string) bool {
		return o != name && w.canHearOnLAN(name, o)
	})
}

// macsAnsweringOnLAN returns the answers to a request of a probe.
func (w *clusterSimulation) macsAnsweringOnLAN(from *simNode, e AcquireProbe) []facts.MAC {
	var out []facts.MAC
	toAll := e.TargetMAC == facts.MAC{}
	for _, name := range w.nodeNames {
		n := w.nodesByName[name]
		if n != from && w.isAnswering(n, e.Address) && w.canHearOnLAN(name, from.name) && (toAll || e.TargetMAC == n.mac) {
			out = append(out, n.mac)
		}
	}
	if e.TargetMAC != (facts.MAC{}) && e.TargetMAC == w.removedHostMAC {
		out = append(out, e.TargetMAC)
	}
	if mac, answers := w.fabricAnswerMACByAddress[e.Address]; answers && toAll && mac != from.mac {
		out = append(out, mac)
	}
	return out
}
