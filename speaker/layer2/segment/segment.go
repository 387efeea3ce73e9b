// Package segment is an Ethernet segment in memory, the stand-in for package wire in tests. A LAN carries frames between
// the ports of its hosts like a switch; tests cut it, slow it, lose frames and look at what was sent. It works inside
// testing/synctest bubbles, since hosts wait on channels alone. It never opens a socket.
package segment

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// ErrClosed is the error of a Port that was closed.
var ErrClosed = errors.New("the port is closed")

// queue is how many frames wait for a host that does not read; more are lost, as on a socket.
const queue = 4096

// LAN is a segment. Any goroutine may use it; the zero value is not usable.
type LAN struct {
	mu    sync.Mutex // guards what follows, and the state of hosts and ports
	hosts []*Host
	delay time.Duration
	lose  func(from, to string, f layer2.Frame) bool
	log   []Sent
}

// Sent is a frame that a host sent, whether or not anybody got it.
type Sent struct {
	At    time.Time
	From  string
	Frame layer2.Frame
}

// New returns an empty LAN.
func New() *LAN { return &LAN{} }

// Host connects a new host.
func (l *LAN) Host(name string) *Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &Host{lan: l, name: name}
	l.hosts = append(l.hosts, h)
	return h
}

// SetDelay makes every frame take that long.
func (l *LAN) SetDelay(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = d
}

// SetLoss loses the frames of which lose says so; nil loses none. Lose is called with the LAN locked.
func (l *LAN) SetLoss(lose func(from, to string, f layer2.Frame) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lose = lose
}

// Partition puts the hosts of that name on an island; all others stay together. Without names it heals.
func (l *LAN) Partition(island ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.hosts {
		h.island = slices.Contains(island, h.name)
	}
}

// Frames returns what was sent since the last call, in order.
func (l *LAN) Frames() []Sent {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.log
	l.log = nil
	return out
}

// String is a picture of the segment: its hosts with their open ports and what of them fails.
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
		case h.refuse != nil:
			fmt.Fprintf(&b, " refuses ports: %v", h.refuse)
		case h.cut:
			b.WriteString(" cable cut")
		case h.island:
			b.WriteString(" on the island")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// send carries a frame to whom it is addressed.
func (l *LAN) send(from *port, f layer2.Frame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from.closed() {
		return ErrClosed
	}
	l.log = append(l.log, Sent{At: time.Now(), From: from.host.name, Frame: f})
	if from.host.cut {
		return nil
	}
	for _, h := range l.hosts {
		for _, p := range h.ports {
			addressed := p.family == layer2.FamilyOf(f.TargetIP) && p.accepts(f.Destination)
			if p == from || !addressed || h.cut || h.island != from.host.island || (l.lose != nil && l.lose(from.host.name, h.name, f)) {
				continue
			}
			if l.delay == 0 {
				p.deliver(f)
				continue
			}
			time.AfterFunc(l.delay, func() { p.deliver(f) })
		}
	}
	return nil
}

// Host is a host on the LAN; it is the Wire of an Engine.
type Host struct {
	lan    *LAN
	name   string
	ports  []*port
	refuse error
	cut    bool
	island bool
}

var _ layer2.Wire = (*Host)(nil)

// Open connects a port; every link of a host leads to the same LAN.
func (h *Host) Open(link facts.Link, family layer2.Family) (layer2.Port, error) {
	h.lan.mu.Lock()
	defer h.lan.mu.Unlock()
	if h.refuse != nil {
		return nil, fmt.Errorf("opening a port on %q: %w", link.Name, h.refuse)
	}
	p := &port{host: h, link: link, family: family, groups: map[netip.Addr]int{}, frames: make(chan layer2.Frame, queue), done: make(chan struct{})}
	h.ports = append(h.ports, p)
	return p, nil
}

// Refuse makes Open fail with err, or work again with nil.
func (h *Host) Refuse(err error) {
	h.lan.mu.Lock()
	defer h.lan.mu.Unlock()
	h.refuse = err
}

// Cut unplugs the host; nothing tells it so.
func (h *Host) Cut() { h.setCut(true) }

// Mend plugs it in again.
func (h *Host) Mend() { h.setCut(false) }

func (h *Host) setCut(cut bool) {
	h.lan.mu.Lock()
	defer h.lan.mu.Unlock()
	h.cut = cut
}

// Break ends every open port of the host with err, as a link does that goes down.
func (h *Host) Break(err error) {
	h.lan.mu.Lock()
	ports := slices.Clone(h.ports)
	h.lan.mu.Unlock()
	for _, p := range ports {
		p.end(err)
	}
}

// port is one connection of a host.
type port struct {
	host   *Host
	link   facts.Link
	family layer2.Family
	groups map[netip.Addr]int // the addresses whose groups are joined, and how often
	frames chan layer2.Frame
	done   chan struct{} // closed by end
	err    error         // set before done is closed
}

var _ layer2.Port = (*port)(nil)

// Receive hands the frames to handle and sends its answers.
func (p *port) Receive(handle func(layer2.Frame) (layer2.Frame, bool)) error {
	for {
		select {
		case <-p.done:
			return p.err
		case f := <-p.frames:
			if answer, ok := handle(f); ok {
				_ = p.Write(answer) // a port that is closed is noticed above
			}
		}
	}
}

// Lost is 0: what a host does not read is not counted.
func (p *port) Lost() uint64 { return 0 }

// Write sends a frame.
func (p *port) Write(f layer2.Frame) error { return p.host.lan.send(p, f) }

// Join lets the frames of an IPv6 address's group in.
func (p *port) Join(a netip.Addr) error {
	p.host.lan.mu.Lock()
	defer p.host.lan.mu.Unlock()
	p.groups[a]++
	return nil
}

// Leave keeps them out again.
func (p *port) Leave(a netip.Addr) {
	p.host.lan.mu.Lock()
	defer p.host.lan.mu.Unlock()
	if p.groups[a]--; p.groups[a] <= 0 {
		delete(p.groups, a)
	}
}

// accepts says whether the network card takes in what is sent to this Ethernet address.
func (p *port) accepts(to facts.MAC) bool {
	if to[0] != 0x33 || to[2] != 0xff { // not a solicited-node group
		return to[0]&1 == 1 || to == p.link.MAC
	}
	for a := range p.groups {
		if layer2.Asked(a) == to {
			return true
		}
	}
	return false
}

// Close disconnects.
func (p *port) Close() error {
	p.end(ErrClosed)
	return nil
}

func (p *port) end(err error) {
	p.host.lan.mu.Lock()
	defer p.host.lan.mu.Unlock()
	if p.closed() {
		return
	}
	p.err = err
	close(p.done)
	p.host.ports = slices.DeleteFunc(p.host.ports, func(o *port) bool { return o == p })
}

func (p *port) closed() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// deliver queues a frame; one too many is lost.
func (p *port) deliver(f layer2.Frame) {
	select {
	case p.frames <- f:
	default:
	}
}
