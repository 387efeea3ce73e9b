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
	// AddressesWithoutBid are addresses that no node can serve any more.
	AddressesWithoutBid []netip.Addr
}

// MembersChanged is the set of all live members.
type MembersChanged struct{ MemberSet facts.MemberSet }

// MessageReceived is a message from another member.
type MessageReceived struct {
	From    string
	Payload []byte
}

// RemoteStateReceived is the full state of another member.
type RemoteStateReceived struct{ EncodedClaims []byte }

// ProbeFinished is the result of an AcquireProbe or a ReachabilityProbe.
type ProbeFinished struct{ Result facts.ProbeResult }

// ConflictDetected reports that another host answers for an address that this node holds.
type ConflictDetected struct{ Conflict facts.Conflict }

// ClaimsRestored are the claims of the checkpoint. Every other source of claims is newer.
type ClaimsRestored struct{ Claims []Claim }

// ShutdownHandoverRequested asks the Machine to hand over all addresses, because the speaker is
// about to stop.
type ShutdownHandoverRequested struct{}

// TimePassed has no content: only the time of the step counts.
type TimePassed struct{}

func (BidsChanged) isInput()               {}
func (MembersChanged) isInput()            {}
func (MessageReceived) isInput()           {}
func (RemoteStateReceived) isInput()       {}
func (ProbeFinished) isInput()             {}
func (ConflictDetected) isInput()          {}
func (ClaimsRestored) isInput()            {}
func (ShutdownHandoverRequested) isInput() {}
func (TimePassed) isInput()                {}

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
	To       string
	Payload  []byte
	Priority Priority
}

// Priority says which messages go before others.
type Priority int

// The priorities. Signs of life go first, so that no number of claims delays them.
const (
	PriorityBulk   Priority = iota // claims for all members
	PriorityNormal                 // claims that one member waits for
	PriorityUrgent                 // who lives
)

// AcquireProbe asks on the segment whether a host answers for the address (RFC 5227 section 2.1).
type AcquireProbe struct {
	ID            uint64
	Address       netip.Addr
	LinkIndexes   []int
	FramesPerLink int
	FrameInterval time.Duration
	// TargetMAC is the only host that is asked; zero asks all hosts.
	TargetMAC facts.MAC
}

// ReachabilityProbe asks whether a default gateway or another node answers. An answer shows that
// this node is not cut off itself.
type ReachabilityProbe struct {
	ID              uint64
	FramesPerTarget int
	FrameInterval   time.Duration
	// OnlyGateways leaves out the other nodes.
	OnlyGateways bool
}

// RejoinGossip contacts the seeds at once.
type RejoinGossip struct{}

// ShutdownHandoverFinished reports that nothing is held any more after ShutdownHandoverRequested.
type ShutdownHandoverFinished struct{}

// The kinds of Events. They are values of the metric label "event".
const (
	EventAddressTaken       = "Taken"    // this node holds the address now
	EventAddressGivenUp     = "Given"    // this node gave the address up
	EventForeignHostAnswers = "Conflict" // a host outside of the cluster answers for the address
	EventAnswerWithoutClaim = "Stray"    // a member answers for the address without a claim
)

// Event is something that users may want to know.
type Event struct {
	Kind    string
	Address netip.Addr
	// Reason is set for EventAddressTaken and EventAddressGivenUp.
	Reason names.Reason
	// the host that answers, for EventForeignHostAnswers and EventAnswerWithoutClaim
	AnsweringMAC facts.MAC
	Text         string
	// FormerHolder is the node from which this node took the address; empty if there was none.
	FormerHolder string
	// TakeoverDelay is the time from the last sign of life of the previous holder until this node
	// took the address; 0 if it is not known.
	TakeoverDelay time.Duration
}

// IsAnswerOfAnotherHost reports whether another host answered for the address.
func (e Event) IsAnswerOfAnotherHost() bool {
	return e.Kind == EventForeignHostAnswers || e.Kind == EventAnswerWithoutClaim
}

func (HoldAddress) isEffect()              {}
func (DropAddress) isEffect()              {}
func (RepeatAnnouncement) isEffect()       {}
func (SendMessage) isEffect()              {}
func (AcquireProbe) isEffect()             {}
func (ReachabilityProbe) isEffect()        {}
func (RejoinGossip) isEffect()             {}
func (ShutdownHandoverFinished) isEffect() {}
func (Event) isEffect()                    {}

// Holder is the holder of an address, as far as this node knows.
type Holder struct {
	Address netip.Addr
	Node    string
	Epoch   uint64
	// IsAlive is set when the holder is a member that is not declared dead.
	IsAlive bool
	// FormerHolders are those of the claim.
	FormerHolders []string
}

// Holders returns the holders of all claims that are not released, sorted by address.
func (m *Machine) Holders() []Holder {
	var out []Holder
	for _, a := range m.addressesByIP {
		if c := a.highestKnownClaim; c.Epoch > 0 && !c.Released {
			out = append(out, Holder{Address: a.ip, Node: c.Holder, Epoch: c.Epoch, IsAlive: m.isLiveClaim(c), FormerHolders: c.FormerHolders})
		}
	}
	slices.SortFunc(out, func(x, y Holder) int { return x.Address.Compare(y.Address) })
	return out
}

// DeadMembers returns the members that are declared dead, sorted.
func (m *Machine) DeadMembers() []string {
	var out []string
	for n := range m.liveness.deadRunNonceByNode {
		if _, member := m.membersByName[n]; member && !m.isAlive(n) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// IsClaimed reports whether a node has a claim to the address that is not released.
func (m *Machine) IsClaimed(ip netip.Addr) bool {
	a := m.addressesByIP[ip]
	return a != nil && a.highestKnownClaim.Epoch > 0 && !a.highestKnownClaim.Released
}
