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
	o    Options
	list *memberlist.Memberlist
	self netip.AddrPort

	mu    sync.Mutex // guards nodes; held while a set is delivered, so that a later one is never overtaken
	nodes map[string]memberlist.Node
	meta  atomic.Pointer[[]byte]
	// state is what is served in a full exchange.
	state  atomic.Pointer[[]byte]
	seeds  atomic.Pointer[[]string]
	synced atomic.Bool

	sets     chan facts.MemberSet
	messages chan Message
	remote   chan []byte
	out      chan Message // From holds the receiver
	rejoin   chan struct{}
	update   chan struct{}
	// strangers are addresses that greeted and are no members.
	strangers chan string
	dropped   atomic.Uint64
}

// New opens the sockets. The speaker is alone until Run has reached a seed.
func New(o Options) (*Members, error) {
	m := &Members{
		o: o, sets: make(chan facts.MemberSet, 1), messages: make(chan Message, 4096), remote: make(chan []byte, 16),
		nodes: map[string]memberlist.Node{}, out: make(chan Message, 4096), rejoin: make(chan struct{}, 1), update: make(chan struct{}, 1),
		strangers: make(chan string, 1),
	}
	m.SetMACs(nil)
	m.SetState(nil)
	m.SetSeeds(nil)
	key := sha256.Sum256(o.Key)
	c := memberlist.DefaultLANConfig()
	c.Name, c.BindAddr, c.BindPort, c.AdvertisePort = o.Name, o.BindAddress.String(), o.BindPort, o.BindPort
	c.SecretKey = key[:]
	c.Delegate, c.Events = (*delegate)(m), (*watcher)(m)
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
	m.list = list
	n := list.LocalNode()
	a, _ := netip.AddrFromSlice(n.Addr)
	m.self = netip.AddrPortFrom(a.Unmap(), n.Port)
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
func (m *Members) Address() netip.AddrPort { return m.self }

// Sets delivers who is alive, now and after each change; the latest only.
func (m *Members) Sets() <-chan facts.MemberSet { return m.sets }

// Messages delivers the messages of others, in no certain order.
func (m *Members) Messages() <-chan Message { return m.messages }

// RemoteStates delivers the full states of others.
func (m *Members) RemoteStates() <-chan []byte { return m.remote }

// SetState sets what is served in a full exchange.
func (m *Members) SetState(state []byte) { m.state.Store(&state) }

// SetSeeds sets the addresses at which others may be found; the port is ours unless one is given.
func (m *Members) SetSeeds(addresses []string) { m.seeds.Store(&addresses) }

// Rejoin contacts the seeds that are no members at once.
func (m *Members) Rejoin() { poke(m.rejoin) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// metaMACs is how many Ethernet addresses fit into what memberlist carries about a node (512 bytes).
const metaMACs = 64

// SetMACs tells the others the Ethernet addresses of this node.
func (m *Members) SetMACs(macs []facts.MAC) {
	b := binary.BigEndian.AppendUint64(nil, m.o.Nonce)
	for _, mac := range macs[:min(len(macs), metaMACs)] {
		b = append(b, mac[:]...)
	}
	if old := m.meta.Swap(&b); old != nil && !slices.Equal(*old, b) {
		poke(m.update)
	}
}

// Send sends a message to one member, best effort.
func (m *Members) Send(to string, payload []byte) {
	select {
	case m.out <- Message{From: to, Payload: payload}:
	default:
		m.dropped.Add(1)
	}
}

// Run joins and keeps joined until ctx ends; then it leaves, so that the others know at once.
func (m *Members) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { m.join(ctx) })
	parts.Go(func() { m.updates(ctx) })
	parts.Go(func() { m.greet(ctx) })
	parts.Go(func() { m.meet(ctx) })
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case msg := <-m.out:
			m.transmit(msg)
		}
	}
	parts.Wait()
	if err := m.list.Leave(500 * time.Millisecond); err != nil {
		m.o.Log.Debug("leaving the gossip", "error", err)
	}
	if err := m.list.Shutdown(); err != nil {
		return fmt.Errorf("closing the gossip sockets: %w", err)
	}
	return nil
}

// updates tells the others when this node's Ethernet addresses changed. It is apart from the messages: memberlist waits
// for somebody to hear it.
func (m *Members) updates(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.update:
		}
		if err := m.list.UpdateNode(time.Second); err != nil {
			m.o.Log.Debug("telling the others about this node", "error", err)
		}
	}
}

// transmit puts the name of this node before the payload and sends it.
func (m *Members) transmit(msg Message) {
	m.mu.Lock()
	n, ok := m.nodes[msg.From]
	m.mu.Unlock()
	if !ok {
		return
	}
	b := append([]byte{byte(len(m.o.Name))}, m.o.Name...)
	if err := m.list.SendBestEffort(&n, append(b, msg.Payload...)); err != nil {
		m.o.Log.Debug("sending", "to", msg.From, "error", err)
	}
}

const (
	// lonely is how often the seeds are tried while no other member is known, joined how often otherwise: a healed
	// partition is found by it.
	lonely = 500 * time.Millisecond
	joined = 5 * time.Second
)

// join contacts the seeds that are no members, again and again.
func (m *Members) join(ctx context.Context) {
	for {
		if missing := m.missing(); len(missing) > 0 {
			if n, err := m.list.Join(missing); n > 0 {
				m.synced.Store(true)
				m.change(func() {})
			} else if err != nil {
				m.o.Log.Debug("joining", "seeds", missing, "error", err)
			}
		}
		wait := joined
		m.mu.Lock()
		if len(m.nodes) < 2 {
			wait = lonely
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-m.rejoin:
		case <-time.After(wait):
		}
	}
}

// hellos is how often a datagram goes to each seed that is no member. Whoever gets one from a stranger joins it: so a
// partition that heals is noticed at once, though an attempt to join a dead node takes seconds to fail.
const hellos = 300 * time.Millisecond

// greet sends hellos until ctx ends.
func (m *Members) greet(ctx context.Context) {
	t := time.NewTicker(hellos)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		hello := append([]byte{0}, m.self.String()...)
		for _, s := range m.missing() {
			if err := m.list.SendToAddress(memberlist.Address{Addr: s}, hello); err != nil {
				m.o.Log.Debug("greeting", "seed", s, "error", err)
			}
		}
	}
}

// greeted takes in a hello. Hellos of members are late.
func (m *Members) greeted(address string) {
	m.mu.Lock()
	known := slices.ContainsFunc(slices.Collect(maps.Values(m.nodes)), func(n memberlist.Node) bool { return n.Address() == address })
	m.mu.Unlock()
	if known {
		return
	}
	select {
	case m.strangers <- address:
	default:
	}
}

// meet joins strangers, one after the other: they were heard a moment ago.
func (m *Members) meet(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-m.strangers:
			if n, err := m.list.Join([]string{s}); n > 0 {
				m.synced.Store(true)
				m.change(func() {})
			} else if err != nil {
				m.o.Log.Debug("joining", "stranger", s, "error", err)
			}
		}
	}
}

// missing returns the seeds that are no members, with ports.
func (m *Members) missing() []string {
	known := map[string]bool{m.Address().String(): true}
	m.mu.Lock()
	for _, n := range m.nodes {
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

// change edits the members and delivers them as they are then.
func (m *Members) change(edit func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	edit()
	set := facts.MemberSet{Synced: m.synced.Load()}
	for _, name := range slices.Sorted(maps.Keys(m.nodes)) {
		n := m.nodes[name]
		set.Members = append(set.Members, member(&n))
	}
	for {
		select {
		case m.sets <- set:
			return
		default:
		}
		select {
		case <-m.sets:
		default:
		}
	}
}

func member(n *memberlist.Node) facts.Member {
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
