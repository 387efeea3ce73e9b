// Package cable joins the BFD engines of a test in memory; it stands in for package udp. A Net carries datagrams between
// hosts with delay and loss; links are cut, and datagrams are forged. It works inside testing/synctest bubbles, since it
// waits on timers and channels alone. It never opens a socket.
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

// maxQueuedDatagrams is how many datagrams wait for a host; more are lost, as on a socket.
const maxQueuedDatagrams = 4096

// Network joins hosts. Any goroutine may use it; make it with New.
type Network struct {
	mu    sync.Mutex // guards what follows, and the hosts
	hosts map[netip.Addr]*Host
	// delivery says how long a datagram takes, or that it is lost.
	delivery func(from, to netip.Addr) (time.Duration, bool)
}

// New returns a Net on which nothing is lost and nothing takes time.
func New() *Network {
	return &Network{
		hosts:    map[netip.Addr]*Host{},
		delivery: func(netip.Addr, netip.Addr) (time.Duration, bool) { return 0, true },
	}
}

// SetDelivery sets how long a datagram takes; false loses it. It is called with the Net locked.
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

// String is a picture of the hosts and their open ports.
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

// Host is the Wire of an Engine.
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

// OpenSender returns a port.
func (h *Host) OpenSender(k bfd.Key, _ uint32) bfd.Sender {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.openSenders++
	return &sender{host: h, key: k}
}

// Ready delivers a value when something arrived.
func (h *Host) Ready() <-chan struct{} { return h.ready }

// Receive takes the oldest datagram.
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

// Close does nothing: there is nothing to give back.
func (h *Host) Close() {}

// OpenSenders returns how many ports are open.
func (h *Host) OpenSenders() int {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	return h.openSenders
}

// FailSends makes every Send and Check of the host fail with err, or work again with nil.
func (h *Host) FailSends(err error) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.sendError = err
}

// FailEchoes makes SendEcho alone fail.
func (h *Host) FailEchoes(err error) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.echoError = err
}

// ReturnEchoes makes the host's forwarding plane return echo packets.
func (h *Host) ReturnEchoes() { h.setReturnsEchoes(true) }

// DropEchoes makes it drop them again.
func (h *Host) DropEchoes() { h.setReturnsEchoes(false) }

func (h *Host) setReturnsEchoes(r bool) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.returnsEchoes = r
}

// Inject lets a datagram arrive at the host, whoever sent it.
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

// EnsureOpen tells what the host refuses.
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

// SendEcho sends to ourselves by way of the neighbour.
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

// sendAlongPath takes a datagram over the path to the neighbour, that many times; the Net is locked.
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

// Close gives the port back.
func (p *sender) Close() {
	p.host.network.mu.Lock()
	defer p.host.network.mu.Unlock()
	p.host.openSenders--
}
