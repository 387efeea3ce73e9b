package layer2_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
)

// newEngineWithClientOnVeth returns a harness of two namespaces with a veth pair between them.
func newEngineWithClientOnVeth(t testing.TB, c testAddresses) *engineWithClient {
	node, client := netnstest.NewNamespace(t), netnstest.NewNamespace(t)
	node.AddVethPair("eth0", client, "eth0")
	return newEngineWithClientOnLinks(t, c, linkInNamespace{node, "eth0"}, linkInNamespace{client, "eth0"})
}

// linkInNamespace is a link in a namespace.
type linkInNamespace struct {
	namespace *netnstest.Namespace
	name      string
}

// newEngineWithClientOnLinks returns a harness on two links that are connected to each other.
func newEngineWithClientOnLinks(t testing.TB, c testAddresses, nodeEnd, clientEnd linkInNamespace, options ...layer2.Option) *engineWithClient {
	node, client := nodeEnd.namespace, clientEnd.namespace
	node.AddAddressToLink(nodeEnd.name, c.nodeAddressWithPrefixLength.String())
	client.AddAddressToLink(clientEnd.name, netip.PrefixFrom(c.clientIP, c.nodeAddressWithPrefixLength.Bits()).String())
	b := &engineWithClient{testAddresses: c, t: t, nodeNamespace: node, clientNamespace: client, engine: layer2.NewEngine(wire.PacketSocketOpener{}, time.Now, options...)}
	node.MustRunInside(func() (err error) {
		b.link, err = linkByName(nodeEnd.name)
		return err
	})
	client.MustRunInside(func() error {
		l, err := linkByName(clientEnd.name)
		if err != nil {
			return err
		}
		b.clientMAC = l.MAC
		b.clientPort, err = wire.PacketSocketOpener{}.OpenPort(l, ipfamily.FamilyOf(c.heldIP))
		return err
	})
	b.startEngine(func(ctx context.Context) error { return node.RunInside(ctx, b.engine.Run) })
	return b
}

func linkByName(name string) (facts.Link, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return facts.Link{}, err
	}
	if len(ifi.HardwareAddr) != 6 {
		return facts.Link{}, fmt.Errorf("%s has no Ethernet address", name)
	}
	return facts.Link{Index: ifi.Index, Name: name, MAC: facts.MAC(ifi.HardwareAddr)}, nil
}

func TestScenariosOnVeth(t *testing.T) {
	for family, c := range addressesByFamily {
		for name, scenario := range scenariosForEveryPortOpener {
			t.Run(family+": "+name, func(t *testing.T) {
				t.Parallel()
				scenario(newEngineWithClientOnVeth(t, c))
			})
		}
	}
}

// stackedLinkAddersByKind put a link named lan0 on top of eth0.
var stackedLinkAddersByKind = map[string]func(eth0 netlink.Link) error{
	"bridge": func(eth0 netlink.Link) error {
		bridge := &netlink.Bridge{LinkAttrs: netlinkAttributesWithName("lan0")}
		return errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetMaster(eth0, bridge), netlink.LinkSetUp(bridge))
	},
	"macvlan": func(eth0 netlink.Link) error {
		l := &netlink.Macvlan{LinkAttrs: netlinkAttributesWithName("lan0"), Mode: netlink.MACVLAN_MODE_BRIDGE}
		l.ParentIndex = eth0.Attrs().Index
		return errors.Join(netlink.LinkAdd(l), netlink.LinkSetUp(l))
	},
	"VLAN": func(eth0 netlink.Link) error {
		l := &netlink.Vlan{LinkAttrs: netlinkAttributesWithName("lan0"), VlanId: 5}
		l.ParentIndex = eth0.Attrs().Index
		return errors.Join(netlink.LinkAdd(l), netlink.LinkSetUp(l))
	},
	"bond": func(eth0 netlink.Link) error {
		bond := netlink.NewLinkBond(netlinkAttributesWithName("lan0"))
		bond.Mode = netlink.BOND_MODE_ACTIVE_BACKUP
		return errors.Join(netlink.LinkAdd(bond), netlink.LinkSetDown(eth0), netlink.LinkSetMaster(eth0, bond), netlink.LinkSetUp(bond), netlink.LinkSetUp(eth0))
	},
}

func netlinkAttributesWithName(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// A link on top of a veth link behaves like the veth link.
func TestScenariosOnStackedLinks(t *testing.T) {
	for kind, stack := range stackedLinkAddersByKind {
		t.Run(kind, func(t *testing.T) {
			if errors.Is(addVethPairAndStackedLink(netnstest.NewNamespace(t), netnstest.NewNamespace(t), stack), unix.EOPNOTSUPP) {
				t.Skipf("this kernel has no %s", kind)
			}
			for family, c := range addressesByFamily {
				for _, name := range []string{
					"a held address is answered for, another is not", "a request to the link's own MAC is answered",
					"a host that wants the address for itself learns that it is taken", "a new address is announced in the forms of its family",
				} {
					t.Run(family+": "+name, func(t *testing.T) {
						t.Parallel()
						scenariosForEveryPortOpener[name](newEngineWithClientOnStackedLink(t, kind, stack, c))
					})
				}
			}
		})
	}
}

// newEngineWithClientOnStackedLink returns a harness whose node has a link on top of its veth link.
// For a VLAN the client has one too.
func newEngineWithClientOnStackedLink(t *testing.T, kind string, stack func(netlink.Link) error, c testAddresses) *engineWithClient {
	node, client := netnstest.NewNamespace(t), netnstest.NewNamespace(t)
	if err := addVethPairAndStackedLink(node, client, stack); err != nil {
		t.Fatal(err)
	}
	if kind != "VLAN" {
		return newEngineWithClientOnLinks(t, c, linkInNamespace{node, "lan0"}, linkInNamespace{client, "eth0"})
	}
	client.MustRunInside(func() error {
		eth0, err := netlink.LinkByName("eth0")
		return errors.Join(err, stack(eth0))
	})
	return newEngineWithClientOnLinks(t, c, linkInNamespace{node, "lan0"}, linkInNamespace{client, "lan0"})
}

// addVethPairAndStackedLink adds a veth pair and puts a link on top of its end in the first
// namespace.
func addVethPairAndStackedLink(room, peer *netnstest.Namespace, stack func(netlink.Link) error) error {
	room.AddVethPair("eth0", peer, "eth0")
	return room.RunInside(context.Background(), func(context.Context) error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return stack(eth0)
	})
}

// BenchmarkAnswerOverVeth measures the time from the client's request to its receipt of the reply,
// over two sockets and a veth pair.
func BenchmarkAnswerOverVeth(b *testing.B) {
	bed := newEngineWithClientOnVeth(b, ipv4TestAddresses)
	bed.holdAddressAndAwaitAnnouncement(heldIPv4)
	bed.sendFrame(bed.newClientRequest(heldIPv4))
	bed.awaitClientFrame("the address is held", bed.expectedReplyToClient(heldIPv4))
	want := bed.expectedReplyToClient(heldIPv4)
	b.ReportAllocs()
	for b.Loop() {
		bed.sendFrame(bed.newClientRequest(heldIPv4))
		for f := range bed.framesHeardByClient {
			if f == want {
				break
			}
		}
	}
}
