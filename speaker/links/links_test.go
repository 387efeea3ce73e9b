package links_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/links"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
)

// watcherInNamespace is a Watcher in its own namespace, with another namespace as its neighbour.
type watcherInNamespace struct {
	t                                 *testing.T
	nodeNamespace, neighbourNamespace *netnstest.Namespace
	watcher                           *links.Watcher
	excludePatternsToReturn           atomic.Pointer[excludePatternsToReturn]
}

// excludePatternsToReturn is what the function for the exclude patterns returns.
type excludePatternsToReturn struct {
	patterns []string
	err      error
}

func (b *watcherInNamespace) readExcludePatterns() ([]string, error) {
	e := b.excludePatternsToReturn.Load()
	return e.patterns, e.err
}

func newWatcherInNamespace(t *testing.T) *watcherInNamespace {
	b := &watcherInNamespace{t: t, nodeNamespace: netnstest.NewNamespace(t), neighbourNamespace: netnstest.NewNamespace(t)}
	b.excludePatternsToReturn.Store(&excludePatternsToReturn{patterns: links.DefaultExcludePatterns})
	w := links.NewWatcher(b.readExcludePatterns, slog.New(slog.DiscardHandler))
	b.watcher = w
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.nodeNamespace.RunInside(ctx, w.Run) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the watcher ended with %v", err)
		}
	})
	return b
}

// awaitLinks waits until the usable links fulfil f.
func (b *watcherInNamespace) awaitLinks(sentence string, f func(facts.LinkSet) bool) facts.LinkSet {
	b.t.Helper()
	var last facts.LinkSet
	for {
		select {
		case last = <-b.watcher.LinkUpdates():
			if usable, _ := last.SplitUsableAndDown(); f(usable) {
				return usable
			}
		case <-time.After(30 * time.Second):
			b.t.Fatalf("%s: the last set is %+v", sentence, last)
		}
	}
}

// awaitDownLink waits until the link is delivered as one that is down, with its subnet.
func (b *watcherInNamespace) awaitDownLink(name string, subnet netip.Prefix) {
	b.t.Helper()
	for {
		select {
		case set := <-b.watcher.LinkUpdates():
			isDown := func(l facts.Link) bool {
				return l.Name == name && l.IsDown && slices.Contains(l.AddressesWithPrefixLength, subnet)
			}
			if slices.ContainsFunc(set, isDown) {
				return
			}
		case <-time.After(30 * time.Second):
			b.t.Fatalf("%s is not delivered as a link that is down", name)
		}
	}
}

// changeLinkInNodeNamespace changes a link of the node.
func (b *watcherInNamespace) changeLinkInNodeNamespace(name string, f func(netlink.Link) error) {
	b.t.Helper()
	b.nodeNamespace.MustRunInside(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return f(l)
	})
}

func linkNames(s facts.LinkSet) []string {
	var out []string
	for _, l := range s {
		out = append(out, l.Name)
	}
	return out
}

func hasLinkNames(want ...string) func(facts.LinkSet) bool {
	return func(s facts.LinkSet) bool { return slices.Equal(linkNames(s), want) }
}

func TestLinkChangesAreDelivered(t *testing.T) {
	b := newWatcherInNamespace(t)
	b.awaitLinks("there is no link at first", hasLinkNames())
	b.nodeNamespace.AddVethPair("eth0", b.neighbourNamespace, "eth0")
	s := b.awaitLinks("a link is added", hasLinkNames("eth0"))
	if s[0].MAC == (facts.MAC{}) || s[0].Index == 0 {
		t.Fatalf("the link is %+v, want its index and Ethernet address", s[0])
	}
	b.nodeNamespace.AddAddressToLink("eth0", "192.168.0.11/24")
	prefix := netip.MustParsePrefix("192.168.0.11/24")
	b.awaitLinks("it gets an address", func(s facts.LinkSet) bool {
		return len(s) == 1 && slices.Contains(s[0].AddressesWithPrefixLength, prefix)
	})
	b.nodeNamespace.AddAddressToLink("eth0", "fd00:a8::11/64")
	six := netip.MustParsePrefix("fd00:a8::11/64")
	b.awaitLinks("it gets an IPv6 address", func(s facts.LinkSet) bool { return len(s) == 1 && slices.Contains(s[0].AddressesWithPrefixLength, six) })
	gateway := netip.MustParseAddr("192.168.0.1")
	b.changeLinkInNodeNamespace("eth0", func(l netlink.Link) error {
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gateway.AsSlice()})
	})
	b.awaitLinks("it gets a gateway", func(s facts.LinkSet) bool {
		return len(s) == 1 && slices.Equal(s[0].DefaultGateways, []netip.Addr{gateway})
	})
	mac := facts.MAC{2, 0, 0, 0, 0, 1}
	b.changeLinkInNodeNamespace("eth0", func(l netlink.Link) error {
		return netlink.NeighAdd(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: gateway.AsSlice(), HardwareAddr: mac[:], State: netlink.NUD_PERMANENT})
	})
	b.nodeNamespace.AddAddressToLink("eth0", "192.168.0.12/24") // neighbours cause no event
	b.awaitLinks("the gateway's Ethernet address is known", func(s facts.LinkSet) bool {
		return len(s) == 1 && slices.Equal(s[0].GatewaysWithKnownMAC, []facts.LinkNeighbour{{Address: gateway, MAC: mac}})
	})
	b.changeLinkInNodeNamespace("eth0", netlink.LinkSetDown)
	b.awaitDownLink("eth0", prefix)
	b.changeLinkInNodeNamespace("eth0", netlink.LinkSetUp)
	b.awaitLinks("it comes up", hasLinkNames("eth0"))
	b.changeLinkInNodeNamespace("eth0", func(l netlink.Link) error {
		return netlink.LinkSetHardwareAddr(l, []byte{2, 0, 0, 0, 0, 0x77})
	})
	b.awaitLinks("its Ethernet address changes", func(s facts.LinkSet) bool { return len(s) == 1 && s[0].MAC[5] == 0x77 })
	b.changeLinkInNodeNamespace("eth0", netlink.LinkDel)
	b.awaitLinks("it is deleted", hasLinkNames())
}

// A default route with several next hops has a gateway on each of their links.
func TestNextHopsOfDefaultRoutesAreGateways(t *testing.T) {
	b := newWatcherInNamespace(t)
	hops := map[string]netip.Addr{"eth0": netip.MustParseAddr("10.1.0.1"), "eth1": netip.MustParseAddr("10.2.0.1")}
	b.nodeNamespace.AddVethPair("eth0", b.neighbourNamespace, "eth0")
	b.nodeNamespace.AddVethPair("eth1", b.neighbourNamespace, "eth1")
	b.nodeNamespace.AddAddressToLink("eth0", "10.1.0.11/24")
	b.nodeNamespace.AddAddressToLink("eth1", "10.2.0.11/24")
	b.nodeNamespace.MustRunInside(func() error {
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
	b.awaitLinks("both links have their gateway", func(s facts.LinkSet) bool {
		for _, l := range s {
			if !slices.Equal(l.DefaultGateways, []netip.Addr{hops[l.Name]}) || !slices.Equal(l.LowestMetricDefaultGateways, l.DefaultGateways) {
				return false
			}
		}
		return len(s) == 2
	})
	// A backup is a gateway, too, but not a preferred one.
	backup := netip.MustParseAddr("10.1.0.99")
	b.changeLinkInNodeNamespace("eth0", func(l netlink.Link) error {
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: backup.AsSlice(), Priority: 100})
	})
	b.awaitLinks("the backup is known as one", func(s facts.LinkSet) bool {
		return len(s) == 2 && slices.Equal(s[0].DefaultGateways, []netip.Addr{hops["eth0"], backup}) && slices.Equal(s[0].LowestMetricDefaultGateways, []netip.Addr{hops["eth0"]})
	})
}

func TestLinkWithoutCarrierIsNotUsable(t *testing.T) {
	b := newWatcherInNamespace(t)
	b.nodeNamespace.AddVethPair("eth0", b.neighbourNamespace, "eth0")
	b.awaitLinks("the link is up", hasLinkNames("eth0"))
	b.neighbourNamespace.MustRunInside(func() error {
		l, err := netlink.LinkByName("eth0")
		return errors.Join(err, netlink.LinkSetDown(l))
	})
	b.awaitLinks("the other end is down", hasLinkNames())
}

func TestUnusableInterfacesAreLeftOut(t *testing.T) {
	b := newWatcherInNamespace(t)
	for _, name := range []string{"eth0", "port0", "noarp0", "veth12", "cali12", "lxc12", "vet0"} {
		b.nodeNamespace.AddVethPair(name, b.neighbourNamespace, name)
	}
	b.nodeNamespace.MustRunInside(func() error {
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
	b.awaitLinks("bridge ports, links without ARP, excluded names and the loopback are left out", func(s facts.LinkSet) bool {
		got := linkNames(s)
		slices.Sort(got)
		return slices.Equal(got, []string{"br0", "eth0", "vet0"})
	})
}

// A stream of irrelevant events does not delay a change.
func TestAddressIsDeliveredDuringAStreamOfEvents(t *testing.T) {
	b := newWatcherInNamespace(t)
	b.nodeNamespace.AddVethPair("eth0", b.neighbourNamespace, "eth0")
	b.awaitLinks("the link is there", hasLinkNames("eth0"))
	stop := make(chan struct{})
	churned := make(chan struct{})
	go func() {
		defer close(churned)
		_ = b.nodeNamespace.RunInside(context.Background(), func(context.Context) error {
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
	b.nodeNamespace.AddAddressToLink("eth0", "192.168.0.11/24")
	b.awaitLinks("the address is delivered during the stream", func(s facts.LinkSet) bool {
		return len(s) == 1 && slices.Contains(s[0].AddressesWithPrefixLength, netip.MustParsePrefix("192.168.0.11/24"))
	})
	close(stop)
	<-churned
}

// The patterns are read again while the Watcher runs. Invalid patterns change nothing.
func TestExcludePatternsAreReloaded(t *testing.T) {
	b := newWatcherInNamespace(t)
	b.nodeNamespace.AddVethPair("eth0", b.neighbourNamespace, "eth0")
	b.nodeNamespace.AddVethPair("storage0", b.neighbourNamespace, "storage0")
	b.awaitLinks("both are used", hasLinkNames("eth0", "storage0"))
	// causes an event, so that the test need not wait for the next read
	set := func(e excludePatternsToReturn, link, address string) {
		b.excludePatternsToReturn.Store(&e)
		b.nodeNamespace.AddAddressToLink(link, address)
	}
	set(excludePatternsToReturn{patterns: []string{"^lo$", "^storage"}}, "eth0", "10.9.0.1/24")
	b.awaitLinks("one is excluded", hasLinkNames("eth0"))
	if got, want := b.watcher.SkippedLinks(), []facts.SkippedLink{{Name: "lo", Reason: facts.SkippedContainerNetwork}, {Name: "storage0", Reason: facts.SkippedExcludedByName}}; !slices.Equal(got, want) {
		t.Errorf("skipped: %v, want %v", got, want)
	}
	for i, e := range []excludePatternsToReturn{{patterns: []string{"("}}, {err: errors.New("no such file")}} {
		set(e, "eth0", fmt.Sprintf("10.9.%d.1/24", i+1))
		b.awaitLinks("the last valid patterns stay in use", func(s facts.LinkSet) bool {
			return hasLinkNames("eth0")(s) && len(s[0].AddressesWithPrefixLength) >= i+2
		})
	}
	set(excludePatternsToReturn{patterns: []string{"^lo$"}}, "eth0", "10.9.9.1/24")
	b.awaitLinks("it is used again", hasLinkNames("eth0", "storage0"))
}

func TestSkippedLinksHaveTheirReason(t *testing.T) {
	b := newWatcherInNamespace(t)
	for _, name := range []string{"eth0", "port0", "noarp0", "veth12", "down0"} {
		b.nodeNamespace.AddVethPair(name, b.neighbourNamespace, name)
	}
	b.changeLinkInNodeNamespace("noarp0", netlink.LinkSetARPOff)
	b.changeLinkInNodeNamespace("down0", netlink.LinkSetDown)
	b.nodeNamespace.MustRunInside(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		port, err := netlink.LinkByName("port0")
		return errors.Join(err, netlink.LinkAdd(bridge), netlink.LinkSetMaster(port, bridge), netlink.LinkSetUp(bridge))
	})
	b.awaitLinks("two are usable", hasLinkNames("eth0", "br0"))
	want := []facts.SkippedLink{
		{Name: "down0", Reason: facts.SkippedDownOrNoCarrier}, {Name: "lo", Reason: facts.SkippedContainerNetwork}, {Name: "noarp0", Reason: facts.SkippedNotBroadcastEthernet},
		{Name: "port0", Reason: facts.SkippedMemberOfMaster}, {Name: "veth12", Reason: facts.SkippedContainerNetwork},
	}
	if got := b.watcher.SkippedLinks(); !slices.Equal(got, want) {
		t.Errorf("skipped: %v, want %v", got, want)
	}
}

// A renamed link keeps its index. A link on top of another is a link of its own.
func TestRenamedAndStackedLinksAreDelivered(t *testing.T) {
	b := newWatcherInNamespace(t)
	b.nodeNamespace.AddVethPair("eth0", b.neighbourNamespace, "eth0")
	index := b.awaitLinks("a link is added", hasLinkNames("eth0"))[0].Index
	b.changeLinkInNodeNamespace("eth0", func(l netlink.Link) error {
		err := netlink.LinkSetName(l, "lan0")
		if errors.Is(err, unix.EBUSY) { // older kernels rename only a link that is down
			err = errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, "lan0"), netlink.LinkSetUp(l))
		}
		return err
	})
	if s := b.awaitLinks("it is renamed", hasLinkNames("lan0")); s[0].Index != index {
		t.Errorf("the index is %d, want %d still", s[0].Index, index)
	}
	stacked := map[string]func(parent int) netlink.Link{
		"macvlan": func(parent int) netlink.Link {
			return &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "stacked0", ParentIndex: parent}, Mode: netlink.MACVLAN_MODE_BRIDGE}
		},
		"VLAN": func(parent int) netlink.Link {
			return &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "stacked0", ParentIndex: parent}, VlanId: 5}
		},
		"bond": func(int) netlink.Link {
			bond := netlink.NewLinkBond(netlink.LinkAttrs{Name: "stacked0"})
			bond.Mode = netlink.BOND_MODE_ACTIVE_BACKUP
			return bond
		},
	}
	for kind, link := range stacked {
		t.Run(kind, func(t *testing.T) {
			l := link(index)
			var refused error
			b.nodeNamespace.MustRunInside(func() error {
				refused = netlink.LinkAdd(l)
				return nil
			})
			if errors.Is(refused, unix.EOPNOTSUPP) {
				t.Skipf("this kernel has no %s", kind)
			}
			if refused != nil {
				t.Fatal(refused)
			}
			want := []string{"lan0", "stacked0"}
			if kind == "bond" {
				want = []string{"stacked0"} // used instead of its member
				b.nodeNamespace.MustRunInside(func() error {
					member, err := netlink.LinkByIndex(index)
					return errors.Join(err, netlink.LinkSetDown(member), netlink.LinkSetMaster(member, l), netlink.LinkSetUp(member))
				})
			}
			b.changeLinkInNodeNamespace("stacked0", netlink.LinkSetUp)
			b.awaitLinks("the link on top is used", hasLinkNames(want...))
			b.changeLinkInNodeNamespace("stacked0", netlink.LinkDel)
			b.changeLinkInNodeNamespace("lan0", netlink.LinkSetUp)
			b.awaitLinks("it is gone", hasLinkNames("lan0"))
		})
	}
}

func TestDefaultExcludePatternsCompile(t *testing.T) {
	for _, p := range links.DefaultExcludePatterns {
		if _, err := regexp.Compile(p); err != nil {
			t.Error(err)
		}
	}
}
