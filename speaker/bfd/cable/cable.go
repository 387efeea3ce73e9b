// Package cable joins the BFD engines of a test in memory; it stands in for package udp. A Net carries datagrams between
// hosts with delay and loss; links are cut, and datagrams are forged. It works inside testing/synctest bubbles, since it
// waits on timers and channels alone. It never opens a socket.
package cable

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd"
)

// queue is how many datagrams wait for a host; more are lost, as on a socket.
const queue = 4096

// Net joins hosts. Any goroutine may use it; make it with New.
type Net struct {
	mu    sync.Mutex // guards what follows, and the hosts
	hosts map[netip.Addr]*Host
	// travel says how long a datagram takes, or that it is lost.
	travel func(from, to netip.Addr) (time.Duration, bool)
}

// New returns a Net on which nothing is lost and nothing takes time.
func New() *Net {
	return &Net{
		hosts:  map[netip.Addr]*Host{},
		travel: func(netip.Addr, netip.Addr) (time.Duration, bool) { return 0, true },
	}
}

// SetTravel sets how long a datagram takes; false loses it. It is called with the Net locked.
func (n *Net) SetTravel(travel func(from, to netip.Addr) (time.Duration, bool)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.travel = travel
}

// Host adds a host.
func (n *Net) Host(address netip.Addr) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &Host{net: n, address: address, ready: make(chan struct{}, 1)}
	n.hosts[address] = h
	return h
}

// String is a picture of the hosts and their open ports.
func (n *Net) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for a, h := range n.hosts {
		out = append(out, fmt.Sprintf("%s: %d ports, %d datagrams wait", a, h.ports, len(h.inbox)))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// Host is the Wire of an Engine.
type Host struct {
	net     *Net
	address netip.Addr
	ready   chan struct{}
	inbox   []bfd.Datagram
	ports   int
	refuse  error
	noEcho  error
	returns bool
}

var _ bfd.Wire = (*Host)(nil)

// Open returns a port.
func (h *Host) Open(k bfd.Key, _ uint32) bfd.Port {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.ports++
	return &port{host: h, key: k}
}

// Ready delivers a value when something arrived.
func (h *Host) Ready() <-chan struct{} { return h.ready }

// Receive takes the oldest datagram.
func (h *Host) Receive() (bfd.Datagram, bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if len(h.inbox) == 0 {
		return bfd.Datagram{}, false
	}
	d := h.inbox[0]
	h.inbox = h.inbox[1:]
	return d, true
}

// Close does nothing: there is nothing to give back.
func (h *Host) Close() {}

// Ports returns how many ports are open.
func (h *Host) Ports() int {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.ports
}

// Refuse makes every Send and Check of the host fail with err, or work again with nil.
func (h *Host) Refuse(err error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.refuse = err
}

// RefuseEchoes makes SendEcho alone fail.
func (h *Host) RefuseEchoes(err error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.noEcho = err
}

// ReturnEchoes makes the host's forwarding plane return echo packets.
func (h *Host) ReturnEchoes() { h.setReturns(true) }

// DropEchoes makes it drop them again.
func (h *Host) DropEchoes() { h.setReturns(false) }

func (h *Host) setReturns(r bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.returns = r
}

// Inject lets a datagram arrive at the host, whoever sent it.
func (h *Host) Inject(d bfd.Datagram) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.deliver(d)
}

func (h *Host) deliver(d bfd.Datagram) {
	if len(h.inbox) < queue {
		h.inbox = append(h.inbox, d)
	}
	select {
	case h.ready <- struct{}{}:
	default:
	}
}

// port is the sending side of a session.
type port struct {
	host *Host
	key  bfd.Key
}

var _ bfd.Port = (*port)(nil)

// Check tells what the host refuses.
func (p *port) Check() error {
	p.host.net.mu.Lock()
	defer p.host.net.mu.Unlock()
	return p.host.refuse
}

// Send sends to the neighbour.
func (p *port) Send(packet []byte) error {
	n := p.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.host.refuse != nil {
		return p.host.refuse
	}
	p.carry(bfd.Datagram{
		From: p.host.address, To: p.key.Peer, Interface: p.key.Interface, VRF: p.key.VRF,
		TTL: 255, Multihop: p.key.Multihop, Payload: slices.Clone(packet),
	}, p.key.Peer, 1)
	return nil
}

// SendEcho sends to ourselves by way of the neighbour.
func (p *port) SendEcho(payload []byte) error {
	n := p.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.host.noEcho != nil {
		return p.host.noEcho
	}
	if to := n.hosts[p.key.Peer]; to != nil && to.returns {
		p.carry(bfd.Datagram{From: p.host.address, To: p.host.address, TTL: 254, Echo: true, Payload: slices.Clone(payload)}, p.host.address, 2)
	}
	return nil
}

// carry takes a datagram over the path to the neighbour, that many times; the Net is locked.
func (p *port) carry(d bfd.Datagram, to netip.Addr, times int) {
	n, whole := p.host.net, time.Duration(0)
	for range times {
		delay, arrives := n.travel(p.host.address, p.key.Peer)
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
		h.deliver(d)
		return
	}
	time.AfterFunc(whole, func() { h.Inject(d) })
}

// Close gives the port back.
func (p *port) Close() {
	p.host.net.mu.Lock()
	defer p.host.net.mu.Unlock()
	p.host.ports--
}
