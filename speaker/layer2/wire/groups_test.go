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

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/links/sandbox"
)

// listener is a port for IPv6 on a link that leads to a switch that snoops on MLD.
type listener struct {
	t          *testing.T
	node, peer *sandbox.Room
	port       layer2.Port
}

func listen(t *testing.T) *listener {
	l := &listener{t: t, node: sandbox.New(t), peer: sandbox.New(t)}
	l.node.Veth("eth0", l.peer, "port0")
	l.peer.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		on := true
		bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &on}
		port, err := netlink.LinkByName("port0")
		return errors.Join(err, netlink.LinkAdd(bridge), netlink.LinkSetMaster(port, bridge), netlink.LinkSetUp(bridge))
	})
	var link facts.Link
	l.node.Do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err == nil {
			link = facts.Link{Index: ifi.Index, Name: "eth0", MAC: facts.MAC(ifi.HardwareAddr)}
			l.port, err = Wire{}.Open(link, layer2.IPv6)
		}
		return err
	})
	ended := make(chan error, 1)
	go func() {
		ended <- l.port.Receive(func(layer2.Frame) (layer2.Frame, bool) { return layer2.Frame{}, false })
	}()
	t.Cleanup(func() {
		_ = l.port.Close()
		<-ended
	})
	return l
}

func numbered(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0, 0xa8, 14: byte(i >> 8), 15: byte(i)})
}

// known says how many of the first n groups the switch knows.
func (l *listener) known(n int) (count int) {
	l.t.Helper()
	l.peer.Do(func() error {
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

func (l *listener) await(sentence string, f func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !f(); {
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: not within a minute", sentence)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// takesAll says whether the card takes every multicast packet in.
func (l *listener) takesAll() (all bool) {
	l.node.Do(func() error {
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

// More groups than the kernel is asked for are all known to a switch that snoops; the card is asked for all then.
func TestASwitchKnowsEveryGroup(t *testing.T) {
	l := listen(t)
	const few, many = kernelGroups / 2, 3 * kernelGroups
	for i := range few {
		if err := l.port.Join(numbered(i)); err != nil {
			t.Fatal(err)
		}
	}
	if l.takesAll() {
		t.Errorf("with %d groups the card takes in every multicast packet", few)
	}
	for i := few; i < many; i++ {
		if err := l.port.Join(numbered(i)); err != nil {
			t.Fatal(err)
		}
	}
	if !l.takesAll() {
		t.Errorf("with %d groups the card does not take in every multicast packet", many)
	}
	l.await("the switch knows every group", func() bool { return l.known(many) == many })
	for i := kernelGroups; i < many; i++ {
		l.port.Leave(numbered(i))
	}
	if l.takesAll() {
		t.Error("the card takes in every multicast packet when few groups are left")
	}
	if n := l.known(kernelGroups); n != kernelGroups {
		t.Errorf("the switch knows %d of the %d groups that are left", n, kernelGroups)
	}
}

// A switch that was restarted asks, and learns everything anew.
func TestAQueryIsAnswered(t *testing.T) {
	l := listen(t)
	const many = kernelGroups + 100
	for i := range many {
		if err := l.port.Join(numbered(i)); err != nil {
			t.Fatal(err)
		}
	}
	l.await("the switch knows every group", func() bool { return l.known(many) == many })
	var querier int
	l.peer.Do(func() (err error) { // flushes what the switch knows
		p, err := netlink.LinkByName("port0")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetNoMaster(p), l.forget(p)); err != nil {
			return err
		}
		querier, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	defer unix.Close(querier)
	// Past the two reports of a change, and asked again and again, as a querier does.
	l.await("the switch knows every group again", func() bool {
		l.peer.Do(func() error {
			p, err := net.InterfaceByName("port0")
			if err != nil {
				return err
			}
			return unix.Sendto(querier, query(facts.MAC(p.HardwareAddr)), 0, &unix.SockaddrLinklayer{Ifindex: p.Index, Protocol: swap(unix.ETH_P_IPV6)})
		})
		return l.known(many) == many
	})
}

// forget plugs the port in again: the switch has forgotten what it knew of it.
func (l *listener) forget(port netlink.Link) error {
	b, err := netlink.LinkByName("br0")
	return errors.Join(err, netlink.LinkSetMaster(port, b))
}

// query is a General Query (RFC 3810 section 5.1), made of a report.
func query(mac facts.MAC) []byte {
	b := encodeReport(mac, netip.MustParseAddr("fe80::1"), isExclude, []netip.Addr{netip.IPv6Unspecified()})
	b[mld], b[mld+2], b[mld+3] = mldQuery, 0, 0
	clear(b[mld+4:])
	b[mld+5] = 10 // the longest time to answer, in milliseconds
	all := allNodes.As16()
	copy(b[ip6Target:], all[:])
	copy(b[0:6], []byte{0x33, 0x33, 0, 0, 0, 1})
	sum := ^checksum(b[ip6Source:icmp6], b[mld:])
	b[mld+2], b[mld+3] = byte(sum>>8), byte(sum)
	return b
}

// What is no report of ours alone is let through by the filter.
func TestTheFilterLetsQueriesIn(t *testing.T) {
	vm := machine(t, ndpFilter)
	report := encodeReport(node6, held6, isExclude, []netip.Addr{held6})
	if !checksumRight(report[ip6Source:icmp6], report[mld:]) {
		t.Error("the checksum of a report is wrong")
	}
	for name, tt := range map[string]struct {
		frame []byte
		want  bool
	}{"a query": {query(client6), true}, "a report": {report, false}} {
		n, err := vm.Run(tt.frame)
		if err != nil || (n > 0) != tt.want || isQuery(tt.frame) != tt.want {
			t.Errorf("%s: %d bytes are let in (%v), a query: %v", name, n, err, isQuery(tt.frame))
		}
	}
}
