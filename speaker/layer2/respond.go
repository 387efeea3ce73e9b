package layer2

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// table is what the readers of the ports look at for every frame. It is never edited, only replaced, so that they share
// no lock with the engine: however long that takes, requests are answered.
type table struct {
	held map[netip.Addr]holding
	// asked are the addresses that somebody here asks the wire about.
	asked map[netip.Addr]struct{}
	// own are the Ethernet addresses of this node's ports, open is what they are.
	own  []facts.MAC
	open []Port
}

// publish makes the readers see what the engine knows now.
func (e *Engine) publish() {
	t := &table{held: e.held, asked: e.askedTable}
	for _, p := range e.ports {
		if !slices.Contains(t.own, p.link.MAC) {
			t.own = append(t.own, p.link.MAC)
		}
		if p.io != nil {
			t.open = append(t.open, p.io)
		}
	}
	e.known.Store(t)
}

// publishAsked makes the readers see which addresses are asked for.
func (e *Engine) publishAsked() {
	e.askedTable = make(map[netip.Addr]struct{}, len(e.askedFor))
	for a := range e.askedFor {
		e.askedTable[a] = struct{}{}
	}
	e.publish()
}

// read answers requests until the port fails, and passes on what else matters; the last thing it passes on is the error.
func (e *Engine) read(io Port, key portKey, generation uint64, own facts.MAC) {
	defer e.readers.Done()
	err := io.Receive(func(f Frame) (Frame, bool) {
		t := e.known.Load()
		if slices.Contains(t.own, f.SenderMAC) {
			return Frame{}, false
		}
		r := received{port: key, generation: generation, frame: f}
		if _, asked := t.asked[f.SenderIP]; asked {
			e.frames <- r // an answer that is lost would give the address to two
		} else if h, held := t.held[f.SenderIP]; held && slices.Contains(h.links, key.link) {
			e.offer(r)
		} else if _, asked := t.asked[f.TargetIP]; asked && f.Operation == Request && f.SenderIP.IsUnspecified() {
			e.offer(r)
		}
		h, held := t.held[f.TargetIP]
		if !held || f.Operation != Request || !slices.Contains(h.links, key.link) {
			return Frame{}, false
		}
		h.tally.requests.Add(1)
		answer, why := Answer(f, own)
		if why != Answered || e.fenced() {
			return Frame{}, false
		}
		h.tally.answers.Add(1)
		return answer, true
	})
	e.frames <- received{port: key, generation: generation, err: err}
}

// offer passes on what may be lost in a flood.
func (e *Engine) offer(r received) {
	select {
	case e.frames <- r:
	default:
		e.dropped.Add(1)
	}
}
