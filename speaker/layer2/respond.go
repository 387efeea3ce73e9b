package layer2

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// responderTable is what the readers of the ports look up for each frame. It is never edited, only
// replaced, so that readers and engine share no lock. So a busy engine does not delay answers.
type responderTable struct {
	heldAddressByIP map[netip.Addr]heldAddress
	// probedAddresses are the addresses with a running probe.
	probedAddresses map[netip.Addr]struct{}
	// ownMACs are the Ethernet addresses of this node's ports.
	ownMACs   []facts.MAC
	openPorts []Port
}

// publishResponderTable gives the readers the present state.
func (e *Engine) publishResponderTable() {
	t := &responderTable{heldAddressByIP: e.heldAddressByIP, probedAddresses: e.runningProbes.probedAddresses}
	for _, p := range e.ports {
		for _, mac := range p.link.MACsToSendWith() {
			if !slices.Contains(t.ownMACs, mac) {
				t.ownMACs = append(t.ownMACs, mac)
			}
		}
		if p.openedPort != nil {
			t.openPorts = append(t.openPorts, p.openedPort)
		}
	}
	e.responderTable.Store(t)
}

// answerAndPassOnFrames answers requests until the port fails, and passes everything else of
// interest to Run. The last event is the error that ended it.
func (e *Engine) answerAndPassOnFrames(socket Port, key portKey, generation uint64, own facts.MAC) {
	defer e.readerGoroutines.Done()
	var filter askerRequestFilter
	err := socket.ReceiveFrames(func(f ARPOrNDPFrame) (ARPOrNDPFrame, bool) {
		t := e.responderTable.Load()
		if slices.Contains(t.ownMACs, f.SenderMAC) {
			return ARPOrNDPFrame{}, false
		}
		r := readerEvent{linkAndFamily: key, socketGeneration: generation, frame: f}
		if t.isFrameRelevantToProbe(f) {
			// blocks if need be: a lost answer could make two nodes use one address
			e.readerEvents <- r
		} else if h, held := t.heldAddressByIP[f.SenderIP]; held && slices.Contains(h.linkIndexes, key.linkIndex) {
			e.deliverOrDropEvent(r)
		}
		if f.Operation != Request {
			return ARPOrNDPFrame{}, false
		}
		// The holder remembers the hosts that ask, too: it may become the holder again later.
		if f.SenderIP != f.TargetIP && canSendNoticeToSender(f) && filter.shouldPassToAskerCache(f, e.now()) {
			select {
			case e.readerEvents <- r:
			default: // the host asks again
			}
		}
		h, held := t.heldAddressByIP[f.TargetIP]
		if !held || !slices.Contains(h.linkIndexes, key.linkIndex) {
			return ARPOrNDPFrame{}, false
		}
		h.counters.requestsReceived.Add(1)
		answer, why := BuildReply(f, own)
		if why != NotDropped || !e.maySendFor(f.TargetIP) {
			return ARPOrNDPFrame{}, false
		}
		h.counters.repliesSent.Add(1)
		return answer, true
	}, e.isBeforeSendDeadline)
	e.readerEvents <- readerEvent{linkAndFamily: key, socketGeneration: generation, err: err}
}

// isFrameRelevantToProbe says whether the frame matters to a probe: its sender uses the probed
// address, or probes it too.
func (t *responderTable) isFrameRelevantToProbe(f ARPOrNDPFrame) bool {
	if len(t.probedAddresses) == 0 { // the usual case
		return false
	}
	a := f.SenderIP
	if f.Operation == Request && a.IsUnspecified() {
		a = f.TargetIP
	}
	_, isProbed := t.probedAddresses[a]
	return isProbed
}

// canSendNoticeToSender says whether a notice can be sent to the frame's sender: it has an IP
// address and a unicast Ethernet address.
func canSendNoticeToSender(f ARPOrNDPFrame) bool {
	return !f.SenderIP.IsUnspecified() && !f.SenderIP.IsMulticast() && f.SenderMAC != facts.MAC{} && f.SenderMAC[0]&1 == 0
}

// deliverOrDropEvent passes on an event that may be lost in a flood.
func (e *Engine) deliverOrDropEvent(r readerEvent) {
	select {
	case e.readerEvents <- r:
	default:
		e.droppedReportAndFrameCount.Add(1)
	}
}
