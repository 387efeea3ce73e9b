package wire

import (
	"fmt"
	"net/netip"

	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// groups are the multicast groups that a port for IPv6 has joined. A group is joined twice: on the packet socket, which
// makes the network card take it in, and on an ordinary socket, for which the kernel tells the switches (MLD). The
// second is refused where the kernel has IPv6 off; then a switch that snoops on MLD may keep questions from us.
type groups struct {
	link   int
	packet func(f func(fd uintptr)) error
	socket int // the ordinary one; -1 if there is none
	joined map[facts.MAC]int
}

// newGroups joins the group of all nodes, to which announcements go.
func newGroups(link int, packet func(f func(fd uintptr)) error) (*groups, error) {
	g := &groups{link: link, packet: packet, joined: map[facts.MAC]int{}}
	if err := g.member(unix.PACKET_ADD_MEMBERSHIP, layer2.Everybody(allNodes)); err != nil {
		return nil, err
	}
	var err error
	if g.socket, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		g.socket = -1
	}
	return g, nil
}

// member joins or leaves a group on the packet socket.
func (g *groups) member(option int, mac facts.MAC) error {
	r := unix.PacketMreq{Ifindex: int32(g.link), Type: unix.PACKET_MR_MULTICAST, Alen: uint16(len(mac))}
	copy(r.Address[:], mac[:])
	var err error
	if failed := g.packet(func(fd uintptr) { err = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, option, &r) }); failed != nil {
		return failed
	}
	return err
}

// kernel joins or leaves a group on the ordinary socket; see groups for why its error is dropped.
func (g *groups) kernel(option int, a netip.Addr) {
	group, err := ndp.SolicitedNodeMulticast(a)
	if err != nil || g.socket < 0 {
		return
	}
	_ = unix.SetsockoptIPv6Mreq(g.socket, unix.IPPROTO_IPV6, option, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(g.link)})
}

// join lets questions about the address in; addresses that end alike share a group.
func (g *groups) join(a netip.Addr) error {
	mac := layer2.Asked(a)
	if g.joined[mac] == 0 {
		if err := g.member(unix.PACKET_ADD_MEMBERSHIP, mac); err != nil {
			return fmt.Errorf("joining the group of %s: %w", a, classify(err))
		}
		g.kernel(unix.IPV6_JOIN_GROUP, a)
	}
	g.joined[mac]++
	return nil
}

// leave undoes join.
func (g *groups) leave(a netip.Addr) {
	mac := layer2.Asked(a)
	if g.joined[mac]--; g.joined[mac] > 0 {
		return
	}
	delete(g.joined, mac)
	_ = g.member(unix.PACKET_DROP_MEMBERSHIP, mac) // too much is let in then, and not answered
	g.kernel(unix.IPV6_LEAVE_GROUP, a)
}

// close leaves every group.
func (g *groups) close() {
	if g.socket >= 0 {
		_ = unix.Close(g.socket) // nothing was written
		g.socket = -1
	}
}
