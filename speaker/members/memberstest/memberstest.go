// Package memberstest is a gossip of speakers in memory. It replaces package members in tests. All
// members know each other, and messages arrive at once and in order. Tests can remove a member in
// order, or disconnect it without notice. It works inside testing/synctest bubbles and opens no
// socket.
package memberstest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/members"
)

// messageQueueLength is how many messages wait for a member. Further ones are lost, like datagrams.
const messageQueueLength = 4096

// Gossip connects members. Any goroutine may use it. Use New to create it.
type Gossip struct {
	mu      sync.Mutex // guards the fields below, and the state of the members
	members []*Member  // sorted by name
}

// New returns a Gossip without members.
func New() *Gossip { return &Gossip{} }

// Member is a current or earlier member of a Gossip.
type Member struct {
	gossip       *Gossip
	facts        facts.Member
	localState   []byte
	disconnected bool
	memberSets   *latest.Value[facts.MemberSet]
	messages     *latest.Queue[members.Message]
	remoteStates *latest.Queue[[]byte]
}

// Join adds a member, which exchanges states with all others at once.
func (h *Gossip) Join(name string, address netip.Addr, nonce uint64) *Member {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := &Member{
		gossip: h, facts: facts.Member{Name: name, Address: address, Nonce: nonce},
		memberSets:   latest.NewValue[facts.MemberSet](),
		messages:     latest.NewQueue[members.Message](messageQueueLength),
		remoteStates: latest.NewQueue[[]byte](messageQueueLength),
	}
	for _, o := range h.members {
		if !o.disconnected {
			m.remoteStates.PutIfRoom(o.localState)
		}
	}
	h.members = append(h.members, m)
	slices.SortFunc(h.members, func(x, y *Member) int { return strings.Compare(x.facts.Name, y.facts.Name) })
	h.deliverMemberSets()
	return m
}

// deliverMemberSets delivers the current members to all of them. The caller holds mu.
func (h *Gossip) deliverMemberSets() {
	set := facts.MemberSet{Synced: len(h.members) > 1}
	for _, m := range h.members {
		set.Members = append(set.Members, m.facts)
	}
	for _, m := range h.members {
		m.memberSets.Put(set)
	}
}

// String lists the members, with those that are disconnected.
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

// Leave removes the member. All others know at once.
func (m *Member) Leave() {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	m.gossip.members = slices.DeleteFunc(m.gossip.members, func(o *Member) bool { return o == m })
	m.gossip.deliverMemberSets()
}

// Disconnect loses all messages from and to the member. It stays in the sets of the others.
func (m *Member) Disconnect() {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	m.disconnected = true
}

// SendMessage sends a message to the member of that name.
func (m *Member) SendMessage(to string, payload []byte) {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	for _, o := range m.gossip.members {
		if o.facts.Name == to && !o.disconnected && !m.disconnected {
			o.messages.PutIfRoom(members.Message{From: m.facts.Name, Payload: payload})
		}
	}
}

// SetLocalState sets the state that later members get.
func (m *Member) SetLocalState(state []byte) {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	m.localState = state
}

// SetMACs publishes the Ethernet addresses of the member.
func (m *Member) SetMACs(macs []facts.MAC) {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	m.facts.MACs = macs
	m.gossip.deliverMemberSets()
}

// RejoinSeeds does nothing, because members never lose each other.
func (m *Member) RejoinSeeds() {}

// MemberSets delivers the current members, the latest set only.
func (m *Member) MemberSets() <-chan facts.MemberSet { return m.memberSets.C() }

// Messages delivers the messages of others.
func (m *Member) Messages() <-chan members.Message { return m.messages.C() }

// RemoteStates delivers the states of the members that joined before.
func (m *Member) RemoteStates() <-chan []byte { return m.remoteStates.C() }
