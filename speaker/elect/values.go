package elect

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Input is a fact that the Machine is stepped with: Bids, Members, Received, RemoteState, Probed, Foreign, Restored,
// Leave or Tick.
type Input interface{ input() }

// Bids are what changed of the addresses that may be held. The first ones say that everything that exists is known.
type Bids struct {
	Changed []intent.Bid
	// Gone are addresses that nobody can serve any more.
	Gone []netip.Addr
}

// Members are all live members.
type Members struct{ Set facts.MemberSet }

// Received is a message from another member.
type Received struct {
	From    string
	Payload []byte
}

// RemoteState is the full state of another member.
type RemoteState struct{ Payload []byte }

// Probed is the outcome of a Probe or Ask.
type Probed struct{ Result facts.ProbeResult }

// Foreign says that somebody else spoke for an address that this node holds.
type Foreign struct{ Claim facts.ForeignClaim }

// Restored are the claims that were known when an earlier life of this process ended, oldest knowledge of all.
type Restored struct{ Claims []Claim }

// Leave asks for every address to be handed over: the speaker is about to stop.
type Leave struct{}

// Tick is the passing of time.
type Tick struct{}

func (Bids) input()        {}
func (Members) input()     {}
func (Received) input()    {}
func (RemoteState) input() {}
func (Probed) input()      {}
func (Foreign) input()     {}
func (Restored) input()    {}
func (Leave) input()       {}
func (Tick) input()        {}

// Effect is what the Machine wants done: Hold, Drop, Announce, Send, Probe, Ask, Rejoin, Drained or Note.
type Effect interface{ effect() }

// Hold is an address to answer for from now on, or on other links than before.
type Hold struct{ Claim intent.Claim }

// Drop is an address not to answer for any more.
type Drop struct{ Address netip.Addr }

// Announce is an address to announce again though it was answered for before.
type Announce struct{ Address netip.Addr }

// Send is a message to one member, best effort.
type Send struct {
	To      string
	Payload []byte
}

// Probe asks the wire whether anybody answers for the address.
type Probe struct {
	ID       uint64
	Address  netip.Addr
	Links    []int
	Attempts int
	Interval time.Duration
}

// Ask asks whether a default gateway or another node answers on the wire, which tells a dead neighbour from a cut cable
// of one's own.
type Ask struct {
	ID       uint64
	Attempts int
	Interval time.Duration
}

// Rejoin asks for the seeds to be contacted at once.
type Rejoin struct{}

// Drained says that after Leave nothing is held any more.
type Drained struct{}

// The kinds of Notes.
const (
	NoteTaken    = "Taken"    // this node holds the address now
	NoteGiven    = "Given"    // this node gave the address up
	NoteConflict = "Conflict" // a host that is no member answers for the address
	NoteStray    = "Stray"    // a member answers for the address without a claim
)

// Note is something that a person may want to know.
type Note struct {
	Kind    string
	Address netip.Addr
	// Reason is why, for NoteTaken and NoteGiven.
	Reason names.Reason
	MAC    facts.MAC // of who answers, for NoteConflict and NoteStray
	Text   string
	// Delay is the time from the last sign of life of the former holder until this node took the address; 0 when
	// that is not known.
	Delay time.Duration
}

// Foreign says that the Note tells of somebody else who answers for the address.
func (n Note) Foreign() bool { return n.Kind == NoteConflict || n.Kind == NoteStray }

func (Hold) effect()     {}
func (Drop) effect()     {}
func (Announce) effect() {}
func (Send) effect()     {}
func (Probe) effect()    {}
func (Ask) effect()      {}
func (Rejoin) effect()   {}
func (Drained) effect()  {}
func (Note) effect()     {}

// Holder says who holds an address, as far as this node knows.
type Holder struct {
	Address netip.Addr
	Node    string
	Epoch   uint64
	// Live says that the holder is a member that is not given up for dead.
	Live bool
}

// Holders lists the claims that are not released, sorted by address.
func (m *Machine) Holders() []Holder {
	var out []Holder
	for _, a := range m.addresses {
		if c := a.claim; c.Epoch > 0 && !c.Released {
			out = append(out, Holder{Address: a.ip, Node: c.Holder, Epoch: c.Epoch, Live: m.live(c)})
		}
	}
	slices.SortFunc(out, func(x, y Holder) int { return x.Address.Compare(y.Address) })
	return out
}

// Claimed says whether some node has a claim to the address that is not released.
func (m *Machine) Claimed(ip netip.Addr) bool {
	a := m.addresses[ip]
	return a != nil && a.claim.Epoch > 0 && !a.claim.Released
}

// turn gathers the effects of one step.
type turn struct {
	holds   []Effect // Hold, Drop and Announce, in order
	tell    []Claim  // claims that every member has to hear of
	batches map[batch][]Claim
	order   []batch // of the batches
	sends   []Send
	effects []Effect
	drained bool
}

// batch is the kind and the receiver of claims that travel together.
type batch struct {
	kind byte
	to   string
}

// finish puts the effects of a step in order: what is answered for comes before the messages that make another stop.
func (m *Machine) finish() []Effect {
	t := &m.out
	out := t.holds
	for _, c := range t.tell {
		m.echoes[m.at(c.Address)] = echoes
	}
	m.sendAll(kindClaims, t.tell)
	for _, b := range t.order {
		for chunk := range slices.Chunk(t.batches[b], claimsPerMessage) {
			m.send(b.to, appendClaims(header(b.kind), chunk))
		}
	}
	for _, s := range t.sends {
		out = append(out, s)
	}
	out = append(out, t.effects...)
	if t.drained {
		out = append(out, Drained{})
	}
	return out
}

// echoes is how often a new claim is told again, with the next beacons: a datagram that is lost must not leave the former
// holder answering.
const echoes = 2

// echo tells new claims again.
func (m *Machine) echo() {
	var again []Claim
	for a, left := range m.echoes {
		again = append(again, a.claim)
		if m.echoes[a] = left - 1; left <= 1 {
			delete(m.echoes, a)
		}
	}
	slices.SortFunc(again, func(x, y Claim) int { return x.Address.Compare(y.Address) })
	m.sendAll(kindClaims, again)
}

func (m *Machine) send(to string, payload []byte) {
	m.out.sends = append(m.out.sends, Send{To: to, Payload: payload})
}

// sendAll sends claims to every other member.
func (m *Machine) sendAll(kind byte, claims []Claim) {
	for chunk := range slices.Chunk(claims, claimsPerMessage) {
		payload := appendClaims(header(kind), chunk)
		for _, n := range m.others {
			m.send(n, payload)
		}
	}
}

// queue has a claim sent to one member, together with others of the same step.
func (m *Machine) queue(kind byte, to string, c Claim) {
	b := batch{kind, to}
	if m.out.batches == nil {
		m.out.batches = map[batch][]Claim{}
	}
	if len(m.out.batches[b]) == 0 {
		m.out.order = append(m.out.order, b)
	}
	m.out.batches[b] = append(m.out.batches[b], c)
}

func (m *Machine) effect(e Effect) { m.out.effects = append(m.out.effects, e) }

func (m *Machine) hold(e Effect) { m.out.holds = append(m.out.holds, e) }
