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

// maxQueuedMessagesPerMember is how many messages wait for a member. Further ones are lost, like
// datagrams.
const maxQueuedMessagesPerMember = 4096

// FakeGossip connects members. Any goroutine may use it. Use New to create it.
type FakeGossip struct {
	mu      sync.Mutex    // guards the fields below, and the state of the members
	members []*FakeMember // sorted by name
}

// NewFakeGossip returns a Gossip without members.
func NewFakeGossip() *FakeGossip { return &FakeGossip{} }

// FakeMember is a current or earlier member of a Gossip.
type FakeMember struct {
	gossip               *FakeGossip
	memberFacts          facts.Member
	fullExchangeState    []byte
	disconnected         bool
	liveMemberUpdates    *latest.Value[facts.MemberSet]
	receivedMessageQueue *latest.BoundedQueue[members.ReceivedMessage]
	receivedFullStates   *latest.BoundedQueue[[]byte]
}

// Join adds a member, which exchanges states with all others at once.
func (h *FakeGossip) Join(name string, address netip.Addr, nonce uint64) *FakeMember {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := &FakeMember{
		gossip: h, memberFacts: facts.Member{Name: name, Address: address, RunNonce: nonce},
		liveMemberUpdates:    latest.NewValue[facts.MemberSet](),
		receivedMessageQueue: latest.NewBoundedQueue[members.ReceivedMessage](maxQueuedMessagesPerMember),
		receivedFullStates:   latest.NewBoundedQueue[[]byte](maxQueuedMessagesPerMember),
	}
	for _, o := range h.members {
		if !o.disconnected {
			m.receivedFullStates.PutIfRoom(o.fullExchangeState)
		}
	}
	h.members = append(h.members, m)
	slices.SortFunc(h.members, func(x, y *FakeMember) int { return strings.Compare(x.memberFacts.Name, y.memberFacts.Name) })
	h.deliverMemberSets()
	return m
}

// deliverMemberSets delivers the current members to all of them. The caller holds mu.
func (h *FakeGossip) deliverMemberSets() {
	set := facts.MemberSet{HasExchangedFullState: len(h.members) > 1}
	for _, m := range h.members {
		set.Members = append(set.Members, m.memberFacts)
	}
	for _, m := range h.members {
		m.liveMemberUpdates.Put(set)
	}
}

// String lists the members, with those that are disconnected.
func (h *FakeGossip) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	for _, m := range h.members {
		fmt.Fprintf(&b, "%s %s", m.memberFacts.Name, m.memberFacts.Address)
		if m.disconnected {
			b.WriteString(" cut off")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Leave removes the member. All others know at once.
func (m *FakeMember) Leave() {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	m.gossip.members = slices.DeleteFunc(m.gossip.members, func(o *FakeMember) bool { return o == m })
	m.gossip.deliverMemberSets()
}

// LoseAllMessages loses all messages from and to the member. It stays in the sets of the others.
func (m *FakeMember) LoseAllMessages() {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	m.disconnected = true
}

// SendUrgentMessage sends a message to the member of that name.
func (m *FakeMember) SendUrgentMessage(to string, payload []byte) {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	for _, o := range m.gossip.members {
		if o.memberFacts.Name == to && !o.disconnected && !m.disconnected {
			o.receivedMessageQueue.PutIfRoom(members.ReceivedMessage{SenderName: m.memberFacts.Name, Payload: payload})
		}
	}
}

// SendNormalPriorityMessage sends a message like SendUrgentMessage.
func (m *FakeMember) SendNormalPriorityMessage(to string, payload []byte) {
	m.SendUrgentMessage(to, payload)
}

// SendBulkMessage sends a message like SendUrgentMessage.
func (m *FakeMember) SendBulkMessage(to string, payload []byte) { m.SendUrgentMessage(to, payload) }

// SetFullExchangeState sets the state that later members get. The others get the first one at once,
// since the member had none when it joined.
func (m *FakeMember) SetFullExchangeState(state []byte) {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	for _, o := range m.gossip.members {
		if o != m && m.fullExchangeState == nil && !m.disconnected && !o.disconnected {
			o.receivedFullStates.PutIfRoom(state)
		}
	}
	m.fullExchangeState = state
}

// PublishOwnNode publishes what the others know about the member's node.
func (m *FakeMember) PublishOwnNode(p facts.PublishedNode) {
	m.gossip.mu.Lock()
	defer m.gossip.mu.Unlock()
	m.memberFacts.LinkMACs, m.memberFacts.MaxMessageFormat, m.memberFacts.Links = p.LinkMACs, p.MaxMessageFormat, p.Links
	m.gossip.deliverMemberSets()
}

// ContactMissingSeeds does nothing, because members never lose each other.
func (m *FakeMember) ContactMissingSeeds() {}

// LiveMemberUpdates delivers the current members, the latest set only.
func (m *FakeMember) LiveMemberUpdates() <-chan facts.MemberSet { return m.liveMemberUpdates.C() }

// ReceivedUrgentMessages delivers the messages of others.
func (m *FakeMember) ReceivedUrgentMessages() <-chan members.ReceivedMessage {
	return m.receivedMessageQueue.C()
}

// ReceivedBulkMessages delivers nothing: all messages arrive in one queue.
func (m *FakeMember) ReceivedBulkMessages() <-chan members.ReceivedMessage { return nil }

// ReceivedFullStates delivers the states of the members that joined before.
func (m *FakeMember) ReceivedFullStates() <-chan []byte { return m.receivedFullStates.C() }
