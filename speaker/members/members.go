// Package members knows which speakers are alive and carries messages between them. It wraps
// memberlist: gossip for membership, encrypted datagrams for messages, and a full exchange of state
// at each join. It makes no decisions. No method waits for the network. It drops and counts what
// cannot be sent in time; the election protocol repairs such losses.
package members

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// Options configure Members.
type Options struct {
	// NodeName is the name of this node, Nonce identifies this run of the process.
	NodeName string
	RunNonce uint64
	// MaxMessageFormat is the highest version of the messages that this speaker reads.
	MaxMessageFormat byte
	// IsReceivedMessageUrgent says whether a received message goes before others. If it is nil, all
	// messages are urgent.
	IsReceivedMessageUrgent func(payload []byte) bool
	// BindAddress and BindPort are the address and port for gossip, TCP and UDP. Port 0 takes any
	// free port.
	BindAddress netip.Addr
	BindPort    int
	// GossipKeys authenticate all messages; the first one encrypts. The SHA-256 of each is the AES
	// key.
	GossipKeys [][]byte
	// Now is the clock.
	Now func() time.Time
	Log *slog.Logger
}

// ReceivedMessage is a message from another member.
type ReceivedMessage struct {
	SenderName string
	Payload    []byte
}

// outgoingMessage is a message to another member. The queues hold pointers: an empty place costs 8
// bytes.
type outgoingMessage struct {
	to      string
	payload []byte
}

// Members is this node's membership in the gossip. Use New to create it.
type Members struct {
	options       Options
	memberlist    *memberlist.Memberlist
	listenAddress netip.AddrPort
	transport     *guardedTransport
	keyring       *memberlist.Keyring

	// mu guards memberlistNodeByName, departures and allSeeds. It is held during delivery, so that
	// sets arrive in order.
	mu                   sync.Mutex
	memberlistNodeByName map[string]memberlist.Node
	departures           departures
	allSeeds             []string // also those of the other address family
	ownEncodedMetadata   atomic.Pointer[[]byte]
	// fullExchangeState is what this node sends in a full exchange.
	fullExchangeState     atomic.Pointer[[]byte]
	ownFamilySeeds        atomic.Pointer[[]string]
	hasExchangedFullState atomic.Bool

	liveMemberUpdates                            *latest.Value[facts.MemberSet]
	urgentReceivedMessages, bulkReceivedMessages *latest.BoundedQueue[ReceivedMessage]
	receivedFullStates                           *latest.BoundedQueue[[]byte]
	// outgoingUrgentMessages go before outgoingNormalMessages, and these before
	// outgoingBulkMessages.
	outgoingUrgentMessages, outgoingNormalMessages, outgoingBulkMessages *latest.BoundedQueue[*outgoingMessage]
	contactSeedsSignal                                                   *latest.Wake
	metadataChangedSignal                                                *latest.Wake
	// greetingSendersToJoin are the addresses of greetings from nodes that are not members.
	greetingSendersToJoin *latest.BoundedQueue[string]
	// receivedPathMessages are checks and answers of others, pathChecksToAnswer the checks among
	// them.
	receivedPathMessages, pathChecksToAnswer *latest.BoundedQueue[pathMessage]
	pathFaults                               atomic.Pointer[[]PathFault]
}

// New opens the sockets. The speaker is the only member until Run has reached a seed.
func New(o Options) (*Members, error) {
	m := &Members{
		options:                o,
		memberlistNodeByName:   map[string]memberlist.Node{},
		departures:             newDepartures(),
		liveMemberUpdates:      latest.NewValue[facts.MemberSet](),
		urgentReceivedMessages: latest.NewBoundedQueue[ReceivedMessage](4096),
		bulkReceivedMessages:   latest.NewBoundedQueue[ReceivedMessage](4096),
		receivedFullStates:     latest.NewBoundedQueue[[]byte](16),
		outgoingUrgentMessages: latest.NewBoundedQueue[*outgoingMessage](4096),
		outgoingNormalMessages: latest.NewBoundedQueue[*outgoingMessage](4096),
		outgoingBulkMessages:   latest.NewBoundedQueue[*outgoingMessage](maxQueuedBulkMessages),
		contactSeedsSignal:     latest.NewWake(),
		metadataChangedSignal:  latest.NewWake(),
		greetingSendersToJoin:  latest.NewBoundedQueue[string](1),
		receivedPathMessages:   latest.NewBoundedQueue[pathMessage](256),
		pathChecksToAnswer:     latest.NewBoundedQueue[pathMessage](256),
	}
	m.pathFaults.Store(&[]PathFault{})
	if m.options.IsReceivedMessageUrgent == nil {
		m.options.IsReceivedMessageUrgent = func([]byte) bool { return true }
	}
	m.PublishOwnNode(facts.PublishedNode{MaxMessageFormat: o.MaxMessageFormat})
	m.SetFullExchangeState(nil)
	m.ownFamilySeeds.Store(new([]string))
	keyring, err := newKeyring(o.GossipKeys)
	if err != nil {
		return nil, err
	}
	m.keyring = keyring
	c := memberlist.DefaultLANConfig()
	c.Name, c.BindAddr, c.BindPort, c.AdvertisePort = o.NodeName, o.BindAddress.String(), o.BindPort, o.BindPort
	c.Keyring = keyring
	// Messages are short, and memberlist clears a table of 64 KB for each one that it compresses.
	c.EnableCompression = false
	c.Delegate, c.Events = (*messageDelegate)(m), (*eventDelegate)(m)
	c.PushPullInterval = 10 * time.Second
	c.TCPTimeout = 2 * time.Second
	// a node that was replaced under the same name has another address
	c.DeadNodeReclaimTime = time.Second
	c.HandoffQueueDepth = 8192
	c.Logger = log.New(memberlistLogWriter{o.Log}, "", 0)
	m.transport, err = newGuardedTransport(o.BindAddress, o.BindPort, keyring, c.Logger)
	if err == nil {
		c.Transport = m.transport
		c.BindPort = m.transport.GetAutoBindPort()
		c.AdvertisePort = c.BindPort
		// the callbacks of memberlist use it
		m.listenAddress = netip.AddrPortFrom(o.BindAddress.Unmap(), uint16(c.BindPort))
		if m.memberlist, err = memberlist.Create(c); err != nil {
			err = errors.Join(err, m.transport.Shutdown())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the gossip sockets on %s (--gossip-bind-address, --gossip-bind-port): %w",
			net.JoinHostPort(c.BindAddr, strconv.Itoa(o.BindPort)), err)
	}
	return m, nil
}

// memberlistLogWriter passes memberlist's log on at level debug. What matters of it shows in the
// member sets.
type memberlistLogWriter struct{ log *slog.Logger }

// Write logs one line.
func (w memberlistLogWriter) Write(b []byte) (int, error) {
	w.log.Debug("gossip: " + strings.TrimSpace(string(b)))
	return len(b), nil
}

// ListenAddress returns the address and port of this member.
func (m *Members) ListenAddress() netip.AddrPort { return m.listenAddress }

// LiveMemberUpdates delivers the live members, now and after each change. Only the latest set is
// kept.
func (m *Members) LiveMemberUpdates() <-chan facts.MemberSet { return m.liveMemberUpdates.C() }

// ReceivedUrgentMessages delivers the urgent messages of others, in any order.
func (m *Members) ReceivedUrgentMessages() <-chan ReceivedMessage {
	return m.urgentReceivedMessages.C()
}

// ReceivedBulkMessages delivers the other messages of others, in any order.
func (m *Members) ReceivedBulkMessages() <-chan ReceivedMessage { return m.bulkReceivedMessages.C() }

// ReceivedFullStates delivers the full states of others.
func (m *Members) ReceivedFullStates() <-chan []byte { return m.receivedFullStates.C() }

// SetFullExchangeState sets what this node sends in a full exchange.
func (m *Members) SetFullExchangeState(state []byte) { m.fullExchangeState.Store(&state) }

// SetSeeds sets the addresses at which other members may be found. Without a port they use the port
// of this node.
func (m *Members) SetSeeds(addresses []string) {
	ofOwnFamily := m.seedsOfOwnFamily(addresses)
	m.ownFamilySeeds.Store(&ofOwnFamily)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.allSeeds = addresses
	m.updateAllowedSources()
}

// ContactMissingSeeds contacts all seeds that are not members at once.
func (m *Members) ContactMissingSeeds() { m.contactSeedsSignal.Signal() }

// PublishOwnNode publishes what the other members have to know about this node.
func (m *Members) PublishOwnNode(p facts.PublishedNode) {
	b := EncodeMetadata(m.options.RunNonce, p)
	b = append(b, departureVersion) // an older speaker ignores it
	if old := m.ownEncodedMetadata.Swap(&b); old != nil && !slices.Equal(*old, b) {
		m.metadataChangedSignal.Signal()
	}
}

// SendUrgentMessage sends a message to one member, before all others. It may be lost.
func (m *Members) SendUrgentMessage(to string, payload []byte) {
	m.outgoingUrgentMessages.PutIfRoom(&outgoingMessage{to, payload})
}

// SendNormalPriorityMessage sends a message to one member, after those of SendUrgentMessage and
// before bulk messages. It may be lost.
func (m *Members) SendNormalPriorityMessage(to string, payload []byte) {
	m.outgoingNormalMessages.PutIfRoom(&outgoingMessage{to, payload})
}

// maxQueuedBulkMessages bounds how many bulk messages wait: 5,000 new claims for 200 members. They
// share their payloads.
const maxQueuedBulkMessages = 1 << 15

// SendBulkMessage sends a message to one member, after all others. It may be lost.
func (m *Members) SendBulkMessage(to string, payload []byte) {
	m.outgoingBulkMessages.PutIfRoom(&outgoingMessage{to, payload})
}

// Run joins the seeds until ctx ends. It then leaves, so that the other members know at once.
func (m *Members) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { m.joinMissingSeedsForever(ctx) })
	parts.Go(func() { m.publishMetadata(ctx) })
	parts.Go(func() { m.greetMissingSeedsForever(ctx) })
	parts.Go(func() { m.joinSendersOfGreetings(ctx) })
	parts.Go(func() { m.checkPathsForever(ctx) })
	parts.Go(func() { m.answerPathChecks(ctx) })
	for ctx.Err() == nil {
		m.transmitNextMessage(ctx)
	}
	m.announceDeparture()
	parts.Wait()
	<-time.After(departureRepeatDelay)
	m.announceDeparture() // again, because a datagram can be lost
	if err := m.memberlist.Leave(500 * time.Millisecond); err != nil {
		m.options.Log.Debug("leaving the gossip", "error", err)
	}
	if err := m.memberlist.Shutdown(); err != nil {
		return fmt.Errorf("closing the gossip sockets: %w", err)
	}
	return nil
}

// transmitNextMessage waits for a message and sends it. If several wait, it sends the one that goes
// before the others.
func (m *Members) transmitNextMessage(ctx context.Context) {
	select {
	case msg := <-m.outgoingUrgentMessages.C():
		m.transmitMessage(msg)
		return
	default:
	}
	select {
	case msg := <-m.outgoingUrgentMessages.C():
		m.transmitMessage(msg)
		return
	case msg := <-m.outgoingNormalMessages.C():
		m.transmitMessage(msg)
		return
	default:
	}
	select {
	case <-ctx.Done():
	case msg := <-m.outgoingUrgentMessages.C():
		m.transmitMessage(msg)
	case msg := <-m.outgoingNormalMessages.C():
		m.transmitMessage(msg)
	case msg := <-m.outgoingBulkMessages.C():
		m.transmitMessage(msg)
	}
}

// publishMetadata publishes this node's metadata after each change. It has a goroutine of its own,
// because memberlist blocks until another member has received it.
func (m *Members) publishMetadata(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.metadataChangedSignal.C():
		}
		if err := m.memberlist.UpdateNode(time.Second); err != nil {
			m.options.Log.Debug("publishing the metadata of this node", "error", err)
		}
	}
}

// transmitMessage sends a message with the name of this node in front of the payload.
func (m *Members) transmitMessage(msg *outgoingMessage) {
	m.mu.Lock()
	n, ok := m.memberlistNodeByName[msg.to]
	m.mu.Unlock()
	if !ok {
		return
	}
	b := append([]byte{byte(len(m.options.NodeName))}, m.options.NodeName...)
	if err := m.memberlist.SendBestEffort(&n, append(b, msg.payload...)); err != nil {
		m.options.Log.Debug("sending a message", "node", msg.to, "error", err)
	}
}

const (
	// seedJoinWithoutMembersInterval is the time between two attempts to join the seeds while no
	// other member is known. seedJoinInterval is the time otherwise; these attempts find members
	// again after a partition.
	seedJoinWithoutMembersInterval = 500 * time.Millisecond
	seedJoinInterval               = 5 * time.Second
)

// joinMissingSeedsForever joins seeds that are not members, again and again.
func (m *Members) joinMissingSeedsForever(ctx context.Context) {
	for {
		if missing := m.missingSeeds(); len(missing) > 0 {
			if n, err := m.memberlist.Join(missing); n > 0 {
				m.hasExchangedFullState.Store(true)
				m.editMembersAndDeliverSet(func() {})
			} else if err != nil {
				m.options.Log.Debug("joining seeds", "addresses", missing, "error", err)
			}
		}
		wait := seedJoinInterval
		m.mu.Lock()
		if len(m.memberlistNodeByName) < 2 {
			wait = seedJoinWithoutMembersInterval
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-m.contactSeedsSignal.C():
		case <-time.After(wait):
		}
	}
}

// seedGreetingInterval is the time between two datagrams to each seed that is not a member. A node
// that gets one from a stranger joins it. So a healed partition is noticed at once, although
// joining a dead node takes seconds to fail.
const seedGreetingInterval = 300 * time.Millisecond

// greetMissingSeedsForever sends greetings until ctx ends.
func (m *Members) greetMissingSeedsForever(ctx context.Context) {
	t := time.NewTicker(seedGreetingInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		greeting := append([]byte{0}, m.listenAddress.String()...)
		for _, s := range m.missingSeeds() {
			if err := m.memberlist.SendToAddress(memberlist.Address{Addr: s}, greeting); err != nil {
				m.options.Log.Debug("greeting a seed", "address", s, "error", err)
			}
		}
	}
}

// handleGreeting processes a greeting. It ignores a late one from a member.
func (m *Members) handleGreeting(address string) {
	m.mu.Lock()
	known := slices.ContainsFunc(slices.Collect(maps.Values(m.memberlistNodeByName)), func(n memberlist.Node) bool {
		return n.Address() == address
	})
	m.mu.Unlock()
	if !known {
		m.greetingSendersToJoin.PutIfRoom(address)
	}
}

// joinSendersOfGreetings joins strangers one after the other. They sent a greeting a moment ago, so
// the attempt does not block for long.
func (m *Members) joinSendersOfGreetings(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-m.greetingSendersToJoin.C():
			if n, err := m.memberlist.Join([]string{s}); n > 0 {
				m.hasExchangedFullState.Store(true)
				m.editMembersAndDeliverSet(func() {})
			} else if err != nil {
				m.options.Log.Debug("joining a stranger", "address", s, "error", err)
			}
		}
	}
}

// missingSeeds returns the seeds that are not members, with ports.
func (m *Members) missingSeeds() []string {
	known := map[string]bool{m.ListenAddress().String(): true}
	m.mu.Lock()
	for _, n := range m.memberlistNodeByName {
		known[n.Address()] = true
	}
	m.mu.Unlock()
	var out []string
	for _, s := range *m.ownFamilySeeds.Load() {
		if _, _, err := net.SplitHostPort(s); err != nil {
			s = net.JoinHostPort(s, strconv.Itoa(int(m.ListenAddress().Port())))
		}
		if !known[s] {
			out = append(out, s)
		}
	}
	return out
}

// editMembersAndDeliverSet changes the members and delivers the new set.
func (m *Members) editMembersAndDeliverSet(edit func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	edit()
	set := facts.MemberSet{HasExchangedFullState: m.hasExchangedFullState.Load()}
	for _, name := range slices.Sorted(maps.Keys(m.memberlistNodeByName)) {
		n := m.memberlistNodeByName[name]
		set.Members = append(set.Members, decodeMemberlistNode(&n))
	}
	set.VanishedAtByMember = m.departures.listVanished(m.options.Now())
	m.liveMemberUpdates.Put(set)
	m.updateAllowedSources()
}

func decodeMemberlistNode(n *memberlist.Node) facts.Member {
	a, _ := netip.AddrFromSlice(n.Addr)
	out := facts.Member{Name: n.Name, Address: a.Unmap()}
	nonce, p := decodeMetadata(n.Meta)
	out.RunNonce, out.LinkMACs, out.MaxMessageFormat, out.Links = nonce, p.LinkMACs, p.MaxMessageFormat, p.Links
	return out
}
