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

// frameQueueLength is how many frames a host queues before it reads them. Further frames
// are lost, as on a socket.
const frameQueueLength = 4096

// LAN is an Ethernet segment. Any goroutine may use it. The zero value is not usable.
type LAN struct {
	mu         sync.Mutex // guards the fields below, and the state of hosts and ports
	hosts      []*Host
	sentFrames []SentFrame
}

// SentFrame is a frame that a host sent, whether or not another host received it.
type SentFrame struct {
	At    time.Time
	From  string
	Frame layer2.Frame
}

// New returns an empty LAN.
func New() *LAN { return &LAN{} }

// AddHost connects a new host.
func (l *LAN) AddHost(name string) *Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &Host{lan: l, name: name}
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
		case h.openError != nil:
			fmt.Fprintf(&b, " cannot open ports: %v", h.openError)
		case h.isDisconnected:
			b.WriteString(" disconnected")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// deliverFrame carries a frame to its destination.
func (l *LAN) deliverFrame(from *port, f layer2.Frame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from.isClosed() {
		return ErrPortClosed
	}
	l.sentFrames = append(l.sentFrames, SentFrame{At: time.Now(), From: from.host.name, Frame: f})
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

// Host is a host on the LAN. It is the Wire of an Engine.
type Host struct {
	lan            *LAN
	name           string
	ports          []*port
	openError      error
	isDisconnected bool
}

var _ layer2.Wire = (*Host)(nil)

// OpenPort connects a port. All links of a host are on the same LAN.
func (h *Host) OpenPort(link facts.Link, family ipfamily.Family) (layer2.Port, error) {
	h.lan.mu.Lock()
	defer h.lan.mu.Unlock()
	if h.openError != nil {
		return nil, fmt.Errorf("opening a port on %q: %w", link.Name, h.openError)
	}
	p := &port{host: h, link: link, family: family, joinCountByAddress: map[netip.Addr]int{}, receivedFrames: latest.NewQueue[layer2.Frame](frameQueueLength), closed: make(chan struct{})}
	h.ports = append(h.ports, p)
	return p, nil
}

// SetOpenError makes OpenPort fail with err; with nil OpenPort works again.
func (h *Host) SetOpenError(err error) {
	h.lan.mu.Lock()
	defer h.lan.mu.Unlock()
	h.openError = err
}

// Disconnect unplugs the host. The link of the host stays up.
func (h *Host) Disconnect() { h.setDisconnected(true) }

// Reconnect undoes Disconnect.
func (h *Host) Reconnect() { h.setDisconnected(false) }

func (h *Host) setDisconnected(cut bool) {
	h.lan.mu.Lock()
	defer h.lan.mu.Unlock()
	h.isDisconnected = cut
}

// FailOpenPorts ends every open port of the host with err, like a link that goes down.
func (h *Host) FailOpenPorts(err error) {
	h.lan.mu.Lock()
	ports := slices.Clone(h.ports)
	h.lan.mu.Unlock()
	for _, p := range ports {
		p.closeWithError(err)
	}
}

// port is a connection of a host to the LAN.
type port struct {
	host               *Host
	link               facts.Link
	family             ipfamily.Family
	joinCountByAddress map[netip.Addr]int // the addresses whose groups are joined, and how often
	receivedFrames     *latest.Queue[layer2.Frame]
	closed             chan struct{} // closed by closeWithError
	err                error         // set before closed is closed
}

var _ layer2.Port = (*port)(nil)

// Receive passes the frames to handle and sends its answers.
func (p *port) Receive(handle func(layer2.Frame) (layer2.Frame, bool), isSendingAllowed func() bool) error {
	for {
		select {
		case <-p.closed:
			return p.err
		case f := <-p.receivedFrames.C():
			if answer, ok := handle(f); ok && (isSendingAllowed == nil || isSendingAllowed()) {
				_ = p.Write(answer) // a closed port is noticed above
			}
		}
	}
}

// LostFrameCount returns 0: frames that a host does not read are not counted.
func (p *port) LostFrameCount() uint64 { return 0 }

// Write sends a frame.
func (p *port) Write(f layer2.Frame) error { return p.host.lan.deliverFrame(p, f) }

// JoinGroup joins the group of an IPv6 address, so that the port receives requests for it.
func (p *port) JoinGroup(a netip.Addr) error {
	p.host.lan.mu.Lock()
	defer p.host.lan.mu.Unlock()
	p.joinCountByAddress[a]++
	return nil
}

// LeaveGroup undoes JoinGroup.
func (p *port) LeaveGroup(a netip.Addr) {
	p.host.lan.mu.Lock()
	defer p.host.lan.mu.Unlock()
	if p.joinCountByAddress[a]--; p.joinCountByAddress[a] <= 0 {
		delete(p.joinCountByAddress, a)
	}
}

// acceptsDestinationMAC says whether the network card receives frames to this Ethernet address.
func (p *port) acceptsDestinationMAC(to facts.MAC) bool {
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
func (p *port) Close() error {
	p.closeWithError(ErrPortClosed)
	return nil
}

func (p *port) closeWithError(err error) {
	p.host.lan.mu.Lock()
	defer p.host.lan.mu.Unlock()
	if p.isClosed() {
		return
	}
	p.err = err
	close(p.closed)
	p.host.ports = slices.DeleteFunc(p.host.ports, func(o *port) bool { return o == p })
}

func (p *port) isClosed() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

// enqueueFrame queues a frame, and drops it if the queue is full.
func (p *port) enqueueFrame(f layer2.Frame) {
	p.receivedFrames.PutIfRoom(f)
}
