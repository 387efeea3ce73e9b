// Package members knows which speakers are alive and carries messages between them. It is memberlist behind our values:
// gossip for membership, encrypted datagrams for messages, full exchanges of state at each join. It decides nothing.
// No method waits for the network; what cannot be sent in time is dropped and counted, and the protocol above
// repairs it.
package members

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// Options are what Members are made of.
type Options struct {
	// Name is the name of this node, Nonce this life of the process.
	Name  string
	Nonce uint64
	// BindAddress and BindPort are where gossip is spoken, by TCP and UDP; port 0 takes any.
	BindAddress netip.Addr
	BindPort    int
	// Key encrypts and authenticates every message; its SHA-256 is the AES key.
	Key []byte
	Log *slog.Logger
}

// Message came from another member.
type Message struct {
	From    string
	Payload []byte
}

// Members is this node's place among the speakers. Make it with New.
type Members struct {
	options    Options
	memberlist *memberlist.Memberlist
	address    netip.AddrPort

	mu          sync.Mutex // guards nodes; held while a set is delivered, so that a later one is never overtaken
	nodesByName map[string]memberlist.Node
	metadata    atomic.Pointer[[]byte]
	// state is what is served in a full exchange.
	state  atomic.Pointer[[]byte]
	seeds  atomic.Pointer[[]string]
	synced atomic.Bool

	memberSets      chan facts.MemberSet
	messages        chan Message
	remoteStates    chan []byte
	outgoing        chan Message // From holds the receiver
	rejoinRequests  chan struct{}
	metadataChanges chan struct{}
	// strangers are addresses that greeted and are no members.
	strangers    chan string
	droppedCount atomic.Uint64
}

// New opens the sockets. The speaker is alone until Run has reached a seed.
func New(o Options) (*Members, error) {
	m := &Members{
		options: o, memberSets: make(chan facts.MemberSet, 1), messages: make(chan Message, 4096), remoteStates: make(chan []byte, 16),
		nodesByName: map[string]memberlist.Node{}, outgoing: make(chan Message, 4096), rejoinRequests: make(chan struct{}, 1), metadataChanges: make(chan struct{}, 1),
		strangers: make(chan string, 1),
	}
	m.SetMACs(nil)
	m.SetState(nil)
	m.SetSeeds(nil)
	key := sha256.Sum256(o.Key)
	c := memberlist.DefaultLANConfig()
	c.Name, c.BindAddr, c.BindPort, c.AdvertisePort = o.Name, o.BindAddress.String(), o.BindPort, o.BindPort
	c.SecretKey = key[:]
	c.Delegate, c.Events = (*messageDelegate)(m), (*eventDelegate)(m)
	c.PushPullInterval = 10 * time.Second
	c.TCPTimeout = 2 * time.Second
	c.DeadNodeReclaimTime = time.Second // a node that was replaced under the same name has another address
	c.HandoffQueueDepth = 8192
	c.Logger = log.New(logWriter{o.Log}, "", 0)
	list, err := memberlist.Create(c)
	if err != nil {
		return nil, fmt.Errorf("opening the gossip sockets on %s (--gossip-bind-address, --gossip-bind-port): %w",
			net.JoinHostPort(c.BindAddr, strconv.Itoa(o.BindPort)), err)
	}
	m.memberlist = list
	n := list.LocalNode()
	a, _ := netip.AddrFromSlice(n.Addr)
	m.address = netip.AddrPortFrom(a.Unmap(), n.Port)
	return m, nil
}

// logWriter passes on memberlist's own log at the level debug: what matters of it is seen in the sets.
type logWriter struct{ log *slog.Logger }

// Write takes one line of it.
func (w logWriter) Write(b []byte) (int, error) {
	w.log.Debug("gossip", "text", string(b))
	return len(b), nil
}

// Address is where this member speaks.
func (m *Members) Address() netip.AddrPort { return m.address }

// MemberSets delivers who is alive, now and after each change; the latest only.
func (m *Members) MemberSets() <-chan facts.MemberSet { return m.memberSets }

// Messages delivers the messages of others, in no certain order.
func (m *Members) Messages() <-chan Message { return m.messages }

// RemoteStates delivers the full states of others.
func (m *Members) RemoteStates() <-chan []byte { return m.remoteStates }

// SetState sets what is served in a full exchange.
func (m *Members) SetState(state []byte) { m.state.Store(&state) }

// SetSeeds sets the addresses at which others may be found; the port is ours unless one is given.
func (m *Members) SetSeeds(addresses []string) { m.seeds.Store(&addresses) }

// Rejoin contacts the seeds that are no members at once.
func (m *Members) Rejoin() { wakeUp(m.rejoinRequests) }

func wakeUp(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// maxMetadataMACs is how many Ethernet addresses fit into what memberlist carries about a node (512 bytes).
const maxMetadataMACs = 64

// SetMACs tells the others the Ethernet addresses of this node.
func (m *Members) SetMACs(macs []facts.MAC) {
	b := binary.BigEndian.AppendUint64(nil, m.options.Nonce)
	for _, mac := range macs[:min(len(macs), maxMetadataMACs)] {
		b = append(b, mac[:]...)
	}
	if old := m.metadata.Swap(&b); old != nil && !slices.Equal(*old, b) {
		wakeUp(m.metadataChanges)
	}
}

// SendMessage sends a message to one member, best effort.
func (m *Members) SendMessage(to string, payload []byte) {
	select {
	case m.outgoing <- Message{From: to, Payload: payload}:
	default:
		m.droppedCount.Add(1)
	}
}

// Run joins and keeps joined until ctx ends; then it leaves, so that the others know at once.
func (m *Members) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { m.joinSeeds(ctx) })
	parts.Go(func() { m.publishMetadata(ctx) })
	parts.Go(func() { m.greetSeeds(ctx) })
	parts.Go(func() { m.joinStrangers(ctx) })
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case msg := <-m.outgoing:
			m.transmitMessage(msg)
		}
	}
	parts.Wait()
	if err := m.memberlist.Leave(500 * time.Millisecond); err != nil {
		m.options.Log.Debug("leaving the gossip", "error", err)
	}
	if err := m.memberlist.Shutdown(); err != nil {
		return fmt.Errorf("closing the gossip sockets: %w", err)
	}
	return nil
}

// publishMetadata tells the others when this node's Ethernet addresses changed. It is apart from the messages: memberlist waits
// for somebody to hear it.
func (m *Members) publishMetadata(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.metadataChanges:
		}
		if err := m.memberlist.UpdateNode(time.Second); err != nil {
			m.options.Log.Debug("telling the others about this node", "error", err)
		}
	}
}

// transmitMessage puts the name of this node before the payload and sends it.
func (m *Members) transmitMessage(msg Message) {
	m.mu.Lock()
	n, ok := m.nodesByName[msg.From]
	m.mu.Unlock()
	if !ok {
		return
	}
	b := append([]byte{byte(len(m.options.Name))}, m.options.Name...)
	if err := m.memberlist.SendBestEffort(&n, append(b, msg.Payload...)); err != nil {
		m.options.Log.Debug("sending", "to", msg.From, "error", err)
	}
}

const (
	// aloneJoinInterval is how often the seeds are tried while no other member is known, joined how often otherwise: a healed
	// partition is found by it.
	aloneJoinInterval = 500 * time.Millisecond
	joinInterval      = 5 * time.Second
)

// joinSeeds contacts the seeds that are no members, again and again.
func (m *Members) joinSeeds(ctx context.Context) {
	for {
		if missing := m.missingSeeds(); len(missing) > 0 {
			if n, err := m.memberlist.Join(missing); n > 0 {
				m.synced.Store(true)
				m.changeMembers(func() {})
			} else if err != nil {
				m.options.Log.Debug("joining", "seeds", missing, "error", err)
			}
		}
		wait := joinInterval
		m.mu.Lock()
		if len(m.nodesByName) < 2 {
			wait = aloneJoinInterval
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-m.rejoinRequests:
		case <-time.After(wait):
		}
	}
}

// greetingInterval is how often a datagram goes to each seed that is no member. Whoever gets one from a stranger joins it: so a
// partition that heals is noticed at once, though an attempt to join a dead node takes seconds to fail.
const greetingInterval = 300 * time.Millisecond

// greetSeeds sends hellos until ctx ends.
func (m *Members) greetSeeds(ctx context.Context) {
	t := time.NewTicker(greetingInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		hello := append([]byte{0}, m.address.String()...)
		for _, s := range m.missingSeeds() {
			if err := m.memberlist.SendToAddress(memberlist.Address{Addr: s}, hello); err != nil {
				m.options.Log.Debug("greeting", "seed", s, "error", err)
			}
		}
	}
}

// handleGreeting takes in a hello. Hellos of members are late.
func (m *Members) handleGreeting(address string) {
	m.mu.Lock()
	known := slices.ContainsFunc(slices.Collect(maps.Values(m.nodesByName)), func(n memberlist.Node) bool { return n.Address() == address })
	m.mu.Unlock()
	if known {
		return
	}
	select {
	case m.strangers <- address:
	default:
	}
}

// joinStrangers joins strangers, one after the other: they were heard a moment ago.
func (m *Members) joinStrangers(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-m.strangers:
			if n, err := m.memberlist.Join([]string{s}); n > 0 {
				m.synced.Store(true)
				m.changeMembers(func() {})
			} else if err != nil {
				m.options.Log.Debug("joining", "stranger", s, "error", err)
			}
		}
	}
}

// missingSeeds returns the seeds that are no members, with ports.
func (m *Members) missingSeeds() []string {
	known := map[string]bool{m.Address().String(): true}
	m.mu.Lock()
	for _, n := range m.nodesByName {
		known[n.Address()] = true
	}
	m.mu.Unlock()
	var out []string
	for _, s := range *m.seeds.Load() {
		if _, _, err := net.SplitHostPort(s); err != nil {
			s = net.JoinHostPort(s, strconv.Itoa(int(m.Address().Port())))
		}
		if !known[s] {
			out = append(out, s)
		}
	}
	return out
}

// changeMembers edits the members and delivers them as they are then.
func (m *Members) changeMembers(edit func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	edit()
	set := facts.MemberSet{Synced: m.synced.Load()}
	for _, name := range slices.Sorted(maps.Keys(m.nodesByName)) {
		n := m.nodesByName[name]
		set.Members = append(set.Members, memberOfNode(&n))
	}
	for {
		select {
		case m.memberSets <- set:
			return
		default:
		}
		select {
		case <-m.memberSets:
		default:
		}
	}
}

func memberOfNode(n *memberlist.Node) facts.Member {
	a, _ := netip.AddrFromSlice(n.Addr)
	out := facts.Member{Name: n.Name, Address: a.Unmap()}
	if len(n.Meta) < 8 {
		return out
	}
	out.Nonce = binary.BigEndian.Uint64(n.Meta)
	for b := n.Meta[8:]; len(b) >= 6; b = b[6:] {
		out.MACs = append(out.MACs, facts.MAC(b[:6]))
	}
	return out
}
