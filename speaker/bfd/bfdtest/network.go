// Package bfdtest connects the BFD engines of a test in memory, instead of package
// udp. A Network carries datagrams between hosts with delay and loss. Tests cut
// paths and forge datagrams. It works inside testing/synctest bubbles, since it
// waits only on timers and channels. It opens no socket.
package bfdtest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd"
)

// maxQueuedDatagrams bounds the inbox of a host. More datagrams are lost, as on a socket.
const maxQueuedDatagrams = 4096

// Network connects hosts. Make it with New. Any goroutine may use it.
type Network struct {
	mu    sync.Mutex // guards the fields below and the hosts
	hosts map[netip.Addr]*Host
	// delivery returns the delay of a datagram, or false if it is lost.
	delivery func(from, to netip.Addr) (time.Duration, bool)
}

// New returns a Network without loss and delay.
func New() *Network {
	return &Network{
		hosts:    map[netip.Addr]*Host{},
		delivery: func(netip.Addr, netip.Addr) (time.Duration, bool) { return 0, true },
	}
}

// SetDelivery sets the function that returns the delay of a datagram, or
// false to lose it. The function is called with the Network locked.
func (n *Network) SetDelivery(delivery func(from, to netip.Addr) (time.Duration, bool)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delivery = delivery
}

// AddHost adds a host.
func (n *Network) AddHost(address netip.Addr) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &Host{network: n, address: address, ready: make(chan struct{}, 1)}
	n.hosts[address] = h
	return h
}

// String describes the hosts and their open senders.
func (n *Network) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for a, h := range n.hosts {
		out = append(out, fmt.Sprintf("%s: %d ports, %d datagrams wait", a, h.openSenders, len(h.inbox)))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// Host is the Transport of an Engine.
type Host struct {
	network       *Network
	address       netip.Addr
	ready         chan struct{}
	inbox         []bfd.Datagram
	openSenders   int
	sendError     error
	echoError     error
	returnsEchoes bool
}

var _ bfd.Transport = (*Host)(nil)

// OpenSender returns a sender.
func (h *Host) OpenSender(k bfd.Key, _ uint32) bfd.Sender {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.openSenders++
	return &sender{host: h, key: k}
}

// Ready delivers a value when a datagram arrived.
func (h *Host) Ready() <-chan struct{} { return h.ready }

// Receive returns the oldest datagram.
func (h *Host) Receive() (bfd.Datagram, bool) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	if len(h.inbox) == 0 {
		return bfd.Datagram{}, false
	}
	d := h.inbox[0]
	h.inbox = h.inbox[1:]
	return d, true
}

// Close does nothing.
func (h *Host) Close() {}

// OpenSenders returns how many senders are open.
func (h *Host) OpenSenders() int {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	return h.openSenders
}

// FailSends makes every SendControl and EnsureOpen of the host fail with err, or succeed with nil.
func (h *Host) FailSends(err error) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.sendError = err
}

// FailEchoes makes SendEcho fail with err, or succeed with nil.
func (h *Host) FailEchoes(err error) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.echoError = err
}

// ReturnEchoes makes the host's forwarding plane return echo packets.
func (h *Host) ReturnEchoes() { h.setReturnsEchoes(true) }

// DropEchoes makes the host's forwarding plane drop echo packets.
func (h *Host) DropEchoes() { h.setReturnsEchoes(false) }

func (h *Host) setReturnsEchoes(r bool) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.returnsEchoes = r
}

// Inject delivers a datagram to the host.
func (h *Host) Inject(d bfd.Datagram) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.enqueueDatagram(d)
}

func (h *Host) enqueueDatagram(d bfd.Datagram) {
	if len(h.inbox) < maxQueuedDatagrams {
		h.inbox = append(h.inbox, d)
	}
	select {
	case h.ready <- struct{}{}:
	default:
	}
}

// sender is the sending side of a session.
type sender struct {
	host *Host
	key  bfd.Key
}

var _ bfd.Sender = (*sender)(nil)

// EnsureOpen returns the error of FailSends.
func (p *sender) EnsureOpen() error {
	p.host.network.mu.Lock()
	defer p.host.network.mu.Unlock()
	return p.host.sendError
}

// SendControl sends to the neighbour.
func (p *sender) SendControl(packet []byte) error {
	n := p.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.host.sendError != nil {
		return p.host.sendError
	}
	p.sendAlongPath(bfd.Datagram{
		From: p.host.address, To: p.key.Peer, Interface: p.key.Interface, VRF: p.key.VRF,
		TTL: 255, Multihop: p.key.Multihop, Payload: slices.Clone(packet),
	}, p.key.Peer, 1)
	return nil
}

// SendEcho sends to ourselves through the neighbour.
func (p *sender) SendEcho(payload []byte) error {
	n := p.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.host.echoError != nil {
		return p.host.echoError
	}
	if to := n.hosts[p.key.Peer]; to != nil && to.returnsEchoes {
		p.sendAlongPath(bfd.Datagram{From: p.host.address, To: p.host.address, TTL: 254, Echo: true, Payload: slices.Clone(payload)}, p.host.address, 2)
	}
	return nil
}

// sendAlongPath sends a datagram over the path to the
// neighbour, times times. The Network is locked.
func (p *sender) sendAlongPath(d bfd.Datagram, to netip.Addr, times int) {
	n, whole := p.host.network, time.Duration(0)
	for range times {
		delay, arrives := n.delivery(p.host.address, p.key.Peer)
		if !arrives {
			return
		}
		whole += delay
	}
	h := n.hosts[to]
	if h == nil {
		return
	}
	if whole == 0 {
		h.enqueueDatagram(d)
		return
	}
	time.AfterFunc(whole, func() { h.Inject(d) })
}

// Close closes the sender.
func (p *sender) Close() {
	p.host.network.mu.Lock()
	defer p.host.network.mu.Unlock()
	p.host.openSenders--
}
