package wire

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
)

// snoopingSwitchHarness is an IPv6 port on a link to a switch that snoops on MLD.
type snoopingSwitchHarness struct {
	t                              *testing.T
	nodeNamespace, switchNamespace *netnstest.Namespace
	port                           layer2.Port
}

func newSnoopingSwitchHarness(t *testing.T) *snoopingSwitchHarness {
	l := &snoopingSwitchHarness{t: t, nodeNamespace: netnstest.NewNamespace(t), switchNamespace: netnstest.NewNamespace(t)}
	l.nodeNamespace.AddVethPair("eth0", l.switchNamespace, "port0")
	l.switchNamespace.MustRunInside(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		on := true
		bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &on}
		port, err := netlink.LinkByName("port0")
		return errors.Join(err, netlink.LinkAdd(bridge), netlink.LinkSetMaster(port, bridge), netlink.LinkSetUp(bridge))
	})
	var link facts.Link
	l.nodeNamespace.MustRunInside(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err == nil {
			link = facts.Link{Index: ifi.Index, Name: "eth0", MAC: facts.MAC(ifi.HardwareAddr)}
			l.port, err = PacketSocketOpener{}.OpenPort(link, ipfamily.IPv6)
		}
		return err
	})
	ended := make(chan error, 1)
	go func() {
		ended <- l.port.ReceiveFrames(func(layer2.ARPOrNDPFrame) (layer2.ARPOrNDPFrame, bool) { return layer2.ARPOrNDPFrame{}, false }, nil)
	}()
	t.Cleanup(func() {
		_ = l.port.Close()
		<-ended
	})
	return l
}

func numberedAddress(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0, 0xa8, 14: byte(i >> 8), 15: byte(i)})
}

// countGroupsKnownToSwitch returns how many of the first n groups the switch knows.
func (l *snoopingSwitchHarness) countGroupsKnownToSwitch(n int) (count int) {
	l.t.Helper()
	l.switchNamespace.MustRunInside(func() error {
		request := nl.NewNetlinkRequest(unix.RTM_GETMDB, unix.NLM_F_DUMP)
		request.AddRawData([]byte{unix.AF_BRIDGE, 0, 0, 0, 0, 0, 0, 0}) // struct br_port_msg
		messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_GETMDB)
		all := bytes.Join(messages, nil)
		for i := range n {
			group := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 14: byte(i >> 8), 15: byte(i)}).As16()
			if bytes.Contains(all, group[:]) {
				count++
			}
		}
		return err
	})
	return count
}

func (l *snoopingSwitchHarness) awaitCondition(sentence string, f func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !f(); {
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: not within a minute", sentence)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// isAllMulticast says whether the card receives all multicast packets.
func (l *snoopingSwitchHarness) isAllMulticast() (all bool) {
	l.nodeNamespace.MustRunInside(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		request := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
		info := nl.NewIfInfomsg(unix.AF_UNSPEC)
		info.Index = int32(ifi.Index)
		request.AddData(info)
		messages, err := request.Execute(unix.NETLINK_ROUTE, 0)
		if err != nil {
			return err
		}
		attrs, err := nl.ParseRouteAttr(messages[0][unix.SizeofIfInfomsg:])
		for _, a := range attrs {
			all = all || (a.Attr.Type == unix.IFLA_ALLMULTI && a.Value[0] > 0)
		}
		return err
	})
	return all
}

// The switch knows every group, even when there are more than maxGroupsJoinedThroughKernel. Only
// then the card receives all multicast packets.
func TestSnoopingSwitchKnowsEveryGroup(t *testing.T) {
	l := newSnoopingSwitchHarness(t)
	const few, many = maxGroupsJoinedThroughKernel / 2, 3 * maxGroupsJoinedThroughKernel
	for i := range few {
		if err := l.port.JoinGroupOfAddress(numberedAddress(i)); err != nil {
			t.Fatal(err)
		}
	}
	if l.isAllMulticast() {
		t.Errorf("with %d groups the card takes in every multicast packet", few)
	}
	for i := few; i < many; i++ {
		if err := l.port.JoinGroupOfAddress(numberedAddress(i)); err != nil {
			t.Fatal(err)
		}
	}
	if !l.isAllMulticast() {
		t.Errorf("with %d groups the card does not take in every multicast packet", many)
	}
	l.awaitCondition("the switch knows every group", func() bool { return l.countGroupsKnownToSwitch(many) == many })
	for i := maxGroupsJoinedThroughKernel; i < many; i++ {
		l.port.LeaveGroupOfAddress(numberedAddress(i))
	}
	if l.isAllMulticast() {
		t.Error("the card takes in every multicast packet when few groups are left")
	}
	if n := l.countGroupsKnownToSwitch(maxGroupsJoinedThroughKernel); n != maxGroupsJoinedThroughKernel {
		t.Errorf("the switch knows %d of the %d groups that are left", n, maxGroupsJoinedThroughKernel)
	}
}

// A switch that was restarted sends a query and learns every group again.
func TestMLDQueryIsAnswered(t *testing.T) {
	l := newSnoopingSwitchHarness(t)
	const many = maxGroupsJoinedThroughKernel + 100
	for i := range many {
		if err := l.port.JoinGroupOfAddress(numberedAddress(i)); err != nil {
			t.Fatal(err)
		}
	}
	l.awaitCondition("the switch knows every group", func() bool { return l.countGroupsKnownToSwitch(many) == many })
	var querier int
	l.switchNamespace.MustRunInside(func() (err error) { // deletes what the switch knows
		p, err := netlink.LinkByName("port0")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetNoMaster(p), l.replugSwitchPort(p)); err != nil {
			return err
		}
		querier, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	defer unix.Close(querier)
	// This is after the two reports of a change. The query is repeated, as a querier does.
	l.awaitCondition("the switch knows every group again", func() bool {
		l.switchNamespace.MustRunInside(func() error {
			p, err := net.InterfaceByName("port0")
			if err != nil {
				return err
			}
			return unix.Sendto(querier, buildMLDQuery(facts.MAC(p.HardwareAddr)), 0, &unix.SockaddrLinklayer{Ifindex: p.Index, Protocol: networkByteOrder(unix.ETH_P_IPV6)})
		})
		return l.countGroupsKnownToSwitch(many) == many
	})
}

// replugSwitchPort connects the port to the switch again. The switch has forgotten its groups.
func (l *snoopingSwitchHarness) replugSwitchPort(port netlink.Link) error {
	b, err := netlink.LinkByName("br0")
	return errors.Join(err, netlink.LinkSetMaster(port, b))
}

// buildMLDQuery returns a General Query (RFC 3810 section 5.1), made from a report.
func buildMLDQuery(mac facts.MAC) []byte {
	b := encodeMLDReport(mac, netip.MustParseAddr("fe80::1"), mldModeIsExclude, []netip.Addr{netip.IPv6Unspecified()})
	b[mldMessageOffset], b[mldMessageOffset+2], b[mldMessageOffset+3] = typeMLDQuery, 0, 0
	clear(b[mldMessageOffset+4:])
	b[mldMessageOffset+5] = 10 // the maximum response delay, in milliseconds
	all := allNodesGroup.As16()
	copy(b[ip6DestinationOffsetInFrame:], all[:])
	copy(b[0:6], []byte{0x33, 0x33, 0, 0, 0, 1})
	sum := ^icmpv6Checksum(b[ip6SourceOffsetInFrame:icmp6Offset], b[mldMessageOffset:])
	b[mldMessageOffset+2], b[mldMessageOffset+3] = byte(sum>>8), byte(sum)
	return b
}

// The filter passes queries, and not reports.
func TestFilterPassesMLDQueries(t *testing.T) {
	vm := newFilterVM(t, ndpFilter)
	report := encodeMLDReport(nodeMAC, heldIPv6, mldModeIsExclude, []netip.Addr{heldIPv6})
	if !isICMPv6ChecksumValid(report[ip6SourceOffsetInFrame:icmp6Offset], report[mldMessageOffset:]) {
		t.Error("the checksum of a report is wrong")
	}
	for name, tt := range map[string]struct {
		frame []byte
		want  bool
	}{"a query": {buildMLDQuery(clientMAC), true}, "a report": {report, false}} {
		n, err := vm.Run(tt.frame)
		if err != nil || (n > 0) != tt.want || isMLDQuery(tt.frame) != tt.want {
			t.Errorf("%s: %d bytes are let in (%v), a query: %v", name, n, err, isMLDQuery(tt.frame))
		}
	}
}
