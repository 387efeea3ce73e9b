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

// kernelGroupsLimit is how many groups are joined through the kernel. It searches its list of them for every multicast packet
// of the link: 10,000 of them cost more than 100 us of CPU for each question, 256 about 1 us. They also fit what one
// socket may join (net.core.optmem_max, of 20 kB at the least). For the groups beyond, the network card is asked for
// all multicast packets, which the filter thins out, and the reports to the switches are our own.
const kernelGroupsLimit = 256

// groupMemberships are the multicast groups that a port for IPv6 has joined: the link's card has to take their packets in, and
// switches that snoop on MLD have to be told. Its methods may be called from any goroutine.
type groupMemberships struct {
	linkIndex     int
	reportSource  netip.Addr // of reports
	linkMAC       facts.MAC
	controlSocket func(f func(fd uintptr)) error // of the packet socket
	sendFrame     func(b []byte)

	mu                sync.Mutex // guards what follows
	kernelSocket      int        // an ordinary one, for the kernel's memberships; -1 if there is none
	membershipByGroup map[netip.Addr]*membership
	kernelCount       int // how many of them are the kernel's
	// pendingReportsByGroup are groups of our own that were joined and not yet reported twice.
	pendingReportsByGroup map[netip.Addr]int
	// reportTimer calls report; it is armed while there are groups of our own.
	reportTimer *time.Timer
	reportDueAt time.Time
}

// membership is a group. Addresses that end alike share one.
type membership struct {
	userCount      int
	isSelfReported bool // reported by us, not by the kernel
}

// newGroupMemberships joins the group of all nodes, to which announcements go.
func newGroupMemberships(l facts.Link, control func(f func(fd uintptr)) error, send func([]byte)) (*groupMemberships, error) {
	g := &groupMemberships{
		linkIndex: l.Index, reportSource: netip.IPv6Unspecified(), linkMAC: l.MAC, controlSocket: control, sendFrame: send,
		membershipByGroup: map[netip.Addr]*membership{}, pendingReportsByGroup: map[netip.Addr]int{},
	}
	for _, p := range l.Prefixes {
		if p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			g.reportSource = p.Addr()
		}
	}
	if err := g.setPacketMembership(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_MULTICAST, layer2.AnnouncementMAC(allNodesGroup)); err != nil {
		return nil, err
	}
	var err error
	if g.kernelSocket, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		g.kernelSocket = -1 // the kernel has IPv6 off: every group is our own then
	}
	return g, nil
}

// setPacketMembership changes what the packet socket makes the card take in.
func (g *groupMemberships) setPacketMembership(option int, kind uint16, mac facts.MAC) error {
	r := unix.PacketMreq{Ifindex: int32(g.linkIndex), Type: kind, Alen: uint16(len(mac))}
	copy(r.Address[:], mac[:])
	var err error
	if failed := g.controlSocket(func(fd uintptr) { err = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, option, &r) }); failed != nil {
		return failed
	}
	return err
}

// setKernelMembership has the kernel join or leave a group, and so report it.
func (g *groupMemberships) setKernelMembership(option int, group netip.Addr) error {
	if g.kernelSocket < 0 {
		return unix.EAFNOSUPPORT
	}
	return unix.SetsockoptIPv6Mreq(g.kernelSocket, unix.IPPROTO_IPV6, option, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(g.linkIndex)})
}

// joinGroupOf lets questions about the address in.
func (g *groupMemberships) joinGroupOf(a netip.Addr) error {
	group, err := ndp.SolicitedNodeMulticast(a)
	if err != nil {
		return fmt.Errorf("joining the group of %s: %w: %w", a, layer2.ErrNotSent, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if m := g.membershipByGroup[group]; m != nil {
		m.userCount++
		return nil
	}
	m := &membership{userCount: 1}
	if m.isSelfReported = g.kernelCount >= kernelGroupsLimit || g.setKernelMembership(unix.IPV6_JOIN_GROUP, group) != nil; m.isSelfReported {
		err = g.beginSelfReporting(group)
	} else {
		err = g.setPacketMembership(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_MULTICAST, layer2.RequestMAC(a))
		g.kernelCount++
	}
	if err != nil {
		return fmt.Errorf("joining the group of %s: %w", a, classifyError(err))
	}
	g.membershipByGroup[group] = m
	return nil
}

// beginSelfReporting begins to report a group. The first has the card take in every group.
func (g *groupMemberships) beginSelfReporting(group netip.Addr) error {
	if g.selfReportedCount() == 0 {
		if err := g.setPacketMembership(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_ALLMULTI, facts.MAC{}); err != nil {
			return err
		}
	}
	g.pendingReportsByGroup[group] = changeReportCount
	g.scheduleReport(reportDelay)
	return nil
}

// selfReportedCount counts the groups of our own.
func (g *groupMemberships) selfReportedCount() int { return len(g.membershipByGroup) - g.kernelCount }

// leaveGroupOf undoes join.
func (g *groupMemberships) leaveGroupOf(a netip.Addr) {
	group, err := ndp.SolicitedNodeMulticast(a)
	if err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.membershipByGroup[group]
	if m == nil {
		return
	}
	if m.userCount--; m.userCount > 0 {
		return
	}
	delete(g.membershipByGroup, group)
	// Where leaving fails too much is let in, and not answered.
	if !m.isSelfReported {
		g.kernelCount--
		_ = g.setKernelMembership(unix.IPV6_LEAVE_GROUP, group)
		_ = g.setPacketMembership(unix.PACKET_DROP_MEMBERSHIP, unix.PACKET_MR_MULTICAST, layer2.RequestMAC(a))
		return
	}
	delete(g.pendingReportsByGroup, group)
	g.sendReports(changeToInclude, []netip.Addr{group}) // of no source: left
	if g.selfReportedCount() == 0 {
		_ = g.setPacketMembership(unix.PACKET_DROP_MEMBERSHIP, unix.PACKET_MR_ALLMULTI, facts.MAC{})
	}
}

// When our own groups are reported (RFC 3810 section 9).
const (
	// reportDelay gathers the groups of one turn of the engine.
	reportDelay = 10 * time.Millisecond
	// changeReportCount and changeReportInterval: a change is told as often as the Robustness Variable says, a second apart at most.
	changeReportCount    = 2
	changeReportInterval = time.Second
	// allGroupsReportInterval keeps the state of switches alive where no router asks, less than half of the 260 s after which they
	// forget a listener.
	allGroupsReportInterval = 100 * time.Second
)

// scheduleReport has report called after d, or sooner if that was the plan. The caller holds mu.
func (g *groupMemberships) scheduleReport(d time.Duration) {
	at := time.Now().Add(d)
	if g.reportTimer != nil && !g.reportDueAt.IsZero() && !at.Before(g.reportDueAt) {
		return
	}
	if g.reportTimer != nil {
		g.reportTimer.Stop()
	}
	g.reportDueAt, g.reportTimer = at, time.AfterFunc(d, g.sendDueReport)
}

// sendDueReport tells the switches of changes, or of everything.
func (g *groupMemberships) sendDueReport() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reportDueAt = time.Time{}
	if g.selfReportedCount() == 0 {
		return
	}
	if len(g.pendingReportsByGroup) == 0 {
		g.sendReports(modeIsExclude, g.selfReportedGroups())
		g.scheduleReport(allGroupsReportInterval)
		return
	}
	g.sendReports(changeToExclude, slices.SortedFunc(maps.Keys(g.pendingReportsByGroup), netip.Addr.Compare))
	for group := range g.pendingReportsByGroup {
		if g.pendingReportsByGroup[group]--; g.pendingReportsByGroup[group] == 0 {
			delete(g.pendingReportsByGroup, group)
		}
	}
	g.scheduleReport(changeReportInterval)
}

// answerQuery answers a router's or switch's question which groups are listened to.
func (g *groupMemberships) answerQuery() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.selfReportedCount() > 0 {
		g.scheduleReport(reportDelay)
	}
}

func (g *groupMemberships) selfReportedGroups() []netip.Addr {
	out := make([]netip.Addr, 0, g.selfReportedCount())
	for group, m := range g.membershipByGroup {
		if m.isSelfReported {
			out = append(out, group)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// sendReports sends as many reports as the groups need.
func (g *groupMemberships) sendReports(kind byte, all []netip.Addr) {
	for part := range slices.Chunk(all, maxRecordsPerReport) {
		g.sendFrame(encodeMLDReport(g.linkMAC, g.reportSource, kind, part))
	}
}

// closeMemberships leaves every group: the kernel leaves its own, and ours end with the state of the switches.
func (g *groupMemberships) closeMemberships() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reportTimer != nil {
		g.reportTimer.Stop()
	}
	clear(g.membershipByGroup)
	g.kernelCount = 0
	if g.kernelSocket >= 0 {
		_ = unix.Close(g.kernelSocket) // nothing was written
		g.kernelSocket = -1
	}
}
