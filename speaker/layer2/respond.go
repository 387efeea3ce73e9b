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
	var memory asks
	err := io.Receive(func(f Frame) (Frame, bool) {
		t := e.known.Load()
		if slices.Contains(t.own, f.SenderMAC) {
			return Frame{}, false
		}
		r := received{port: key, generation: generation, frame: f}
		if t.concerns(f) {
			e.frames <- r // an answer that is lost would give the address to two
		} else if h, held := t.held[f.SenderIP]; held && slices.Contains(h.links, key.link) {
			e.offer(r)
		}
		if f.Operation != Request {
			return Frame{}, false
		}
		// Who asks is remembered by the holder, too: it may have the address again one day.
		if f.SenderIP != f.TargetIP && sound(f) && memory.news(f, e.now()) {
			select {
			case e.frames <- r:
			default: // it asks again
			}
		}
		h, held := t.held[f.TargetIP]
		if !held || !slices.Contains(h.links, key.link) {
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

// concerns says whether the frame matters to a question: its sender speaks for the address, or wants it too.
func (t *table) concerns(f Frame) bool {
	if len(t.asked) == 0 { // as nearly always
		return false
	}
	a := f.SenderIP
	if f.Operation == Request && a.IsUnspecified() {
		a = f.TargetIP
	}
	_, asked := t.asked[a]
	return asked
}

// sound says whether the frame's sender can be told something: it has addresses, and is one host.
func sound(f Frame) bool {
	return !f.SenderIP.IsUnspecified() && !f.SenderIP.IsMulticast() && f.SenderMAC != facts.MAC{} && f.SenderMAC[0]&1 == 0
}

// offer passes on what may be lost in a flood.
func (e *Engine) offer(r received) {
	select {
	case e.frames <- r:
	default:
		e.dropped.Add(1)
	}
}
