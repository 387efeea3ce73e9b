package elect

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Input is a fact that the Machine is stepped with: Bids, Members, Received, RemoteStateReceived, Probed, Foreign, Restored,
// Leave or Tick.
type Input interface{ isInput() }

// BidsChanged are what changed of the addresses that may be held. The first ones say that everything that exists is known.
type BidsChanged struct {
	Bids []intent.Bid
	// GoneAddresses are addresses that nobody can serve any more.
	GoneAddresses []netip.Addr
}

// MembersChanged are all live members.
type MembersChanged struct{ Set facts.MemberSet }

// MessageReceived is a message from another member.
type MessageReceived struct {
	From    string
	Payload []byte
}

// RemoteStateReceived is the full state of another member.
type RemoteStateReceived struct{ Payload []byte }

// ProbeFinished is the outcome of a Probe or Ask.
type ProbeFinished struct{ Result facts.ProbeResult }

// ConflictDetected says that somebody else spoke for an address that this node holds.
type ConflictDetected struct{ Conflict facts.Conflict }

// ClaimsRestored are the claims that were known when an earlier life of this process ended, oldest knowledge of all.
type ClaimsRestored struct{ Claims []Claim }

// HandoverRequested asks for every address to be handed over: the speaker is about to stop.
type HandoverRequested struct{}

// TimePassed is the passing of time.
type TimePassed struct{}

func (BidsChanged) isInput()         {}
func (MembersChanged) isInput()      {}
func (MessageReceived) isInput()     {}
func (RemoteStateReceived) isInput() {}
func (ProbeFinished) isInput()       {}
func (ConflictDetected) isInput()    {}
func (ClaimsRestored) isInput()      {}
func (HandoverRequested) isInput()   {}
func (TimePassed) isInput()          {}

// Effect is what the Machine wants done: Hold, Drop, Announce, Send, Probe, Ask, Rejoin, Drained or Note.
type Effect interface{ isEffect() }

// HoldAddress is an address to answer for from now on, or on other links than before.
type HoldAddress struct{ Binding intent.Binding }

// DropAddress is an address not to answer for any more.
type DropAddress struct{ Address netip.Addr }

// RepeatAnnouncement is an address to announce again though it was answered for before.
type RepeatAnnouncement struct{ Address netip.Addr }

// SendMessage is a message to one member, best effort.
type SendMessage struct {
	To      string
	Payload []byte
}

// AcquireProbe asks the wire whether anybody answers for the address.
type AcquireProbe struct {
	ID       uint64
	Address  netip.Addr
	Links    []int
	Attempts int
	Interval time.Duration
}

// LivenessProbe asks whether a default gateway or another node answers on the wire, which tells a dead neighbour from a cut cable
// of one's own.
type LivenessProbe struct {
	ID       uint64
	Attempts int
	Interval time.Duration
}

// RejoinGossip asks for the seeds to be contacted at once.
type RejoinGossip struct{}

// HandoverFinished says that after Leave nothing is held any more.
type HandoverFinished struct{}

// The kinds of Notes.
const (
	EventTaken       = "Taken"    // this node holds the address now
	EventGivenUp     = "Given"    // this node gave the address up
	EventConflict    = "Conflict" // a host that is no member answers for the address
	EventStrayAnswer = "Stray"    // a member answers for the address without a claim
)

// Event is something that a person may want to know.
type Event struct {
	Kind    string
	Address netip.Addr
	// Reason is why, for EventTaken and EventGivenUp.
	Reason     names.Reason
	ForeignMAC facts.MAC // of who answers, for EventConflict and EventStrayAnswer
	Text       string
	// TakeoverDelay is the time from the last sign of life of the former holder until this node took the address; 0 when
	// that is not known.
	TakeoverDelay time.Duration
}

// IsForeignAnswer says that the Note tells of somebody else who answers for the address.
func (n Event) IsForeignAnswer() bool { return n.Kind == EventConflict || n.Kind == EventStrayAnswer }

func (HoldAddress) isEffect()        {}
func (DropAddress) isEffect()        {}
func (RepeatAnnouncement) isEffect() {}
func (SendMessage) isEffect()        {}
func (AcquireProbe) isEffect()       {}
func (LivenessProbe) isEffect()      {}
func (RejoinGossip) isEffect()       {}
func (HandoverFinished) isEffect()   {}
func (Event) isEffect()              {}

// Holder says who holds an address, as far as this node knows.
type Holder struct {
	Address netip.Addr
	Node    string
	Epoch   uint64
	// Alive says that the holder is a member that is not given up for dead.
	Alive bool
}

// Holders lists the claims that are not released, sorted by address.
func (m *Machine) Holders() []Holder {
	var out []Holder
	for _, a := range m.addressesByIP {
		if c := a.claim; c.Epoch > 0 && !c.Released {
			out = append(out, Holder{Address: a.ip, Node: c.Holder, Epoch: c.Epoch, Alive: m.isLiveClaim(c)})
		}
	}
	slices.SortFunc(out, func(x, y Holder) int { return x.Address.Compare(y.Address) })
	return out
}

// IsClaimed says whether some node has a claim to the address that is not released.
func (m *Machine) IsClaimed(ip netip.Addr) bool {
	a := m.addressesByIP[ip]
	return a != nil && a.claim.Epoch > 0 && !a.claim.Released
}

// stepOutput gathers the effects of one step.
type stepOutput struct {
	addressEffects    []Effect // Hold, Drop and Announce, in order
	claimsToBroadcast []Claim  // claims that every member has to hear of
	claimsByBatch     map[batchKey][]Claim
	batchOrder        []batchKey // of the batches
	messages          []SendMessage
	otherEffects      []Effect
	handoverFinished  bool
}

// batchKey is the kind and the receiver of claims that travel together.
type batchKey struct {
	kind     byte
	receiver string
}

// orderedEffects puts the effects of a step in order: what is answered for comes before the messages that make another stop.
func (m *Machine) orderedEffects() []Effect {
	t := &m.output
	out := t.addressEffects
	for _, c := range t.claimsToBroadcast {
		m.repeatsLeft[m.ensureAddress(c.Address)] = claimRepeats
	}
	m.broadcastClaims(kindClaims, t.claimsToBroadcast)
	for _, b := range t.batchOrder {
		for chunk := range slices.Chunk(t.claimsByBatch[b], claimsPerMessage) {
			m.sendMessage(b.receiver, appendClaims(messageHeader(b.kind), chunk))
		}
	}
	for _, s := range t.messages {
		out = append(out, s)
	}
	out = append(out, t.otherEffects...)
	if t.handoverFinished {
		out = append(out, HandoverFinished{})
	}
	return out
}

// claimRepeats is how often a new claim is told again, with the next beacons: a datagram that is lost must not leave the former
// holder answering.
const claimRepeats = 2

// repeatNewClaims tells new claims again.
func (m *Machine) repeatNewClaims() {
	var again []Claim
	for a, left := range m.repeatsLeft {
		again = append(again, a.claim)
		if m.repeatsLeft[a] = left - 1; left <= 1 {
			delete(m.repeatsLeft, a)
		}
	}
	slices.SortFunc(again, func(x, y Claim) int { return x.Address.Compare(y.Address) })
	m.broadcastClaims(kindClaims, again)
}

func (m *Machine) sendMessage(to string, payload []byte) {
	m.output.messages = append(m.output.messages, SendMessage{To: to, Payload: payload})
}

// broadcastClaims sends claims to every other member.
func (m *Machine) broadcastClaims(kind byte, claims []Claim) {
	for chunk := range slices.Chunk(claims, claimsPerMessage) {
		payload := appendClaims(messageHeader(kind), chunk)
		for _, n := range m.otherMembers {
			m.sendMessage(n, payload)
		}
	}
}

// queueClaim has a claim sent to one member, together with others of the same step.
func (m *Machine) queueClaim(kind byte, to string, c Claim) {
	b := batchKey{kind, to}
	if m.output.claimsByBatch == nil {
		m.output.claimsByBatch = map[batchKey][]Claim{}
	}
	if len(m.output.claimsByBatch[b]) == 0 {
		m.output.batchOrder = append(m.output.batchOrder, b)
	}
	m.output.claimsByBatch[b] = append(m.output.claimsByBatch[b], c)
}

func (m *Machine) emitEffect(e Effect) { m.output.otherEffects = append(m.output.otherEffects, e) }

func (m *Machine) emitAddressEffect(e Effect) {
	m.output.addressEffects = append(m.output.addressEffects, e)
}
