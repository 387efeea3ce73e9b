package layer2

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// responderTable is what the readers of the ports look at for every frame. It is never edited, only replaced, so that they share
// no lock with the engine: however long that takes, requests are answered.
type responderTable struct {
	holdings map[netip.Addr]holding
	// probedAddresses are the addresses that somebody here asks the wire about.
	probedAddresses map[netip.Addr]struct{}
	// ownMACs are the Ethernet addresses of this node's ports, open is what they are.
	ownMACs   []facts.MAC
	openPorts []Port
}

// publishTable makes the readers see what the engine knows now.
func (e *Engine) publishTable() {
	t := &responderTable{holdings: e.holdings, probedAddresses: e.probedAddresses}
	for _, p := range e.ports {
		if !slices.Contains(t.ownMACs, p.link.MAC) {
			t.ownMACs = append(t.ownMACs, p.link.MAC)
		}
		if p.socket != nil {
			t.openPorts = append(t.openPorts, p.socket)
		}
	}
	e.responderTable.Store(t)
}

// publishProbedAddresses makes the readers see which addresses are asked for.
func (e *Engine) publishProbedAddresses() {
	e.probedAddresses = make(map[netip.Addr]struct{}, len(e.probesByAddress))
	for a := range e.probesByAddress {
		e.probedAddresses[a] = struct{}{}
	}
	e.publishTable()
}

// readFrames answers requests until the port fails, and passes on what else matters; the last thing it passes on is the error.
func (e *Engine) readFrames(io Port, key portKey, generation uint64, own facts.MAC) {
	defer e.readers.Done()
	var memory requestFilter
	err := io.Receive(func(f Frame) (Frame, bool) {
		t := e.responderTable.Load()
		if slices.Contains(t.ownMACs, f.SenderMAC) {
			return Frame{}, false
		}
		r := readerEvent{port: key, generation: generation, frame: f}
		if t.concernsProbe(f) {
			e.readerEvents <- r // an answer that is lost would give the address to two
		} else if h, held := t.holdings[f.SenderIP]; held && slices.Contains(h.links, key.link) {
			e.deliverOrDrop(r)
		}
		if f.Operation != Request {
			return Frame{}, false
		}
		// Who asks is remembered by the holder, too: it may have the address again one day.
		if f.SenderIP != f.TargetIP && hasUsableSender(f) && memory.isWorthRecording(f, e.now()) {
			select {
			case e.readerEvents <- r:
			default: // it asks again
			}
		}
		h, held := t.holdings[f.TargetIP]
		if !held || !slices.Contains(h.links, key.link) {
			return Frame{}, false
		}
		h.counters.requests.Add(1)
		answer, why := BuildReply(f, own)
		if why != Answered || e.isPastSendDeadline() {
			return Frame{}, false
		}
		h.counters.answers.Add(1)
		return answer, true
	})
	e.readerEvents <- readerEvent{port: key, generation: generation, err: err}
}

// concernsProbe says whether the frame matters to a question: its sender speaks for the address, or wants it too.
func (t *responderTable) concernsProbe(f Frame) bool {
	if len(t.probedAddresses) == 0 { // as nearly always
		return false
	}
	a := f.SenderIP
	if f.Operation == Request && a.IsUnspecified() {
		a = f.TargetIP
	}
	_, asked := t.probedAddresses[a]
	return asked
}

// hasUsableSender says whether the frame's sender can be told something: it has addresses, and is one host.
func hasUsableSender(f Frame) bool {
	return !f.SenderIP.IsUnspecified() && !f.SenderIP.IsMulticast() && f.SenderMAC != facts.MAC{} && f.SenderMAC[0]&1 == 0
}

// deliverOrDrop passes on what may be lost in a flood.
func (e *Engine) deliverOrDrop(r readerEvent) {
	select {
	case e.readerEvents <- r:
	default:
		e.dropped.Add(1)
	}
}
