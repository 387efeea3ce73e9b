package elect

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Input is a fact that the Machine is stepped with: Bids, Members, Received, RemoteState, Probed, Foreign, Leave or Tick.
type Input interface{ input() }

// Bids are all addresses that may be held now; they replace the former ones.
type Bids struct{ Bids []intent.Bid }

// Members are all live members.
type Members struct{ Set facts.MemberSet }

// Received is a message from another member.
type Received struct {
	From    string
	Payload []byte
}

// RemoteState is the full state of another member.
type RemoteState struct{ Payload []byte }

// Probed is the outcome of a Probe or AskGateway.
type Probed struct{ Result facts.ProbeResult }

// Foreign says that somebody else spoke for an address that this node holds.
type Foreign struct{ Claim facts.ForeignClaim }

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
func (Leave) input()       {}
func (Tick) input()        {}

// Effect is what the Machine wants done: Send, Probe, AskGateway, Holding, Rejoin, Drained or Note.
type Effect interface{ effect() }

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

// AskGateway asks whether a default gateway answers, which tells a dead neighbour from a cut cable of one's own.
type AskGateway struct {
	ID       uint64
	Attempts int
	Interval time.Duration
}

// Holding is everything to answer for from now on. Announce lists addresses to announce again though they were
// answered for before.
type Holding struct {
	Claims   []intent.Claim
	Announce []netip.Addr
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
	MAC     facts.MAC // of who answers, for NoteConflict and NoteStray
	Text    string
}

func (Send) effect()       {}
func (Probe) effect()      {}
func (AskGateway) effect() {}
func (Holding) effect()    {}
func (Rejoin) effect()     {}
func (Drained) effect()    {}
func (Note) effect()       {}

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
	for a, c := range m.claims {
		if !c.Released {
			out = append(out, Holder{Address: a, Node: c.Holder, Epoch: c.Epoch, Live: m.live(c)})
		}
	}
	slices.SortFunc(out, func(x, y Holder) int { return x.Address.Compare(y.Address) })
	return out
}

// turn gathers the effects of one step.
type turn struct {
	changed  bool // what is held, or on which links
	announce []netip.Addr
	tell     []Claim // claims that every member has to hear of
	sends    []Send
	effects  []Effect
	drained  bool
}

// finish puts the effects of a step in order: what is answered for comes before the messages that make another stop.
func (m *Machine) finish() []Effect {
	t := m.out
	var out []Effect
	if t.changed || len(t.announce) > 0 {
		out = append(out, m.holding(t.announce))
	}
	for _, c := range t.tell {
		m.echoes[c.Address] = echoes
	}
	for chunk := range slices.Chunk(t.tell, claimsPerMessage) {
		payload := appendBool(header(kindClaims), false)
		payload = appendClaims(payload, chunk)
		for _, n := range m.others() {
			out = append(out, Send{To: n, Payload: payload})
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
const echoes = 3

// echo tells new claims again.
func (m *Machine) echo() {
	var again []Claim
	for a, left := range m.echoes {
		again = append(again, m.claims[a])
		if m.echoes[a] = left - 1; left <= 1 {
			delete(m.echoes, a)
		}
	}
	slices.SortFunc(again, func(x, y Claim) int { return x.Address.Compare(y.Address) })
	for chunk := range slices.Chunk(again, claimsPerMessage) {
		m.sendAll(appendClaims(appendBool(header(kindClaims), false), chunk))
	}
}

func (m *Machine) holding(announce []netip.Addr) Holding {
	h := Holding{Announce: announce}
	for a := range m.mine {
		h.Claims = append(h.Claims, intent.Claim{Address: a, Links: m.bids[a].Links})
	}
	slices.SortFunc(h.Claims, func(x, y intent.Claim) int { return x.Address.Compare(y.Address) })
	return h
}

func (m *Machine) send(to string, payload []byte) {
	m.out.sends = append(m.out.sends, Send{To: to, Payload: payload})
}

func (m *Machine) sendAll(payload []byte) {
	for _, n := range m.others() {
		m.send(n, payload)
	}
}

func (m *Machine) note(kind string, a netip.Addr, mac facts.MAC, text string) {
	m.out.effects = append(m.out.effects, Note{Kind: kind, Address: a, MAC: mac, Text: text})
}
