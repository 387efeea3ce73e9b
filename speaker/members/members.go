// Package members knows which speakers are alive and carries messages between them. It wraps
// memberlist: gossip for membership, encrypted datagrams for messages, and a full exchange of state
// at each join. It makes no decisions. No method waits for the network. It drops and counts what
// cannot be sent in time; the election protocol repairs such losses.
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

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// Options configure Members.
type Options struct {
	// Name is the name of this node, Nonce identifies this run of the process.
	Name  string
	Nonce uint64
	// BindAddress and BindPort are the address and port for gossip, TCP and UDP. Port 0 takes any
	// free port.
	BindAddress netip.Addr
	BindPort    int
	// Key encrypts and authenticates all messages. Its SHA-256 is the AES key.
	Key []byte
	Log *slog.Logger
}

// Message is a message from another member.
type Message struct {
	From    string
	Payload []byte
}

// outgoingMessage is a message to another member.
type outgoingMessage struct {
	to      string
	payload []byte
}

// Members is this node's membership in the gossip. Use New to create it.
type Members struct {
	options    Options
	memberlist *memberlist.Memberlist
	address    netip.AddrPort

	mu          sync.Mutex // guards nodesByName; held during delivery, so that sets arrive in order
	nodesByName map[string]memberlist.Node
	metadata    atomic.Pointer[[]byte]
	// localState is what this node sends in a full exchange.
	localState     atomic.Pointer[[]byte]
	seeds          atomic.Pointer[[]string]
	stateExchanged atomic.Bool

	memberSets       *latest.Value[facts.MemberSet]
	messages         *latest.Queue[Message]
	remoteStates     *latest.Queue[[]byte]
	outgoingMessages *latest.Queue[outgoingMessage]
	rejoinRequests   *latest.Wake
	metadataChanges  *latest.Wake
	// strangerAddresses are the addresses of greetings from nodes that are not members.
	strangerAddresses *latest.Queue[string]
}

// New opens the sockets. The speaker is the only member until Run has reached a seed.
func New(o Options) (*Members, error) {
	m := &Members{
		options:           o,
		nodesByName:       map[string]memberlist.Node{},
		memberSets:        latest.NewValue[facts.MemberSet](),
		messages:          latest.NewQueue[Message](4096),
		remoteStates:      latest.NewQueue[[]byte](16),
		outgoingMessages:  latest.NewQueue[outgoingMessage](4096),
		rejoinRequests:    latest.NewWake(),
		metadataChanges:   latest.NewWake(),
		strangerAddresses: latest.NewQueue[string](1),
	}
	m.SetMACs(nil)
	m.SetLocalState(nil)
	m.SetSeeds(nil)
	key := sha256.Sum256(o.Key)
	c := memberlist.DefaultLANConfig()
	c.Name, c.BindAddr, c.BindPort, c.AdvertisePort = o.Name, o.BindAddress.String(), o.BindPort, o.BindPort
	c.SecretKey = key[:]
	c.Delegate, c.Events = (*messageDelegate)(m), (*eventDelegate)(m)
	c.PushPullInterval = 10 * time.Second
	c.TCPTimeout = 2 * time.Second
	// a node that was replaced under the same name has another address
	c.DeadNodeReclaimTime = time.Second
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

// logWriter passes memberlist's log on at level debug. What matters of it shows in the member sets.
type logWriter struct{ log *slog.Logger }

// Write logs one line.
func (w logWriter) Write(b []byte) (int, error) {
	w.log.Debug("gossip", "text", string(b))
	return len(b), nil
}

// Address returns the address and port of this member.
func (m *Members) Address() netip.AddrPort { return m.address }

// MemberSets delivers the live members, now and after each change. Only the latest set is kept.
func (m *Members) MemberSets() <-chan facts.MemberSet { return m.memberSets.C() }

// Messages delivers the messages of others, in any order.
func (m *Members) Messages() <-chan Message { return m.messages.C() }

// RemoteStates delivers the full states of others.
func (m *Members) RemoteStates() <-chan []byte { return m.remoteStates.C() }

// SetLocalState sets what this node sends in a full exchange.
func (m *Members) SetLocalState(state []byte) { m.localState.Store(&state) }

// SetSeeds sets the addresses at which other members may be found. Without a port they use the port
// of this node.
func (m *Members) SetSeeds(addresses []string) { m.seeds.Store(&addresses) }

// RejoinSeeds contacts all seeds that are not members at once.
func (m *Members) RejoinSeeds() { m.rejoinRequests.Signal() }

// maxMetadataMACs is how many Ethernet addresses fit into memberlist's metadata of 512 bytes.
const maxMetadataMACs = 64

// SetMACs publishes the Ethernet addresses of this node.
func (m *Members) SetMACs(macs []facts.MAC) {
	b := binary.BigEndian.AppendUint64(nil, m.options.Nonce)
	for _, mac := range macs[:min(len(macs), maxMetadataMACs)] {
		b = append(b, mac[:]...)
	}
	if old := m.metadata.Swap(&b); old != nil && !slices.Equal(*old, b) {
		m.metadataChanges.Signal()
	}
}

// SendMessage sends a message to one member. It may be lost.
func (m *Members) SendMessage(to string, payload []byte) {
	m.outgoingMessages.PutIfRoom(outgoingMessage{to, payload})
}

// Run joins the seeds until ctx ends. It then leaves, so that the other members know at once.
func (m *Members) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { m.joinSeeds(ctx) })
	parts.Go(func() { m.publishMetadata(ctx) })
	parts.Go(func() { m.greetSeeds(ctx) })
	parts.Go(func() { m.joinStrangers(ctx) })
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case msg := <-m.outgoingMessages.C():
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

// publishMetadata publishes this node's metadata after each change. It has a goroutine of its own,
// because memberlist blocks until another member has received it.
func (m *Members) publishMetadata(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.metadataChanges.C():
		}
		if err := m.memberlist.UpdateNode(time.Second); err != nil {
			m.options.Log.Debug("publishing the metadata of this node", "error", err)
		}
	}
}

// transmitMessage sends a message with the name of this node in front of the payload.
func (m *Members) transmitMessage(msg outgoingMessage) {
	m.mu.Lock()
	n, ok := m.nodesByName[msg.to]
	m.mu.Unlock()
	if !ok {
		return
	}
	b := append([]byte{byte(len(m.options.Name))}, m.options.Name...)
	if err := m.memberlist.SendBestEffort(&n, append(b, msg.payload...)); err != nil {
		m.options.Log.Debug("sending a message", "to", msg.to, "error", err)
	}
}

const (
	// noMemberJoinInterval is the time between two attempts to join the seeds while no other member
	// is known. joinInterval is the time otherwise; these attempts find members again after a
	// partition.
	noMemberJoinInterval = 500 * time.Millisecond
	joinInterval         = 5 * time.Second
)

// joinSeeds joins seeds that are not members, again and again.
func (m *Members) joinSeeds(ctx context.Context) {
	for {
		if missing := m.missingSeeds(); len(missing) > 0 {
			if n, err := m.memberlist.Join(missing); n > 0 {
				m.stateExchanged.Store(true)
				m.changeMembers(func() {})
			} else if err != nil {
				m.options.Log.Debug("joining seeds", "seeds", missing, "error", err)
			}
		}
		wait := joinInterval
		m.mu.Lock()
		if len(m.nodesByName) < 2 {
			wait = noMemberJoinInterval
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-m.rejoinRequests.C():
		case <-time.After(wait):
		}
	}
}

// greetingInterval is the time between two datagrams to each seed that is not a member. A node that
// gets one from a stranger joins it. So a healed partition is noticed at once, although joining a
// dead node takes seconds to fail.
const greetingInterval = 300 * time.Millisecond

// greetSeeds sends greetings until ctx ends.
func (m *Members) greetSeeds(ctx context.Context) {
	t := time.NewTicker(greetingInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		greeting := append([]byte{0}, m.address.String()...)
		for _, s := range m.missingSeeds() {
			if err := m.memberlist.SendToAddress(memberlist.Address{Addr: s}, greeting); err != nil {
				m.options.Log.Debug("greeting a seed", "seed", s, "error", err)
			}
		}
	}
}

// handleGreeting processes a greeting. It ignores a late one from a member.
func (m *Members) handleGreeting(address string) {
	m.mu.Lock()
	known := slices.ContainsFunc(slices.Collect(maps.Values(m.nodesByName)), func(n memberlist.Node) bool {
		return n.Address() == address
	})
	m.mu.Unlock()
	if !known {
		m.strangerAddresses.PutIfRoom(address)
	}
}

// joinStrangers joins strangers one after the other. They sent a greeting a moment ago, so the
// attempt does not block for long.
func (m *Members) joinStrangers(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-m.strangerAddresses.C():
			if n, err := m.memberlist.Join([]string{s}); n > 0 {
				m.stateExchanged.Store(true)
				m.changeMembers(func() {})
			} else if err != nil {
				m.options.Log.Debug("joining a stranger", "stranger", s, "error", err)
			}
		}
	}
}

// missingSeeds returns the seeds that are not members, with ports.
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

// changeMembers changes the members and delivers the new set.
func (m *Members) changeMembers(edit func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	edit()
	set := facts.MemberSet{Synced: m.stateExchanged.Load()}
	for _, name := range slices.Sorted(maps.Keys(m.nodesByName)) {
		n := m.nodesByName[name]
		set.Members = append(set.Members, memberFromNode(&n))
	}
	m.memberSets.Put(set)
}

func memberFromNode(n *memberlist.Node) facts.Member {
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
