package elect

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// Input is a fact that the Machine is stepped with.
type Input interface{ isInput() }

// BidsChanged are changes of the addresses that may be held. The first one means that the whole
// cluster state is known.
type BidsChanged struct {
	Bids []intent.Bid
	// GoneAddresses are addresses that no node can serve any more.
	GoneAddresses []netip.Addr
}

// MembersChanged is the set of all live members.
type MembersChanged struct{ MemberSet facts.MemberSet }

// MessageReceived is a message from another member.
type MessageReceived struct {
	From    string
	Payload []byte
}

// RemoteStateReceived is the full state of another member.
type RemoteStateReceived struct{ Payload []byte }

// ProbeFinished is the result of an AcquireProbe or a LivenessProbe.
type ProbeFinished struct{ Result facts.ProbeResult }

// ConflictDetected reports that another host answers for an address that this node holds.
type ConflictDetected struct{ Conflict facts.Conflict }

// ClaimsRestored are the claims of the checkpoint. Every other source of claims is newer.
type ClaimsRestored struct{ Claims []Claim }

// HandoverRequested asks the Machine to hand over all addresses, because the speaker is about to
// stop.
type HandoverRequested struct{}

// TimePassed has no content: only the time of the step counts.
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

// Effect is an action that the Machine asks its caller to perform.
type Effect interface{ isEffect() }

// HoldAddress starts answering for an address, or changes the links.
type HoldAddress struct{ Binding intent.Binding }

// DropAddress stops answering for an address.
type DropAddress struct{ Address netip.Addr }

// RepeatAnnouncement announces an address again that this node already answers for.
type RepeatAnnouncement struct{ Address netip.Addr }

// SendMessage sends a message to one member. It may be lost.
type SendMessage struct {
	To      string
	Payload []byte
}

// AcquireProbe asks on the segment whether a host answers for the address (RFC 5227 section 2.1).
type AcquireProbe struct {
	ID       uint64
	Address  netip.Addr
	Links    []int
	Attempts int
	Interval time.Duration
}

// LivenessProbe asks whether a default gateway or another node answers. An answer shows that this
// node is not cut off itself.
type LivenessProbe struct {
	ID       uint64
	Attempts int
	Interval time.Duration
}

// RejoinGossip contacts the seeds at once.
type RejoinGossip struct{}

// HandoverFinished reports that nothing is held any more after HandoverRequested.
type HandoverFinished struct{}

// The kinds of Events. They are values of the metric label "event".
const (
	EventAddressTaken   = "Taken"    // this node holds the address now
	EventAddressGivenUp = "Given"    // this node gave the address up
	EventConflict       = "Conflict" // a host outside of the cluster answers for the address
	EventStrayAnswer    = "Stray"    // a member answers for the address without a claim
)

// Event is something that users may want to know.
type Event struct {
	Kind    string
	Address netip.Addr
	// Reason is set for EventAddressTaken and EventAddressGivenUp.
	Reason     names.Reason
	ForeignMAC facts.MAC // the host that answers, for EventConflict and EventStrayAnswer
	Text       string
	// TakeoverDelay is the time from the last sign of life of the previous holder until this node
	// took the address; 0 if it is not known.
	TakeoverDelay time.Duration
}

// IsForeignAnswer reports whether another host answered for the address.
func (e Event) IsForeignAnswer() bool {
	return e.Kind == EventConflict || e.Kind == EventStrayAnswer
}

func (HoldAddress) isEffect()        {}
func (DropAddress) isEffect()        {}
func (RepeatAnnouncement) isEffect() {}
func (SendMessage) isEffect()        {}
func (AcquireProbe) isEffect()       {}
func (LivenessProbe) isEffect()      {}
func (RejoinGossip) isEffect()       {}
func (HandoverFinished) isEffect()   {}
func (Event) isEffect()              {}

// Holder is the holder of an address, as far as this node knows.
type Holder struct {
	Address netip.Addr
	Node    string
	Epoch   uint64
	// IsAlive is set when the holder is a member that is not declared dead.
	IsAlive bool
}

// Holders returns the holders of all claims that are not released, sorted by address.
func (m *Machine) Holders() []Holder {
	var out []Holder
	for _, a := range m.addressesByIP {
		if c := a.claim; c.Epoch > 0 && !c.Released {
			out = append(out, Holder{Address: a.ip, Node: c.Holder, Epoch: c.Epoch, IsAlive: m.isLiveClaim(c)})
		}
	}
	slices.SortFunc(out, func(x, y Holder) int { return x.Address.Compare(y.Address) })
	return out
}

// IsClaimed reports whether a node has a claim to the address that is not released.
func (m *Machine) IsClaimed(ip netip.Addr) bool {
	a := m.addressesByIP[ip]
	return a != nil && a.claim.Epoch > 0 && !a.claim.Released
}

// stepOutput collects the effects of one step.
type stepOutput struct {
	addressEffects    []Effect // HoldAddress, DropAddress and RepeatAnnouncement, in order
	claimsToBroadcast []Claim  // claims for all members
	claimsByBatch     map[claimBatchKey][]Claim
	claimBatchOrder   []claimBatchKey // order of claimsByBatch
	messages          []SendMessage
	otherEffects      []Effect
	handoverFinished  bool
}

// claimBatchKey is the kind and the receiver of claims that share a message.
type claimBatchKey struct {
	kind     byte
	receiver string
}

// orderedEffects returns the effects of the step. Changes of what this node answers for come before
// the messages that make another node stop.
func (m *Machine) orderedEffects() []Effect {
	o := &m.output
	out := o.addressEffects
	for _, c := range o.claimsToBroadcast {
		m.claimRepeatsLeftByAddress[m.ensureAddressState(c.Address)] = claimRepeatCount
	}
	m.broadcastClaims(kindClaims, o.claimsToBroadcast)
	for _, b := range o.claimBatchOrder {
		for chunk := range slices.Chunk(o.claimsByBatch[b], claimsPerMessage) {
			m.sendMessage(b.receiver, appendClaims(encodeMessageHeader(b.kind), chunk))
		}
	}
	for _, s := range o.messages {
		out = append(out, s)
	}
	out = append(out, o.otherEffects...)
	if o.handoverFinished {
		out = append(out, HandoverFinished{})
	}
	return out
}

// claimRepeatCount is how often a new claim is repeated, with the next beacons. A lost datagram
// must not leave the previous holder answering.
const claimRepeatCount = 2

// repeatNewClaims sends new claims again.
func (m *Machine) repeatNewClaims() {
	var again []Claim
	for a, left := range m.claimRepeatsLeftByAddress {
		again = append(again, a.claim)
		if m.claimRepeatsLeftByAddress[a] = left - 1; left <= 1 {
			delete(m.claimRepeatsLeftByAddress, a)
		}
	}
	slices.SortFunc(again, func(x, y Claim) int { return x.Address.Compare(y.Address) })
	m.broadcastClaims(kindClaims, again)
}

func (m *Machine) sendMessage(to string, payload []byte) {
	m.output.messages = append(m.output.messages, SendMessage{To: to, Payload: payload})
}

// broadcastClaims sends claims to all other members.
func (m *Machine) broadcastClaims(kind byte, claims []Claim) {
	for chunk := range slices.Chunk(claims, claimsPerMessage) {
		payload := appendClaims(encodeMessageHeader(kind), chunk)
		for _, n := range m.otherMembers {
			m.sendMessage(n, payload)
		}
	}
}

// queueClaim adds a claim to the messages for one member. Claims of one step share messages.
func (m *Machine) queueClaim(kind byte, to string, c Claim) {
	b := claimBatchKey{kind, to}
	if m.output.claimsByBatch == nil {
		m.output.claimsByBatch = map[claimBatchKey][]Claim{}
	}
	if len(m.output.claimsByBatch[b]) == 0 {
		m.output.claimBatchOrder = append(m.output.claimBatchOrder, b)
	}
	m.output.claimsByBatch[b] = append(m.output.claimsByBatch[b], c)
}

func (m *Machine) emitEffect(e Effect) { m.output.otherEffects = append(m.output.otherEffects, e) }

func (m *Machine) emitAddressEffect(e Effect) {
	m.output.addressEffects = append(m.output.addressEffects, e)
}
