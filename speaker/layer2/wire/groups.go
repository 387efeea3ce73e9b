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

// maxGroupsJoinedThroughKernel is how many groups are joined through the kernel. The kernel
// searches its list of groups for every multicast packet of the link: with 10,000 groups that takes
// more than 100 us of CPU per packet, with 256 about 1 us. 256 groups also fit the limit of one
// socket (net.core.optmem_max, at least 20 kB). For further groups the network card receives all
// multicast packets, the filter drops the others, and this package sends the MLD reports itself.
const maxGroupsJoinedThroughKernel = 256

// groupMemberships are the multicast groups that an IPv6 port has joined. The card of
// the link has to receive their packets, and switches that snoop on MLD need reports.
// Any goroutine may call its methods.
type groupMemberships struct {
	linkIndex            int
	mldReportSourceIP    netip.Addr // of MLD reports
	linkMAC              facts.MAC
	callWithPacketSocket func(f func(fd uintptr)) error // accesses the packet socket
	sendFrame            func(b []byte)

	mu sync.Mutex // guards the fields below
	// an ordinary socket for memberships in the kernel; -1 if there is none
	kernelMembershipSocket int
	membershipByGroup      map[netip.Addr]*groupMembership
	kernelJoinedGroupCount int // how many of them are in the kernel
	// mldReportsLeftByGroup has the new groups that we report, with the number of
	// reports still due.
	mldReportsLeftByGroup map[netip.Addr]int
	// mldReportTimer calls sendDueMLDReport. It runs while there are groups that we report.
	mldReportTimer *time.Timer
	mldReportDueAt time.Time
}

// groupMembership is a joined group. Addresses with the same last three bytes share one.
type groupMembership struct {
	joinedAddressCount  int
	isReportedBySpeaker bool // reported by us, not by the kernel
}

// newGroupMemberships joins the group of all nodes, to which announcements are sent.
func newGroupMemberships(l facts.Link, control func(f func(fd uintptr)) error, send func([]byte)) (*groupMemberships, error) {
	g := &groupMemberships{
		linkIndex: l.Index, mldReportSourceIP: netip.IPv6Unspecified(), linkMAC: l.MAC, callWithPacketSocket: control, sendFrame: send,
		membershipByGroup: map[netip.Addr]*groupMembership{}, mldReportsLeftByGroup: map[netip.Addr]int{},
	}
	for _, p := range l.AddressesWithPrefixLength {
		if p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			g.mldReportSourceIP = p.Addr()
		}
	}
	if err := g.changePacketSocketMembership(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_MULTICAST, layer2.AnnouncementDestinationMAC(allNodesGroup)); err != nil {
		return nil, err
	}
	var err error
	if g.kernelMembershipSocket, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		g.kernelMembershipSocket = -1 // the kernel has IPv6 off: we report every group
	}
	return g, nil
}

// changePacketSocketMembership changes what the network card receives for the packet socket.
func (g *groupMemberships) changePacketSocketMembership(option int, kind uint16, mac facts.MAC) error {
	r := unix.PacketMreq{Ifindex: int32(g.linkIndex), Type: kind, Alen: uint16(len(mac))}
	copy(r.Address[:], mac[:])
	var err error
	if failed := g.callWithPacketSocket(func(fd uintptr) { err = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, option, &r) }); failed != nil {
		return failed
	}
	return err
}

// changeKernelMembership makes the kernel join or leave a group. The kernel sends the reports.
func (g *groupMemberships) changeKernelMembership(option int, group netip.Addr) error {
	if g.kernelMembershipSocket < 0 {
		return unix.EAFNOSUPPORT
	}
	return unix.SetsockoptIPv6Mreq(g.kernelMembershipSocket, unix.IPPROTO_IPV6, option, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(g.linkIndex)})
}

// joinGroupOfAddress joins the group to which requests for the address are sent.
func (g *groupMemberships) joinGroupOfAddress(a netip.Addr) error {
	group, err := ndp.SolicitedNodeMulticast(a)
	if err != nil {
		return fmt.Errorf("joining the group of %s: %w: %w", a, layer2.ErrFrameNotSent, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if m := g.membershipByGroup[group]; m != nil {
		m.joinedAddressCount++
		return nil
	}
	m := &groupMembership{joinedAddressCount: 1}
	if m.isReportedBySpeaker = g.kernelJoinedGroupCount >= maxGroupsJoinedThroughKernel || g.changeKernelMembership(unix.IPV6_JOIN_GROUP, group) != nil; m.isReportedBySpeaker {
		err = g.beginMLDReportsOfGroup(group)
	} else {
		err = g.changePacketSocketMembership(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_MULTICAST, layer2.RequestDestinationMAC(a))
		g.kernelJoinedGroupCount++
	}
	if err != nil {
		return fmt.Errorf("joining the group of %s: %w", a, toEngineError(err))
	}
	g.membershipByGroup[group] = m
	return nil
}

// beginMLDReportsOfGroup begins to report a group. With the first one, the card receives
// all multicast packets.
func (g *groupMemberships) beginMLDReportsOfGroup(group netip.Addr) error {
	if g.speakerReportedGroupCount() == 0 {
		if err := g.changePacketSocketMembership(unix.PACKET_ADD_MEMBERSHIP, unix.PACKET_MR_ALLMULTI, facts.MAC{}); err != nil {
			return err
		}
	}
	g.mldReportsLeftByGroup[group] = mldReportsPerGroupChange
	g.scheduleMLDReport(mldReportCoalesceDelay)
	return nil
}

// speakerReportedGroupCount returns how many groups we report.
func (g *groupMemberships) speakerReportedGroupCount() int {
	return len(g.membershipByGroup) - g.kernelJoinedGroupCount
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
	if m.joinedAddressCount--; m.joinedAddressCount > 0 {
		return
	}
	delete(g.membershipByGroup, group)
	// If this fails, the port receives requests that it does not answer.
	if !m.isReportedBySpeaker {
		g.kernelJoinedGroupCount--
		_ = g.changeKernelMembership(unix.IPV6_LEAVE_GROUP, group)
		_ = g.changePacketSocketMembership(unix.PACKET_DROP_MEMBERSHIP, unix.PACKET_MR_MULTICAST, layer2.RequestDestinationMAC(a))
		return
	}
	delete(g.mldReportsLeftByGroup, group)
	// includes no source, which means: left
	g.sendMLDReports(mldChangeToInclude, []netip.Addr{group})
	if g.speakerReportedGroupCount() == 0 {
		_ = g.changePacketSocketMembership(unix.PACKET_DROP_MEMBERSHIP, unix.PACKET_MR_ALLMULTI, facts.MAC{})
	}
}

// The times of the reports that we send (RFC 3810 section 9).
const (
	// mldReportCoalesceDelay gathers the groups that the engine joins together.
	mldReportCoalesceDelay = 10 * time.Millisecond
	// A change is reported as often as the Robustness Variable says, at most a second apart.
	mldReportsPerGroupChange = 2
	mldChangeReportInterval  = time.Second
	// mldAllGroupsReportInterval keeps the entries of switches alive where no router sends queries.
	// They forget a listener after 260 s, which is more than twice as long.
	mldAllGroupsReportInterval = 100 * time.Second
)

// scheduleMLDReport calls sendDueMLDReport after d, unless that is due earlier anyway. The
// caller holds mu.
func (g *groupMemberships) scheduleMLDReport(d time.Duration) {
	at := time.Now().Add(d)
	if g.mldReportTimer != nil && !g.mldReportDueAt.IsZero() && !at.Before(g.mldReportDueAt) {
		return
	}
	if g.mldReportTimer != nil {
		g.mldReportTimer.Stop()
	}
	g.mldReportDueAt, g.mldReportTimer = at, time.AfterFunc(d, g.sendDueMLDReport)
}

// sendDueMLDReport reports the changed groups, or all groups if none changed.
func (g *groupMemberships) sendDueMLDReport() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mldReportDueAt = time.Time{}
	if g.speakerReportedGroupCount() == 0 {
		return
	}
	if len(g.mldReportsLeftByGroup) == 0 {
		g.sendMLDReports(mldModeIsExclude, g.speakerReportedGroups())
		g.scheduleMLDReport(mldAllGroupsReportInterval)
		return
	}
	g.sendMLDReports(mldChangeToExclude, slices.SortedFunc(maps.Keys(g.mldReportsLeftByGroup), netip.Addr.Compare))
	for group := range g.mldReportsLeftByGroup {
		if g.mldReportsLeftByGroup[group]--; g.mldReportsLeftByGroup[group] == 0 {
			delete(g.mldReportsLeftByGroup, group)
		}
	}
	g.scheduleMLDReport(mldChangeReportInterval)
}

// answerMLDQuery answers the query of a router or switch for the joined groups.
func (g *groupMemberships) answerMLDQuery() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.speakerReportedGroupCount() > 0 {
		g.scheduleMLDReport(mldReportCoalesceDelay)
	}
}

func (g *groupMemberships) speakerReportedGroups() []netip.Addr {
	out := make([]netip.Addr, 0, g.speakerReportedGroupCount())
	for group, m := range g.membershipByGroup {
		if m.isReportedBySpeaker {
			out = append(out, group)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// sendMLDReports sends as many reports as the groups need.
func (g *groupMemberships) sendMLDReports(kind byte, all []netip.Addr) {
	for part := range slices.Chunk(all, maxRecordsPerMLDReport) {
		g.sendFrame(encodeMLDReport(g.linkMAC, g.mldReportSourceIP, kind, part))
	}
}

// closeMemberships leaves every group. The kernel leaves its own groups; ours expire
// in the switches.
func (g *groupMemberships) closeMemberships() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mldReportTimer != nil {
		g.mldReportTimer.Stop()
	}
	clear(g.membershipByGroup)
	g.kernelJoinedGroupCount = 0
	if g.kernelMembershipSocket >= 0 {
		_ = unix.Close(g.kernelMembershipSocket) // nothing was written
		g.kernelMembershipSocket = -1
	}
}
