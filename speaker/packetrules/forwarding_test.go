package packetrules

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
)

// testSegment is a client and three nodes on one segment. Each node serves port 80 of the Service
// by itself, and answers each line with its name. The client sends to the node that holds the
// address.
type testSegment struct {
	t      *testing.T
	family testFamily
	client *netnstest.Namespace
	nodes  []*forwardingNode
	// isDualStack adds an IPv6 address of a Service to what is forwarded, without a next hop.
	isDualStack bool
	// isEndOfChain is set if what other nodes forward in vain should go to kube-proxy.
	isEndOfChain bool
}

// forwardingNode is one of the nodes.
type forwardingNode struct {
	*netnstest.Namespace
	name    string
	address netip.Addr
	writer  *Writer
}

func newTestSegment(t *testing.T, f testFamily) *testSegment {
	t.Helper()
	s := &testSegment{t: t, family: f, client: netnstest.NewNamespace(t)}
	segment := netnstest.NewNamespace(t)
	connect := func(n *netnstest.Namespace, port, address string) {
		segment.AddVethPair(port, n, "eth0")
		n.AddAddressToLink("eth0", fmt.Sprintf("%s/%d", address, f.bits))
	}
	connect(s.client, "client", f.client)
	for i := range 3 {
		n := &forwardingNode{Namespace: netnstest.NewNamespace(t), name: string(rune('a' + i)), address: netip.MustParseAddr(strings.TrimSuffix(f.node, "1") + fmt.Sprint(i+1)), writer: NewWriter(time.Now)}
		connect(n.Namespace, n.name, n.address.String())
		s.nodes = append(s.nodes, n)
		s.startServer(n)
	}
	segment.MustRunInside(func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan", Flags: net.FlagUp}}
		err := errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge))
		for _, port := range []string{"client", "a", "b", "c"} {
			l, failed := netlink.LinkByName(port)
			if failed == nil {
				failed = netlink.LinkSetMaster(l, bridge)
			}
			err = errors.Join(err, failed)
		}
		return err
	})
	return s
}

// startServer serves the Service on a node.
func (s *testSegment) startServer(n *forwardingNode) {
	n.MustRunInside(func() error {
		for _, file := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
			if err := os.WriteFile(file, []byte("1"), 0); err != nil {
				return err
			}
		}
		l, err := net.Listen("tcp", net.JoinHostPort(n.address.String(), "8080"))
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					b := make([]byte, 64)
					for {
						if _, err := c.Read(b); err != nil {
							return
						}
						fmt.Fprintln(c, n.name)
					}
				}()
			}
		}()
		return nil
	})
	node := &testNode{t: s.t, namespace: n.Namespace}
	node.nft(fmt.Sprintf("table %s kube-proxy { chain services { type nat hook prerouting priority dstnat; %s daddr %s tcp dport 80 dnat to %s:8080; }; }",
		s.family.nft, s.family.nft, s.family.service, bracketed(n.address.String())))
}

func (n *forwardingNode) mac() (out [6]byte) {
	n.MustRunInside(func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			copy(out[:], l.Attrs().HardwareAddr)
		}
		return err
	})
	return out
}

// moveAddressTo makes the client send packets for the Service to a node.
func (s *testSegment) moveAddressTo(n *forwardingNode) {
	mac := n.mac()
	s.client.MustRunInside(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		_, all, _ := net.ParseCIDR(fmt.Sprintf("%s/%d", s.family.service, addressBits(s.family)))
		return errors.Join(netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: all, Scope: netlink.SCOPE_LINK}),
			netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(s.family.service), HardwareAddr: mac[:]}))
	})
}

// forward sets what a node forwards: to nextHop, and what other nodes forwarded to below. Either
// may be nil.
func (s *testSegment) forward(n, nextHop, below *forwardingNode) {
	s.t.Helper()
	a := intent.ForwardedAddress{Address: netip.MustParseAddr(s.family.service), IsEndOfChain: s.isEndOfChain}
	if nextHop != nil {
		a.NextHop = nextHop.address
	}
	if below != nil {
		a.NextHopOfMembers = below.address
	}
	f := intent.Forwarding{}
	for _, o := range s.nodes {
		if o != n {
			f.MemberMACs = append(f.MemberMACs, o.mac())
		}
	}
	n.MustRunInside(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		a.LinkIndex = l.Attrs().Index
		f.Addresses = []intent.ForwardedAddress{a}
		if s.isDualStack {
			f.Addresses = append(f.Addresses, intent.ForwardedAddress{Address: netip.MustParseAddr(testFamilies[1].service), LinkIndex: a.LinkIndex})
		}
		return n.writer.SetForwarding(f)
	})
}

// open opens a connection to the Service.
func (s *testSegment) open() (c net.Conn) {
	s.t.Helper()
	s.client.MustRunInside(func() (err error) {
		c, err = net.DialTimeout("tcp", net.JoinHostPort(s.family.service, "80"), 3*time.Second)
		return err
	})
	s.t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a line over a connection and returns the name of the node that answers.
func ask(c net.Conn, timeout time.Duration) (string, error) {
	_ = c.SetDeadline(time.Now().Add(timeout))
	if _, err := fmt.Fprintln(c, "who"); err != nil {
		return "", err
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	return strings.TrimSpace(string(b[:n])), err
}

func (s *testSegment) mustBeAnsweredBy(c net.Conn, n *forwardingNode, why string) {
	s.t.Helper()
	if got, err := ask(c, 3*time.Second); err != nil || got != n.name {
		s.t.Errorf("%s: the answer is %q, %v; want it from %s\n%s", why, got, err, n.name, (&testNode{t: s.t, namespace: s.nodes[1].Namespace}).nft("list ruleset"))
	}
}

func (s *testSegment) mustBeRefusedBy(c net.Conn, n *forwardingNode) {
	s.t.Helper()
	if got, err := ask(c, 3*time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Errorf("the answer is %q, %v, want that %s refuses the connection", got, err, n.name)
	}
}

func runOnSegments(t *testing.T, test func(t *testing.T, s *testSegment, a, b, c *forwardingNode)) {
	for _, f := range testFamilies {
		t.Run(f.name, func(t *testing.T) {
			s := newTestSegment(t, f)
			test(t, s, s.nodes[0], s.nodes[1], s.nodes[2])
		})
	}
}

func TestOpenConnectionsStayWithFormerHolders(t *testing.T) {
	runOnSegments(t, func(t *testing.T, s *testSegment, a, b, c *forwardingNode) {
		s.moveAddressTo(a)
		first := s.open()
		s.mustBeAnsweredBy(first, a, "before the move")

		s.forward(b, a, nil)
		s.forward(a, b, nil)
		s.moveAddressTo(b)
		s.mustBeAnsweredBy(first, a, "after the move to b")
		second := s.open()
		s.mustBeAnsweredBy(second, b, "a new connection")

		s.forward(c, b, nil)
		s.forward(b, c, a)
		(&testNode{t: t, namespace: b.Namespace}).nft("list ruleset") // nft can show the rules
		s.moveAddressTo(c)
		s.mustBeAnsweredBy(first, a, "after the move to c")
		s.mustBeAnsweredBy(second, b, "after the move to c")
		third := s.open()

		s.forward(a, c, nil)
		s.forward(c, a, b)
		s.forward(b, a, nil)
		s.moveAddressTo(a)
		s.mustBeAnsweredBy(first, a, "after the move back")
		s.mustBeAnsweredBy(second, b, "after the move back")
		s.mustBeAnsweredBy(third, c, "after the move back")
		if err := second.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		_ = second.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := second.Read(make([]byte, 1)); err == nil || err.Error() != "EOF" {
			t.Errorf("the client has closed its connection to b, and reads %v, want EOF", err)
		}
	})
}

// TestStrictConnectionTrackingKeepsConnections: with this setting, all packets of unknown
// connections are invalid.
func TestStrictConnectionTrackingKeepsConnections(t *testing.T) {
	runOnSegments(t, func(t *testing.T, s *testSegment, a, b, c *forwardingNode) {
		for _, n := range s.nodes {
			n.MustRunInside(func() error {
				return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", []byte("0"), 0)
			})
		}
		s.moveAddressTo(a)
		conn := s.open()
		s.mustBeAnsweredBy(conn, a, "before the moves")
		s.forward(b, a, nil)
		s.forward(c, b, a)
		s.forward(b, c, a)
		s.moveAddressTo(c)
		s.mustBeAnsweredBy(conn, a, "after moves to b and c")
	})
}

// TestConnectionsThatNobodyKnowsAreResetAtTheEndOfTheChain: c dies with a connection, and a held
// the address before it. What went astray is dropped, so that the client repeats it, until the
// rules say that a is the end.
func TestConnectionsThatNobodyKnowsAreResetAtTheEndOfTheChain(t *testing.T) {
	runOnSegments(t, func(t *testing.T, s *testSegment, a, b, c *forwardingNode) {
		s.moveAddressTo(c)
		conn := s.open()
		s.mustBeAnsweredBy(conn, c, "before its death")
		s.forward(b, a, nil)
		s.forward(a, b, nil)
		s.moveAddressTo(b)
		var failed net.Error
		if got, err := ask(conn, unansweredTimeout); !errors.As(err, &failed) || !failed.Timeout() {
			t.Errorf("the answer is %q, %v, want none: the packet went astray", got, err)
		}
		s.isEndOfChain = true
		s.forward(a, b, nil)
		s.mustBeRefusedBy(conn, a)
	})
}

// TestTableOfAnotherVersionIsReplaced: it lacks sets.
func TestTableOfAnotherVersionIsReplaced(t *testing.T) {
	runOnSegments(t, func(t *testing.T, s *testSegment, a, b, _ *forwardingNode) {
		(&testNode{t: t, namespace: b.Namespace}).nft(fmt.Sprintf("table %s %s { chain other { }; }", s.family.nft, forwardingTableName))
		s.moveAddressTo(a)
		conn := s.open()
		s.forward(b, a, nil)
		s.moveAddressTo(b)
		s.mustBeAnsweredBy(conn, a, "after the move to b")
	})
}

// TestForwardingIsAdoptedAndEndsWhereItIsTold: an earlier run of the process has left rules.
func TestForwardingIsAdoptedAndEndsWhereItIsTold(t *testing.T) {
	runOnSegments(t, func(t *testing.T, s *testSegment, a, b, _ *forwardingNode) {
		s.moveAddressTo(a)
		conn := s.open()
		s.mustBeAnsweredBy(conn, a, "before the move")
		s.forward(b, a, nil)
		b.writer = NewWriter(time.Now) // the next run of the process knows nothing yet
		b.MustRunInside(func() error { return b.writer.SetForwarding(intent.Forwarding{}) })
		s.moveAddressTo(b)
		s.mustBeAnsweredBy(conn, a, "after a restart of the speaker of b")
		s.forward(b, a, nil)
		s.mustBeAnsweredBy(conn, a, "with the rules of before")
		s.forward(b, nil, nil) // a is gone
		s.mustBeRefusedBy(conn, b)
	})
}

// TestKernelWithoutIPv6ForwardsIPv4: a family that no kernel has stands for one that it lacks.
func TestKernelWithoutIPv6ForwardsIPv4(t *testing.T) {
	known := families
	defer func() { families = known }()
	families[1].nfproto = 99
	s := newTestSegment(t, testFamilies[0])
	a, b := s.nodes[0], s.nodes[1]
	b.MustRunInside(func() error { return b.writer.CheckKernelForwards() })
	s.moveAddressTo(a)
	conn := s.open()
	s.mustBeAnsweredBy(conn, a, "before the move")
	s.isDualStack = true // other nodes have IPv6 addresses of Services
	s.forward(b, a, nil)
	s.moveAddressTo(b)
	s.mustBeAnsweredBy(conn, a, "after the move to b")
}

// TestForwardingEndsAfterTheProcessAlthoughPacketsGoOn: the elements that nobody renews expire.
func TestForwardingEndsAfterTheProcessAlthoughPacketsGoOn(t *testing.T) {
	runOnSegments(t, func(t *testing.T, s *testSegment, a, b, _ *forwardingNode) {
		s.moveAddressTo(a)
		conn := s.open()
		s.mustBeAnsweredBy(conn, a, "before the move")
		s.forward(b, a, nil)
		s.moveAddressTo(b)
		s.mustBeAnsweredBy(conn, a, "after the move to b")
		node := &testNode{t: t, namespace: b.Namespace}
		node.nft(fmt.Sprintf("flush set %s %s addresses", s.family.nft, forwardingTableName))
		s.mustBeRefusedBy(conn, b)
	})
}

// TestUnusedNextHopsAreRemoved: an earlier run of the process has left the next hop of an address
// that is gone.
func TestUnusedNextHopsAreRemoved(t *testing.T) {
	runOnSegments(t, func(t *testing.T, s *testSegment, a, b, c *forwardingNode) {
		node := &testNode{t: t, namespace: b.Namespace}
		listed := func() string {
			var all string
			for _, r := range []forwardingRole{nextHops, nextHopsOfMembers} {
				all += node.nft(fmt.Sprintf("list map %s %s %s", s.family.nft, forwardingTableName, forwardingSetNames[r]))
			}
			return all
		}
		forgetAll := func() {
			b.writer = NewWriter(time.Now)
			b.MustRunInside(func() error { return b.writer.SetForwarding(intent.Forwarding{}) })
		}
		s.forward(b, a, c)
		forgetAll()
		if n := strings.Count(listed(), s.family.service); n != 2 {
			t.Errorf("while packets may use them, %d next hops are left, want 2:\n%s", n, listed())
		}
		// as if all had expired
		for _, r := range []forwardingRole{activeHops, activeHopsOfMembers} {
			node.nft(fmt.Sprintf("flush set %s %s %s", s.family.nft, forwardingTableName, forwardingSetNames[r]))
		}
		forgetAll()
		if n := strings.Count(listed(), s.family.service); n != 0 {
			t.Errorf("%d next hops are left that no packet uses:\n%s", n, listed())
		}
	})
}

// TestNoPacketIsTouchedSomeTimeAfterAnUninstall: nobody writes any more, while packets go on. The
// timeouts are short, but long enough for the first packets on a busy machine.
func TestNoPacketIsTouchedSomeTimeAfterAnUninstall(t *testing.T) {
	runOnSegments(t, func(t *testing.T, s *testSegment, a, b, c *forwardingNode) {
		for _, n := range s.nodes {
			n.writer.forwardingTimeouts = forwardingTimeouts{activeTimeout: 8 * time.Second, refreshInterval: 2 * time.Second}
		}
		s.moveAddressTo(a)
		conn := s.open()
		s.mustBeAnsweredBy(conn, a, "before the move")
		s.forward(b, a, nil)
		s.forward(a, b, c)
		s.moveAddressTo(b)
		s.mustBeAnsweredBy(conn, a, "after the move to b")
		deadline := time.Now().Add(2 * time.Minute)
		for { // each packet renews what it uses
			if _, err := ask(conn, 3*time.Second); err != nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("packets are still forwarded")
			}
			time.Sleep(20 * time.Millisecond)
		}
		for _, n := range []*forwardingNode{a, b} {
			node := &testNode{t: t, namespace: n.Namespace}
			for strings.Contains(node.nft("list ruleset"), " expires ") {
				if time.Now().After(deadline) {
					t.Fatalf("on %s are still elements that act:\n%s", n.name, node.nft("list ruleset"))
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
		fresh := s.open()
		s.mustBeAnsweredBy(fresh, b, "a new connection")
		s.moveAddressTo(a) // a resets what it does not know
		s.mustBeRefusedBy(fresh, a)
	})
}
