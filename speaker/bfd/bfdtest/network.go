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

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/bfd"
)

// maxQueuedDatagrams bounds the inbox of a host. More datagrams are lost, as on a socket.
const maxQueuedDatagrams = 4096

// Network connects hosts. Make it with New. Any goroutine may use it.
type Network struct {
	mu            sync.Mutex // guards the fields below and those of the hosts
	hostByAddress map[netip.Addr]*Host
	// deliveryFunc returns the delay of a datagram, or false if it is lost.
	deliveryFunc func(from, to netip.Addr) (time.Duration, bool)
}

// New returns a Network without loss and delay.
func New() *Network {
	return &Network{
		hostByAddress: map[netip.Addr]*Host{},
		deliveryFunc:  func(netip.Addr, netip.Addr) (time.Duration, bool) { return 0, true },
	}
}

// SetDeliveryFunc sets the function that returns the delay of a datagram, or
// false to lose it. The function is called with the Network locked.
func (n *Network) SetDeliveryFunc(delivery func(from, to netip.Addr) (time.Duration, bool)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deliveryFunc = delivery
}

// AddHost adds a host.
func (n *Network) AddHost(address netip.Addr) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &Host{network: n, address: address, ready: latest.NewWake()}
	n.hostByAddress[address] = h
	return h
}

// String describes the hosts and their open senders.
func (n *Network) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for a, h := range n.hostByAddress {
		out = append(out, fmt.Sprintf("%s: %d open senders, %d datagrams in the inbox", a, h.openSenderCount, len(h.inbox)))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// Host is the Transport of an Engine.
type Host struct {
	network         *Network
	address         netip.Addr
	ready           *latest.Wake
	inbox           []bfd.Datagram
	openSenderCount int
	sendError       error
	echoError       error
	returnsEchoes   bool
}

var _ bfd.Transport = (*Host)(nil)

// OpenSender returns a sender.
func (h *Host) OpenSender(k bfd.Key, _ uint32) bfd.Sender {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.openSenderCount++
	return &sender{host: h, key: k}
}

// DatagramsReady delivers a value when a datagram arrived.
func (h *Host) DatagramsReady() <-chan struct{} { return h.ready.C() }

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

// OpenSenderCount returns how many senders are open.
func (h *Host) OpenSenderCount() int {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	return h.openSenderCount
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

// InjectDatagram delivers a datagram to the host.
func (h *Host) InjectDatagram(d bfd.Datagram) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.enqueueDatagram(d)
}

func (h *Host) enqueueDatagram(d bfd.Datagram) {
	if len(h.inbox) < maxQueuedDatagrams {
		h.inbox = append(h.inbox, d)
	}
	h.ready.Signal()
}

// sender is the sending side of a session.
type sender struct {
	host *Host
	key  bfd.Key
}

var _ bfd.Sender = (*sender)(nil)

// EnsureOpen returns the error of FailSends.
func (s *sender) EnsureOpen() error {
	s.host.network.mu.Lock()
	defer s.host.network.mu.Unlock()
	return s.host.sendError
}

// SendControl sends to the neighbour.
func (s *sender) SendControl(packet []byte) error {
	n := s.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.host.sendError != nil {
		return s.host.sendError
	}
	s.sendAlongPath(bfd.Datagram{
		From: s.host.address, To: s.key.Peer, Interface: s.key.Interface, VRF: s.key.VRF,
		TTL: 255, Multihop: s.key.Multihop, Payload: slices.Clone(packet),
	}, s.key.Peer, 1)
	return nil
}

// SendEcho sends to ourselves through the neighbour.
func (s *sender) SendEcho(payload []byte) error {
	n := s.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.host.echoError != nil {
		return s.host.echoError
	}
	if to := n.hostByAddress[s.key.Peer]; to != nil && to.returnsEchoes {
		s.sendAlongPath(bfd.Datagram{From: s.host.address, To: s.host.address, TTL: 254, Echo: true, Payload: slices.Clone(payload)}, s.host.address, 2)
	}
	return nil
}

// sendAlongPath sends a datagram over the path to the neighbour as often as traversals says: an
// echo packet travels twice. The Network is locked.
func (s *sender) sendAlongPath(datagram bfd.Datagram, to netip.Addr, traversals int) {
	n, delay := s.host.network, time.Duration(0)
	for range traversals {
		d, arrives := n.deliveryFunc(s.host.address, s.key.Peer)
		if !arrives {
			return
		}
		delay += d
	}
	h := n.hostByAddress[to]
	if h == nil {
		return
	}
	if delay == 0 {
		h.enqueueDatagram(datagram)
		return
	}
	time.AfterFunc(delay, func() { h.InjectDatagram(datagram) })
}

// Close closes the sender.
func (s *sender) Close() {
	s.host.network.mu.Lock()
	defer s.host.network.mu.Unlock()
	s.host.openSenderCount--
}

// DefaultProfile returns the profile of a BFDProfile without any
// field set. Its detection time is 900 ms.
func DefaultProfile() bfd.Profile {
	return bfd.Profile{
		ReceiveInterval: 300 * time.Millisecond, TransmitInterval: 300 * time.Millisecond, DetectMultiplier: 3,
		EchoInterval: 50 * time.Millisecond, MinimumTTL: 254,
	}
}
