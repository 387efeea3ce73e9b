// Package layer2test has an Ethernet segment in memory, which replaces package wire in tests. A LAN
// carries frames between the ports of its hosts like a switch. Tests disconnect hosts, break their
// ports and read what was sent. It works inside testing/synctest bubbles, since hosts block only on
// channels. It never opens a socket.
package layer2test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// ErrPortClosed is the error of a closed Port.
var ErrPortClosed = errors.New("the port is closed")

// receivedFramesPerPortLimit is how many frames a host queues before it reads them. Further frames
// are lost, as on a socket.
const receivedFramesPerPortLimit = 4096

// LAN is an Ethernet segment. Any goroutine may use it. The zero value is not usable.
type LAN struct {
	mu         sync.Mutex // guards the fields below, and the state of hosts and ports
	hosts      []*LANHost
	sentFrames []SentFrame
}

// SentFrame is a frame that a host sent, whether or not another host received it.
type SentFrame struct {
	SentAt     time.Time
	SenderName string
	Frame      layer2.ARPOrNDPFrame
}

// NewLAN returns an empty LAN.
func NewLAN() *LAN { return &LAN{} }

// AddHost connects a new host.
func (l *LAN) AddHost(name string) *LANHost {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &LANHost{lan: l, name: name}
	l.hosts = append(l.hosts, h)
	return h
}

// TakeSentFrames returns the frames that were sent since the last call, in order.
func (l *LAN) TakeSentFrames() []SentFrame {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.sentFrames
	l.sentFrames = nil
	return out
}

// String describes the segment: its hosts, their open ports and their faults.
func (l *LAN) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, h := range l.hosts {
		fmt.Fprintf(&b, "%s:", h.name)
		for _, p := range h.ports {
			fmt.Fprintf(&b, " %s(%s)", p.link.Name, p.link.MAC)
		}
		switch {
		case h.errorOfOpenPort != nil:
			fmt.Fprintf(&b, " cannot open ports: %v", h.errorOfOpenPort)
		case h.isDisconnected:
			b.WriteString(" disconnected")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// deliverFrame carries a frame to its destination.
func (l *LAN) deliverFrame(from *lanPort, f layer2.ARPOrNDPFrame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from.isClosed() {
		return ErrPortClosed
	}
	l.sentFrames = append(l.sentFrames, SentFrame{SentAt: time.Now(), SenderName: from.host.name, Frame: f})
	if from.host.isDisconnected {
		return nil
	}
	for _, h := range l.hosts {
		for _, p := range h.ports {
			addressed := p.family == ipfamily.FamilyOf(f.TargetIP) && p.acceptsDestinationMAC(f.EthernetDestination)
			if p == from || !addressed || h.isDisconnected {
				continue
			}
			p.enqueueFrame(f)
		}
	}
	return nil
}

// LANHost is a host on the LAN. It is the Wire of an Engine.
type LANHost struct {
	lan             *LAN
	name            string
	ports           []*lanPort
	errorOfOpenPort error
	isDisconnected  bool
}

var _ layer2.PortOpener = (*LANHost)(nil)

// OpenPort connects a port. All links of a host are on the same LAN.
func (h *LANHost) OpenPort(link facts.Link, family ipfamily.Family) (layer2.Port, error) {
	h.lan.mu.Lock()
	defer h.lan.mu.Unlock()
	if h.errorOfOpenPort != nil {
		return nil, fmt.Errorf("opening a port on %q: %w", link.Name, h.errorOfOpenPort)
	}
	p := &lanPort{host: h, link: link, family: family, joinCountByAddress: map[netip.Addr]int{}, receivedFrames: latest.NewBoundedQueue[layer2.ARPOrNDPFrame](receivedFramesPerPortLimit), closedSignal: make(chan struct{})}
	h.ports = append(h.ports, p)
	return p, nil
}

// SetErrorOfOpenPort makes OpenPort fail with err; with nil OpenPort works again.
func (h *LANHost) SetErrorOfOpenPort(err error) {
	h.lan.mu.Lock()
	defer h.lan.mu.Unlock()
	h.errorOfOpenPort = err
}

// Disconnect unplugs the host. The link of the host stays up.
func (h *LANHost) Disconnect() { h.setDisconnected(true) }

// Reconnect undoes Disconnect.
func (h *LANHost) Reconnect() { h.setDisconnected(false) }

func (h *LANHost) setDisconnected(cut bool) {
	h.lan.mu.Lock()
	defer h.lan.mu.Unlock()
	h.isDisconnected = cut
}

// CloseOpenPortsWithError ends every open port of the host with err, like a link that goes down.
func (h *LANHost) CloseOpenPortsWithError(err error) {
	h.lan.mu.Lock()
	ports := slices.Clone(h.ports)
	h.lan.mu.Unlock()
	for _, p := range ports {
		p.closeWithError(err)
	}
}

// lanPort is a connection of a host to the LAN.
type lanPort struct {
	host               *LANHost
	link               facts.Link
	family             ipfamily.Family
	joinCountByAddress map[netip.Addr]int // the addresses whose groups are joined, and how often
	receivedFrames     *latest.BoundedQueue[layer2.ARPOrNDPFrame]
	closedSignal       chan struct{} // closed by closeWithError
	closeError         error         // set before closed is closed
}

var _ layer2.Port = (*lanPort)(nil)

// ReceiveFrames passes the frames to handle and sends its answers.
func (p *lanPort) ReceiveFrames(handle func(layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool), isSendingAllowed func() bool) error {
	for {
		select {
		case <-p.closedSignal:
			return p.closeError
		case f := <-p.receivedFrames.C():
			if answer, ok := handle(f); ok && (isSendingAllowed == nil || isSendingAllowed()) {
				_ = p.WriteFrame(answer) // a closed port is noticed above
			}
		}
	}
}

// LostFrameCount returns 0: frames that a host does not read are not counted.
func (p *lanPort) LostFrameCount() uint64 { return 0 }

// WriteFrame sends a frame.
func (p *lanPort) WriteFrame(f layer2.ARPOrNDPFrame) error { return p.host.lan.deliverFrame(p, f) }

// JoinGroupOfAddress joins the group of an IPv6 address, so that the port receives requests for it.
func (p *lanPort) JoinGroupOfAddress(a netip.Addr) error {
	p.host.lan.mu.Lock()
	defer p.host.lan.mu.Unlock()
	p.joinCountByAddress[a]++
	return nil
}

// LeaveGroupOfAddress undoes JoinGroupOfAddress.
func (p *lanPort) LeaveGroupOfAddress(a netip.Addr) {
	p.host.lan.mu.Lock()
	defer p.host.lan.mu.Unlock()
	if p.joinCountByAddress[a]--; p.joinCountByAddress[a] <= 0 {
		delete(p.joinCountByAddress, a)
	}
}

// acceptsDestinationMAC says whether the network card receives frames to this Ethernet address.
func (p *lanPort) acceptsDestinationMAC(to facts.MAC) bool {
	if to[0] != 0x33 || to[2] != 0xff { // not a solicited-node group
		return to[0]&1 == 1 || to == p.link.MAC
	}
	for a := range p.joinCountByAddress {
		if layer2.RequestDestinationMAC(a) == to {
			return true
		}
	}
	return false
}

// Close disconnects the port.
func (p *lanPort) Close() error {
	p.closeWithError(ErrPortClosed)
	return nil
}

func (p *lanPort) closeWithError(err error) {
	p.host.lan.mu.Lock()
	defer p.host.lan.mu.Unlock()
	if p.isClosed() {
		return
	}
	p.closeError = err
	close(p.closedSignal)
	p.host.ports = slices.DeleteFunc(p.host.ports, func(o *lanPort) bool { return o == p })
}

func (p *lanPort) isClosed() bool {
	select {
	case <-p.closedSignal:
		return true
	default:
		return false
	}
}

// enqueueFrame queues a frame, and drops it if the queue is full.
func (p *lanPort) enqueueFrame(f layer2.ARPOrNDPFrame) {
	p.receivedFrames.PutIfRoom(f)
}
