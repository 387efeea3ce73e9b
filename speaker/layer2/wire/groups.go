package wire

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// kernelGroups is how many groups are joined through the kernel. It searches its list of them for every multicast packet
// of the link: 10,000 of them cost more than 100 us of CPU for each question, 256 about 1 us. They also fit what one
// socket may join (net.core.optmem_max, of 20 kB at the least). For the groups beyond, the network card is asked for
// all multicast packets, which the filter thins out, and the reports to the switches are our own.
const kernelGroups = 256

// groups are the multicast groups that a port for IPv6 has joined: the link's card has to take their packets in, and
// switches that snoop on MLD have to be told. Its methods may be called from any goroutine.
type groups struct {
	link    int
	source  netip.Addr // of reports
	mac     facts.MAC
	control func(f func(fd uintptr)) error // of the packet socket
	send    func(b []byte)

	mu     sync.Mutex // guards what follows
	socket int        // an ordinary one, for the kernel's memberships; -1 if there is none
	joined map[netip.Addr]*membership
	kernel int // how many of them are the kernel's
	// fresh are groups of our own that were joined and not yet reported twice.
	fresh map[netip.Addr]int
	// timer calls report; it is armed while there are groups of our own.
	timer *time.Timer
	armed time.Time
}

// membership is a group. Addresses that end alike share one.
type membership struct {
	users int
	own   bool // reported by us, not by the kernel
}

// newGroups joins the group of all nodes, to which announcements go.
func newGroups(l facts.Link, control func(f func(fd uintptr)) error, send func([]byte)) (*groups, error) {
	g := &groups{
		link: l.Index, source: netip.IPv6Unspecified(), mac: l.MAC, control: control, send: send,
		joined: map[netip.Addr]*membership{}, fresh: map[netip.Addr]int{},
	}
	for _, p := range l.Prefixes {
		if p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			g.source = p.Addr()
		}
	}
	if err := g.member(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_MULTICAST, layer2.Everybody(allNodes)); err != nil {
		return nil, err
	}
	var err error
	if g.socket, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		g.socket = -1 // the kernel has IPv6 off: every group is our own then
	}
	return g, nil
}

// member changes what the packet socket makes the card take in.
func (g *groups) member(option int, kind uint16, mac facts.MAC) error {
	r := unix.PacketMreq{Ifindex: int32(g.link), Type: kind, Alen: uint16(len(mac))}
	copy(r.Address[:], mac[:])
	var err error
	if failed := g.control(func(fd uintptr) { err = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, option, &r) }); failed != nil {
		return failed
	}
	return err
}

// ask has the kernel join or leave a group, and so report it.
func (g *groups) ask(option int, group netip.Addr) error {
	if g.socket < 0 {
		return unix.EAFNOSUPPORT
	}
	return unix.SetsockoptIPv6Mreq(g.socket, unix.IPPROTO_IPV6, option, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(g.link)})
}

// join lets questions about the address in.
func (g *groups) join(a netip.Addr) error {
	group, err := ndp.SolicitedNodeMulticast(a)
	if err != nil {
		return fmt.Errorf("joining the group of %s: %w: %w", a, layer2.ErrNotSent, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if m := g.joined[group]; m != nil {
		m.users++
		return nil
	}
	m := &membership{users: 1}
	if m.own = g.kernel >= kernelGroups || g.ask(unix.IPV6_JOIN_GROUP, group) != nil; m.own {
		err = g.ownGroup(group)
	} else {
		err = g.member(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_MULTICAST, layer2.Asked(a))
		g.kernel++
	}
	if err != nil {
		return fmt.Errorf("joining the group of %s: %w", a, classify(err))
	}
	g.joined[group] = m
	return nil
}

// ownGroup begins to report a group. The first has the card take in every group.
func (g *groups) ownGroup(group netip.Addr) error {
	if g.owned() == 0 {
		if err := g.member(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_ALLMULTI, facts.MAC{}); err != nil {
			return err
		}
	}
	g.fresh[group] = reportTwice
	g.arm(reportSoon)
	return nil
}

// owned counts the groups of our own.
func (g *groups) owned() int { return len(g.joined) - g.kernel }

// leave undoes join.
func (g *groups) leave(a netip.Addr) {
	group, err := ndp.SolicitedNodeMulticast(a)
	if err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.joined[group]
	if m == nil {
		return
	}
	if m.users--; m.users > 0 {
		return
	}
	delete(g.joined, group)
	// Where leaving fails too much is let in, and not answered.
	if !m.own {
		g.kernel--
		_ = g.ask(unix.IPV6_LEAVE_GROUP, group)
		_ = g.member(unix.PACKET_DROP_MEMBERSHIP, unix.PACKET_MR_MULTICAST, layer2.Asked(a))
		return
	}
	delete(g.fresh, group)
	g.transmit(toInclude, []netip.Addr{group}) // of no source: left
	if g.owned() == 0 {
		_ = g.member(unix.PACKET_DROP_MEMBERSHIP, unix.PACKET_MR_ALLMULTI, facts.MAC{})
	}
}

// When our own groups are reported (RFC 3810 section 9).
const (
	// reportSoon gathers the groups of one turn of the engine.
	reportSoon = 10 * time.Millisecond
	// reportTwice and reportAgain: a change is told as often as the Robustness Variable says, a second apart at most.
	reportTwice = 2
	reportAgain = time.Second
	// reportAll keeps the state of switches alive where no router asks, less than half of the 260 s after which they
	// forget a listener.
	reportAll = 100 * time.Second
)

// arm has report called after d, or sooner if that was the plan. The caller holds mu.
func (g *groups) arm(d time.Duration) {
	at := time.Now().Add(d)
	if g.timer != nil && !g.armed.IsZero() && !at.Before(g.armed) {
		return
	}
	if g.timer != nil {
		g.timer.Stop()
	}
	g.armed, g.timer = at, time.AfterFunc(d, g.report)
}

// report tells the switches of changes, or of everything.
func (g *groups) report() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed = time.Time{}
	if g.owned() == 0 {
		return
	}
	if len(g.fresh) == 0 {
		g.transmit(isExclude, g.ownGroups())
		g.arm(reportAll)
		return
	}
	g.transmit(toExclude, slices.SortedFunc(maps.Keys(g.fresh), netip.Addr.Compare))
	for group := range g.fresh {
		if g.fresh[group]--; g.fresh[group] == 0 {
			delete(g.fresh, group)
		}
	}
	g.arm(reportAgain)
}

// queried answers a router's or switch's question which groups are listened to.
func (g *groups) queried() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.owned() > 0 {
		g.arm(reportSoon)
	}
}

func (g *groups) ownGroups() []netip.Addr {
	out := make([]netip.Addr, 0, g.owned())
	for group, m := range g.joined {
		if m.own {
			out = append(out, group)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// transmit sends as many reports as the groups need.
func (g *groups) transmit(kind byte, all []netip.Addr) {
	for part := range slices.Chunk(all, maxRecords) {
		g.send(encodeReport(g.mac, g.source, kind, part))
	}
}

// close leaves every group: the kernel leaves its own, and ours end with the state of the switches.
func (g *groups) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timer != nil {
		g.timer.Stop()
	}
	clear(g.joined)
	g.kernel = 0
	if g.socket >= 0 {
		_ = unix.Close(g.socket) // nothing was written
		g.socket = -1
	}
}
