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

// FakeNetwork connects hosts. Make it with New. Any goroutine may use it.
type FakeNetwork struct {
	mu            sync.Mutex // guards the fields below and those of the hosts
	hostByAddress map[netip.Addr]*FakeHostTransport
	// delayOrLossFunc returns the delay of a datagram, or false if it is lost.
	delayOrLossFunc func(from, to netip.Addr) (time.Duration, bool)
}

// NewFakeNetwork returns a FakeNetwork without loss and delay.
func NewFakeNetwork() *FakeNetwork {
	return &FakeNetwork{
		hostByAddress:   map[netip.Addr]*FakeHostTransport{},
		delayOrLossFunc: func(netip.Addr, netip.Addr) (time.Duration, bool) { return 0, true },
	}
}

// SetDelayOrLossFunc sets the function that returns the delay of a datagram, or
// false to lose it. The function is called while the FakeNetwork is locked.
func (n *FakeNetwork) SetDelayOrLossFunc(delivery func(from, to netip.Addr) (time.Duration, bool)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delayOrLossFunc = delivery
}

// AddHost adds a host.
func (n *FakeNetwork) AddHost(address netip.Addr) *FakeHostTransport {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &FakeHostTransport{network: n, address: address, wakeSignal: latest.NewWake()}
	n.hostByAddress[address] = h
	return h
}

// String describes the hosts and their open senders.
func (n *FakeNetwork) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for a, h := range n.hostByAddress {
		out = append(out, fmt.Sprintf("%s: %d open senders, %d datagrams in the inbox", a, h.openSenderCount, len(h.inbox)))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// FakeHostTransport is the Transport of an Engine.
type FakeHostTransport struct {
	network          *FakeNetwork
	address          netip.Addr
	wakeSignal       *latest.Wake // of arrivals and of Wake
	inbox            []bfd.ReceivedDatagram
	openSenderCount  int
	controlSendError error
	echoSendError    error
	returnsEchoes    bool
}

var _ bfd.Transport = (*FakeHostTransport)(nil)

// OpenSender returns a sender.
func (h *FakeHostTransport) OpenSender(k bfd.SessionKey, _ uint32) bfd.Sender {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.openSenderCount++
	return &simulatedNetworkSender{host: h, key: k}
}

// WaitForDatagramUntil waits until a datagram arrived, for Wake, or from now until the deadline.
func (h *FakeHostTransport) WaitForDatagramUntil(now, deadline time.Time) {
	timer := time.NewTimer(deadline.Sub(now))
	defer timer.Stop()
	select {
	case <-h.wakeSignal.C():
	case <-timer.C:
	}
}

// Wake ends the WaitForDatagramUntil.
func (h *FakeHostTransport) Wake() { h.wakeSignal.Signal() }

// Receive returns the oldest datagram.
func (h *FakeHostTransport) Receive() (bfd.ReceivedDatagram, bool) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	if len(h.inbox) == 0 {
		return bfd.ReceivedDatagram{}, false
	}
	d := h.inbox[0]
	h.inbox = h.inbox[1:]
	return d, true
}

// Close does nothing.
func (h *FakeHostTransport) Close() {}

// OpenSenderCount returns how many senders are open.
func (h *FakeHostTransport) OpenSenderCount() int {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	return h.openSenderCount
}

// SetControlSendError makes every SendControl and ReopenLostSockets of the host fail with err, or
// succeed with nil.
func (h *FakeHostTransport) SetControlSendError(err error) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.controlSendError = err
}

// SetEchoSendError makes SendEcho fail with err, or succeed with nil.
func (h *FakeHostTransport) SetEchoSendError(err error) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.echoSendError = err
}

// EnableEchoReturn makes the host's forwarding plane return echo packets.
func (h *FakeHostTransport) EnableEchoReturn() { h.setReturnsEchoes(true) }

// DisableEchoReturn makes the host's forwarding plane drop echo packets.
func (h *FakeHostTransport) DisableEchoReturn() { h.setReturnsEchoes(false) }

func (h *FakeHostTransport) setReturnsEchoes(r bool) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.returnsEchoes = r
}

// InjectDatagram delivers a datagram to the host.
func (h *FakeHostTransport) InjectDatagram(d bfd.ReceivedDatagram) {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	h.enqueueDatagram(d)
}

func (h *FakeHostTransport) enqueueDatagram(d bfd.ReceivedDatagram) {
	if len(h.inbox) < maxQueuedDatagrams {
		h.inbox = append(h.inbox, d)
	}
	h.wakeSignal.Signal()
}

// simulatedNetworkSender is the sending side of a session.
type simulatedNetworkSender struct {
	host *FakeHostTransport
	key  bfd.SessionKey
}

var _ bfd.Sender = (*simulatedNetworkSender)(nil)

// ReopenLostSockets returns the error of SetControlSendError.
func (s *simulatedNetworkSender) ReopenLostSockets() error {
	s.host.network.mu.Lock()
	defer s.host.network.mu.Unlock()
	return s.host.controlSendError
}

// SendControl sends to the neighbour.
func (s *simulatedNetworkSender) SendControl(packet []byte) error {
	n := s.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.host.controlSendError != nil {
		return s.host.controlSendError
	}
	s.deliverWithDelayOrLoss(bfd.ReceivedDatagram{
		SourceAddress: s.host.address, DestinationAddress: s.key.PeerAddress, ArrivalInterface: s.key.Interface, VRF: s.key.VRF,
		TTL: 255, ArrivedOnMultihopPort: s.key.Multihop, Payload: slices.Clone(packet),
	}, s.key.PeerAddress, 1)
	return nil
}

// SendEcho sends to ourselves through the neighbour.
func (s *simulatedNetworkSender) SendEcho(payload []byte) error {
	n := s.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.host.echoSendError != nil {
		return s.host.echoSendError
	}
	if to := n.hostByAddress[s.key.PeerAddress]; to != nil && to.returnsEchoes {
		s.deliverWithDelayOrLoss(bfd.ReceivedDatagram{SourceAddress: s.host.address, DestinationAddress: s.host.address, TTL: 254, IsEchoPacket: true, Payload: slices.Clone(payload)}, s.host.address, 2)
	}
	return nil
}

// deliverWithDelayOrLoss sends a datagram over the path to the neighbour as often as traversals
// says: an echo packet travels twice. The Network is locked.
func (s *simulatedNetworkSender) deliverWithDelayOrLoss(datagram bfd.ReceivedDatagram, to netip.Addr, traversals int) {
	n, delay := s.host.network, time.Duration(0)
	for range traversals {
		d, arrives := n.delayOrLossFunc(s.host.address, s.key.PeerAddress)
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
func (s *simulatedNetworkSender) Close() {
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
