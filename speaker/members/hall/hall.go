// Package hall is the gossip of speakers in memory, the stand-in for package members in tests. Who is in the Hall is known
// to all, and messages arrive at once and in order; tests have members vanish, properly or not, and cut them off. It works
// inside testing/synctest bubbles, and opens no socket.
package hall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/members"
)

// queue is how many messages wait for a member that takes none; more are lost, as with datagrams.
const queue = 4096

// Hall is where members meet. Any goroutine may use it; the zero value is not usable.
type Hall struct {
	mu      sync.Mutex // guards what follows, and the members' state
	members []*Member  // sorted by name
}

// New returns an empty Hall.
func New() *Hall { return &Hall{} }

// Member is one that was in the Hall.
type Member struct {
	hall     *Hall
	facts    facts.Member
	state    []byte
	cut      bool
	sets     chan facts.MemberSet
	messages chan members.Message
	remote   chan []byte
}

// Join has somebody come in, who exchanges states with everybody at once.
func (h *Hall) Join(name string, address netip.Addr, nonce uint64) *Member {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := &Member{
		hall: h, facts: facts.Member{Name: name, Address: address, Nonce: nonce},
		sets: make(chan facts.MemberSet, 1), messages: make(chan members.Message, queue), remote: make(chan []byte, queue),
	}
	for _, o := range h.members {
		if !o.cut {
			offer(m.remote, o.state)
		}
	}
	h.members = append(h.members, m)
	slices.SortFunc(h.members, func(x, y *Member) int { return strings.Compare(x.facts.Name, y.facts.Name) })
	h.tell()
	return m
}

// tell says to everybody who is there. The caller holds mu.
func (h *Hall) tell() {
	set := facts.MemberSet{Synced: len(h.members) > 1}
	for _, m := range h.members {
		set.Members = append(set.Members, m.facts)
	}
	for _, m := range h.members {
		select {
		case <-m.sets: // an earlier one that was not taken
		default:
		}
		m.sets <- set
	}
}

// String is a picture of the Hall: who is there, and who of them is cut off.
func (h *Hall) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	for _, m := range h.members {
		fmt.Fprintf(&b, "%s %s", m.facts.Name, m.facts.Address)
		if m.cut {
			b.WriteString(" cut off")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Go has the member leave; all others know at once.
func (m *Member) Go() {
	m.hall.mu.Lock()
	defer m.hall.mu.Unlock()
	m.hall.members = slices.DeleteFunc(m.hall.members, func(o *Member) bool { return o == m })
	m.hall.tell()
}

// Cut loses every message from and to the member; nothing tells anybody so.
func (m *Member) Cut() {
	m.hall.mu.Lock()
	defer m.hall.mu.Unlock()
	m.cut = true
}

// Send sends a message to a member of that name.
func (m *Member) Send(to string, payload []byte) {
	m.hall.mu.Lock()
	defer m.hall.mu.Unlock()
	for _, o := range m.hall.members {
		if o.facts.Name == to && !o.cut && !m.cut {
			offer(o.messages, members.Message{From: m.facts.Name, Payload: payload})
		}
	}
}

// SetState sets what those are told who come in later.
func (m *Member) SetState(state []byte) {
	m.hall.mu.Lock()
	defer m.hall.mu.Unlock()
	m.state = state
}

// SetMACs tells the others the Ethernet addresses of the member.
func (m *Member) SetMACs(macs []facts.MAC) {
	m.hall.mu.Lock()
	defer m.hall.mu.Unlock()
	m.facts.MACs = macs
	m.hall.tell()
}

// Rejoin does nothing: nobody is ever out of sight.
func (m *Member) Rejoin() {}

// Sets delivers who is in the Hall, the latest only.
func (m *Member) Sets() <-chan facts.MemberSet { return m.sets }

// Messages delivers what others sent.
func (m *Member) Messages() <-chan members.Message { return m.messages }

// RemoteStates delivers the states of those who were there before.
func (m *Member) RemoteStates() <-chan []byte { return m.remote }

// offer gives up what finds no room.
func offer[T any](c chan T, v T) {
	select {
	case c <- v:
	default:
	}
}
