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

// kernelGroupsLimit is how many groups are joined through the kernel. The kernel searches its list
// of groups for every multicast packet of the link: with 10,000 groups that takes more than 100 us
// of CPU per packet, with 256 about 1 us. 256 groups also fit the limit of one socket
// (net.core.optmem_max, at least 20 kB). For further groups the network card receives all multicast
// packets, the filter drops the others, and this package sends the MLD reports itself.
const kernelGroupsLimit = 256

// groupMemberships are the multicast groups that an IPv6 port has joined. The card of
// the link has to receive their packets, and switches that snoop on MLD need reports.
// Any goroutine may call its methods.
type groupMemberships struct {
	linkIndex          int
	reportSourceIP     netip.Addr // of MLD reports
	linkMAC            facts.MAC
	accessPacketSocket func(f func(fd uintptr)) error // accesses the packet socket
	sendFrame          func(b []byte)

	mu sync.Mutex // guards the fields below
	// an ordinary socket for memberships in the kernel; -1 if there is none
	kernelMembershipSocket int
	membershipByGroup      map[netip.Addr]*groupMembership
	kernelGroupCount       int // how many of them are in the kernel
	// pendingReportsByGroup has the new groups that we report, with the number of
	// reports still due.
	pendingReportsByGroup map[netip.Addr]int
	// reportTimer calls sendDueReport. It runs while there are groups that we report.
	reportTimer *time.Timer
	reportDueAt time.Time
}

// groupMembership is a joined group. Addresses with the same last three bytes share one.
type groupMembership struct {
	userCount      int
	isSelfReported bool // reported by us, not by the kernel
}

// newGroupMemberships joins the group of all nodes, to which announcements are sent.
func newGroupMemberships(l facts.Link, control func(f func(fd uintptr)) error, send func([]byte)) (*groupMemberships, error) {
	g := &groupMemberships{
		linkIndex: l.Index, reportSourceIP: netip.IPv6Unspecified(), linkMAC: l.MAC, accessPacketSocket: control, sendFrame: send,
		membershipByGroup: map[netip.Addr]*groupMembership{}, pendingReportsByGroup: map[netip.Addr]int{},
	}
	for _, p := range l.Prefixes {
		if p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			g.reportSourceIP = p.Addr()
		}
	}
	if err := g.setPacketMembership(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_MULTICAST, layer2.AnnouncementDestinationMAC(allNodesGroup)); err != nil {
		return nil, err
	}
	var err error
	if g.kernelMembershipSocket, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		g.kernelMembershipSocket = -1 // the kernel has IPv6 off: we report every group
	}
	return g, nil
}

// setPacketMembership changes what the network card receives for the packet socket.
func (g *groupMemberships) setPacketMembership(option int, kind uint16, mac facts.MAC) error {
	r := unix.PacketMreq{Ifindex: int32(g.linkIndex), Type: kind, Alen: uint16(len(mac))}
	copy(r.Address[:], mac[:])
	var err error
	if failed := g.accessPacketSocket(func(fd uintptr) { err = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, option, &r) }); failed != nil {
		return failed
	}
	return err
}

// setKernelMembership makes the kernel join or leave a group. The kernel sends the reports.
func (g *groupMemberships) setKernelMembership(option int, group netip.Addr) error {
	if g.kernelMembershipSocket < 0 {
		return unix.EAFNOSUPPORT
	}
	return unix.SetsockoptIPv6Mreq(g.kernelMembershipSocket, unix.IPPROTO_IPV6, option, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(g.linkIndex)})
}

// joinGroupOfAddress joins the group to which requests for the address are sent.
func (g *groupMemberships) joinGroupOfAddress(a netip.Addr) error {
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
	m := &groupMembership{userCount: 1}
	if m.isSelfReported = g.kernelGroupCount >= kernelGroupsLimit || g.setKernelMembership(unix.IPV6_JOIN_GROUP, group) != nil; m.isSelfReported {
		err = g.beginSelfReporting(group)
	} else {
		err = g.setPacketMembership(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_MULTICAST, layer2.RequestDestinationMAC(a))
		g.kernelGroupCount++
	}
	if err != nil {
		return fmt.Errorf("joining the group of %s: %w", a, translateKernelError(err))
	}
	g.membershipByGroup[group] = m
	return nil
}

// beginSelfReporting begins to report a group. With the first one, the card receives
// all multicast packets.
func (g *groupMemberships) beginSelfReporting(group netip.Addr) error {
	if g.selfReportedCount() == 0 {
		if err := g.setPacketMembership(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_ALLMULTI, facts.MAC{}); err != nil {
			return err
		}
	}
	g.pendingReportsByGroup[group] = changeReportCount
	g.scheduleReport(reportCoalesceDelay)
	return nil
}

// selfReportedCount returns how many groups we report.
func (g *groupMemberships) selfReportedCount() int {
	return len(g.membershipByGroup) - g.kernelGroupCount
}

// leaveGroupOfAddress undoes joinGroupOfAddress.
func (g *groupMemberships) leaveGroupOfAddress(a netip.Addr) {
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
	// If this fails, the port receives requests that it does not answer.
	if !m.isSelfReported {
		g.kernelGroupCount--
		_ = g.setKernelMembership(unix.IPV6_LEAVE_GROUP, group)
		_ = g.setPacketMembership(unix.PACKET_DROP_MEMBERSHIP, unix.PACKET_MR_MULTICAST, layer2.RequestDestinationMAC(a))
		return
	}
	delete(g.pendingReportsByGroup, group)
	g.sendReports(mldChangeToInclude, []netip.Addr{group}) // includes no source, which means: left
	if g.selfReportedCount() == 0 {
		_ = g.setPacketMembership(unix.PACKET_DROP_MEMBERSHIP, unix.PACKET_MR_ALLMULTI, facts.MAC{})
	}
}

// The times of the reports that we send (RFC 3810 section 9).
const (
	// reportCoalesceDelay gathers the groups that the engine joins together.
	reportCoalesceDelay = 10 * time.Millisecond
	// A change is reported as often as the Robustness Variable says, at most a second apart.
	changeReportCount    = 2
	changeReportInterval = time.Second
	// allGroupsReportInterval keeps the entries of switches alive where no router sends queries.
	// They forget a listener after 260 s, which is more than twice as long.
	allGroupsReportInterval = 100 * time.Second
)

// scheduleReport calls sendDueReport after d, unless that is due earlier anyway. The
// caller holds mu.
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

// sendDueReport reports the changed groups, or all groups if none changed.
func (g *groupMemberships) sendDueReport() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reportDueAt = time.Time{}
	if g.selfReportedCount() == 0 {
		return
	}
	if len(g.pendingReportsByGroup) == 0 {
		g.sendReports(mldModeIsExclude, g.selfReportedGroups())
		g.scheduleReport(allGroupsReportInterval)
		return
	}
	g.sendReports(mldChangeToExclude, slices.SortedFunc(maps.Keys(g.pendingReportsByGroup), netip.Addr.Compare))
	for group := range g.pendingReportsByGroup {
		if g.pendingReportsByGroup[group]--; g.pendingReportsByGroup[group] == 0 {
			delete(g.pendingReportsByGroup, group)
		}
	}
	g.scheduleReport(changeReportInterval)
}

// answerMLDQuery answers the query of a router or switch for the joined groups.
func (g *groupMemberships) answerMLDQuery() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.selfReportedCount() > 0 {
		g.scheduleReport(reportCoalesceDelay)
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
		g.sendFrame(encodeMLDReport(g.linkMAC, g.reportSourceIP, kind, part))
	}
}

// closeMemberships leaves every group. The kernel leaves its own groups; ours expire
// in the switches.
func (g *groupMemberships) closeMemberships() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reportTimer != nil {
		g.reportTimer.Stop()
	}
	clear(g.membershipByGroup)
	g.kernelGroupCount = 0
	if g.kernelMembershipSocket >= 0 {
		_ = unix.Close(g.kernelMembershipSocket) // nothing was written
		g.kernelMembershipSocket = -1
	}
}
