// Package hall is the gossip of speakers in memory, the stand-in for package members in tests. Who is in the Hall is known
// to all, and messages arrive at once and in order; tests have members vanish, properly or not, and cut them off. It works
// inside testing/synctest bubbles, and opens no socket.
package memberstest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/members"
)

// queueLength is how many messages wait for a member that takes none; more are lost, as with datagrams.
const queueLength = 4096

// Gossip is where members meet. Any goroutine may use it; the zero value is not usable.
type Gossip struct {
	mu      sync.Mutex // guards what follows, and the members' state
	members []*Member  // sorted by name
}

// New returns an empty Hall.
func New() *Gossip { return &Gossip{} }

// Member is one that was in the Hall.
type Member struct {
	gossip       *Gossip
	facts        facts.Member
	state        []byte
	disconnected bool
	memberSets   chan facts.MemberSet
	messages     chan members.Message
	remoteStates chan []byte
}

// Join has somebody come in, who exchanges states with everybody at once.
func (h *Gossip) Join(name string, address netip.Addr, nonce uint64) *Member {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := &Member{
		gossip: h, facts: facts.Member{Name: name, Address: address, Nonce: nonce},
		memberSets: make(chan facts.MemberSet, 1), messages: make(chan members.Message, queueLength), remoteStates: make(chan []byte, queueLength),
	}
	for _, o := range h.members {
		if !o.disconnected {
			sendOrDrop(m.remoteStates, o.state)
		}
	}
	h.members = append(h.members, m)
	slices.SortFunc(h.members, func(x, y *Member) int { return strings.Compare(x.facts.Name, y.facts.Name) })
	h.deliverSets()
	return m
}

// deliverSets says to everybody who is there. The caller holds mu.
func (h *Gossip) deliverSets() {
	set := facts.MemberSet{Synced: len(h.members) > 1}
	for _, m := range h.members {
		set.Members = append(set.Members, m.facts)
	}
	for _, m := range h.members {
		select {
		case <-m.memberSets: // an earlier one that was not taken
		default:
		}
		m.memberSets <- set
	}
}

// String is a picture of the Hall: who is there, and who of them is cut off.
func (h *Gossip) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	for _, m := range h.members {
		fmt.Fprintf(&b, "%s %s", m.facts.Name, m.facts.Address)
		if m.disconnected {
			b.WriteString(" cut off")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Leave has the member leave; all others know at once.
func (m *Member) Leave() {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	m.gossip.members = slices.DeleteFunc(m.gossip.members, func(o *Member) bool { return o == m })
	m.gossip.deliverSets()
}

// Disconnect loses every message from and to the member; nothing tells anybody so.
func (m *Member) Disconnect() {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	m.disconnected = true
}

// SendMessage sends a message to a member of that name.
func (m *Member) SendMessage(to string, payload []byte) {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	for _, o := range m.gossip.members {
		if o.facts.Name == to && !o.disconnected && !m.disconnected {
			sendOrDrop(o.messages, members.Message{From: m.facts.Name, Payload: payload})
		}
	}
}

// SetState sets what those are told who come in later.
func (m *Member) SetState(state []byte) {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	m.state = state
}

// SetMACs tells the others the Ethernet addresses of the member.
func (m *Member) SetMACs(macs []facts.MAC) {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	m.facts.MACs = macs
	m.gossip.deliverSets()
}

// Rejoin does nothing: nobody is ever out of sight.
func (m *Member) Rejoin() {}

// MemberSets delivers who is in the Hall, the latest only.
func (m *Member) MemberSets() <-chan facts.MemberSet { return m.memberSets }

// Messages delivers what others sent.
func (m *Member) Messages() <-chan members.Message { return m.messages }

// RemoteStates delivers the states of those who were there before.
func (m *Member) RemoteStates() <-chan []byte { return m.remoteStates }

// sendOrDrop gives up what finds no room.
func sendOrDrop[T any](c chan T, v T) {
	select {
	case c <- v:
	default:
	}
}
