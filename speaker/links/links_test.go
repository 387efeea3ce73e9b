package links_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/links"
	"github.com/gantry-lb/gantry/speaker/links/sandbox"
)

// bed is a watcher in a namespace of its own, whose eth0 leads to another.
type bed struct {
	t          *testing.T
	node, peer *sandbox.Room
	watcher    *links.Watcher
}

func newBed(t *testing.T) *bed {
	b := &bed{t: t, node: sandbox.New(t), peer: sandbox.New(t)}
	w, err := links.New(links.DefaultExclude, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b.watcher = w
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.node.Run(ctx, w.Run) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the watcher ended with %v", err)
		}
	})
	return b
}

// want waits until a set fulfils f.
func (b *bed) want(sentence string, f func(facts.LinkSet) bool) facts.LinkSet {
	b.t.Helper()
	var last facts.LinkSet
	for {
		select {
		case last = <-b.watcher.Sets():
			if f(last) {
				return last
			}
		case <-time.After(5 * time.Second):
			b.t.Fatalf("%s: the last set is %+v", sentence, last)
		}
	}
}

// edit changes a link of the node.
func (b *bed) edit(name string, f func(netlink.Link) error) {
	b.t.Helper()
	b.node.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return f(l)
	})
}

func names(s facts.LinkSet) []string {
	var out []string
	for _, l := range s {
		out = append(out, l.Name)
	}
	return out
}

func are(want ...string) func(facts.LinkSet) bool {
	return func(s facts.LinkSet) bool { return slices.Equal(names(s), want) }
}

func TestALinkIsFollowed(t *testing.T) {
	b := newBed(t)
	b.want("no link is there at first", are())
	b.node.Veth("eth0", b.peer, "eth0")
	s := b.want("a link is added", are("eth0"))
	if s[0].MAC == (facts.MAC{}) || s[0].Index == 0 {
		t.Fatalf("the link is %+v, want its index and Ethernet address", s[0])
	}
	b.node.Address("eth0", "192.168.0.11/24")
	prefix := netip.MustParsePrefix("192.168.0.11/24")
	b.want("it gets an address", func(s facts.LinkSet) bool { return len(s) == 1 && slices.Contains(s[0].Prefixes, prefix) })
	b.node.Address("eth0", "fd00:a8::11/64")
	six := netip.MustParsePrefix("fd00:a8::11/64")
	b.want("it gets an IPv6 address", func(s facts.LinkSet) bool { return len(s) == 1 && slices.Contains(s[0].Prefixes, six) })
	gateway := netip.MustParseAddr("192.168.0.1")
	b.edit("eth0", func(l netlink.Link) error {
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gateway.AsSlice()})
	})
	b.want("it gets a gateway", func(s facts.LinkSet) bool { return len(s) == 1 && slices.Equal(s[0].Gateways, []netip.Addr{gateway}) })
	b.edit("eth0", netlink.LinkSetDown)
	b.want("it goes down", are())
	b.edit("eth0", netlink.LinkSetUp)
	b.want("it comes up", are("eth0"))
	b.edit("eth0", func(l netlink.Link) error {
		return netlink.LinkSetHardwareAddr(l, []byte{2, 0, 0, 0, 0, 0x77})
	})
	b.want("its Ethernet address changes", func(s facts.LinkSet) bool { return len(s) == 1 && s[0].MAC[5] == 0x77 })
	b.edit("eth0", netlink.LinkDel)
	b.want("it is deleted", are())
}

// A default route with several next hops names a gateway on each of their links.
func TestEveryNextHopIsAGateway(t *testing.T) {
	b := newBed(t)
	hops := map[string]netip.Addr{"eth0": netip.MustParseAddr("10.1.0.1"), "eth1": netip.MustParseAddr("10.2.0.1")}
	b.node.Veth("eth0", b.peer, "eth0")
	b.node.Veth("eth1", b.peer, "eth1")
	b.node.Address("eth0", "10.1.0.11/24")
	b.node.Address("eth1", "10.2.0.11/24")
	b.node.Do(func() error {
		r := &netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}}
		for _, name := range []string{"eth0", "eth1"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: l.Attrs().Index, Gw: hops[name].AsSlice()})
		}
		return netlink.RouteAdd(r)
	})
	b.want("both links have their gateway", func(s facts.LinkSet) bool {
		for _, l := range s {
			if !slices.Equal(l.Gateways, []netip.Addr{hops[l.Name]}) {
				return false
			}
		}
		return len(s) == 2
	})
}

func TestACutCableTakesTheLinkAway(t *testing.T) {
	b := newBed(t)
	b.node.Veth("eth0", b.peer, "eth0")
	b.want("the cable is whole", are("eth0"))
	b.peer.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		return errors.Join(err, netlink.LinkSetDown(l))
	})
	b.want("the other end is down", are())
}

func TestWhichLinksAreUsable(t *testing.T) {
	b := newBed(t)
	for _, name := range []string{"eth0", "port0", "noarp0", "veth12", "cali12", "lxc12", "vet0"} {
		b.node.Veth(name, b.peer, name)
	}
	b.node.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		port, err := netlink.LinkByName("port0")
		noarp, err2 := netlink.LinkByName("noarp0")
		if err := errors.Join(err, err2, netlink.LinkAdd(bridge)); err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(port, bridge), netlink.LinkSetARPOff(noarp), netlink.LinkSetUp(bridge))
	})
	b.want("bridge ports, links without ARP, excluded names and the loopback are left out", func(s facts.LinkSet) bool {
		got := names(s)
		slices.Sort(got)
		return slices.Equal(got, []string{"br0", "eth0", "vet0"})
	})
}

// Another route than the default is no news, however often it changes; and a stream of events does not keep what
// happened from being told.
func TestAStreamOfEventsDoesNotStarve(t *testing.T) {
	b := newBed(t)
	b.node.Veth("eth0", b.peer, "eth0")
	b.want("the link is there", are("eth0"))
	stop := make(chan struct{})
	churned := make(chan struct{})
	go func() {
		defer close(churned)
		_ = b.node.Run(context.Background(), func(context.Context) error {
			l, err := netlink.LinkByName("eth0")
			for i := 0; err == nil && i < 1_000_000; i++ {
				select {
				case <-stop:
					return nil
				default:
				}
				err = netlink.LinkSetAlias(l, []string{"one", "two"}[i%2])
			}
			return err
		})
	}()
	b.node.Address("eth0", "192.168.0.11/24")
	b.want("the address is told amid the events", func(s facts.LinkSet) bool {
		return len(s) == 1 && slices.Contains(s[0].Prefixes, netip.MustParsePrefix("192.168.0.11/24"))
	})
	close(stop)
	<-churned
}

func TestNewRefusesABadExpression(t *testing.T) {
	if _, err := links.New("(", slog.New(slog.DiscardHandler)); err == nil {
		t.Fatal("an expression that cannot be read is accepted")
	}
}
