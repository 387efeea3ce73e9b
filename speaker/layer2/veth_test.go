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

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/layer2/wire"
	"github.com/gantry-lb/gantry/speaker/links/sandbox"
)

// onVeth makes a bed of two namespaces with a real cable between them.
func onVeth(t testing.TB, c cast) *bed {
	node, client := sandbox.New(t), sandbox.New(t)
	node.Veth("eth0", client, "eth0")
	return between(t, c, end{node, "eth0"}, end{client, "eth0"})
}

// end is a link in a namespace.
type end struct {
	room *sandbox.Room
	name string
}

// between makes a bed of two links that lead to each other.
func between(t testing.TB, c cast, nodeEnd, clientEnd end, options ...layer2.Option) *bed {
	node, client := nodeEnd.room, clientEnd.room
	node.Address(nodeEnd.name, c.nodeIP.String())
	client.Address(clientEnd.name, netip.PrefixFrom(c.clientIP, c.nodeIP.Bits()).String())
	b := &bed{cast: c, t: t, node: node, clientRoom: client, engine: layer2.New(wire.Wire{}, time.Now, options...)}
	node.Do(func() (err error) {
		b.link, err = linkOf(nodeEnd.name)
		return err
	})
	client.Do(func() error {
		l, err := linkOf(clientEnd.name)
		if err != nil {
			return err
		}
		b.mac = l.MAC
		b.client, err = wire.Wire{}.Open(l, layer2.FamilyOf(c.held))
		return err
	})
	b.start(func(ctx context.Context) error { return node.Run(ctx, b.engine.Run) })
	return b
}

func linkOf(name string) (facts.Link, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return facts.Link{}, err
	}
	if len(ifi.HardwareAddr) != 6 {
		return facts.Link{}, fmt.Errorf("%s has no Ethernet address", name)
	}
	return facts.Link{Index: ifi.Index, Name: name, MAC: facts.MAC(ifi.HardwareAddr)}, nil
}

func TestScenariosOnARealCable(t *testing.T) {
	for family, c := range families {
		for name, scenario := range scenarios {
			t.Run(family+": "+name, func(t *testing.T) {
				t.Parallel()
				scenario(onVeth(t, c))
			})
		}
	}
}

// kinds put a link named lan0 on top of a room's eth0.
var kinds = map[string]func(eth0 netlink.Link) error{
	"bridge": func(eth0 netlink.Link) error {
		bridge := &netlink.Bridge{LinkAttrs: named("lan0")}
		return errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetMaster(eth0, bridge), netlink.LinkSetUp(bridge))
	},
	"macvlan": func(eth0 netlink.Link) error {
		l := &netlink.Macvlan{LinkAttrs: named("lan0"), Mode: netlink.MACVLAN_MODE_BRIDGE}
		l.ParentIndex = eth0.Attrs().Index
		return errors.Join(netlink.LinkAdd(l), netlink.LinkSetUp(l))
	},
	"VLAN": func(eth0 netlink.Link) error {
		l := &netlink.Vlan{LinkAttrs: named("lan0"), VlanId: 5}
		l.ParentIndex = eth0.Attrs().Index
		return errors.Join(netlink.LinkAdd(l), netlink.LinkSetUp(l))
	},
	"bond": func(eth0 netlink.Link) error {
		bond := netlink.NewLinkBond(named("lan0"))
		bond.Mode = netlink.BOND_MODE_ACTIVE_BACKUP
		return errors.Join(netlink.LinkAdd(bond), netlink.LinkSetDown(eth0), netlink.LinkSetMaster(eth0, bond), netlink.LinkSetUp(bond), netlink.LinkSetUp(eth0))
	},
}

func named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// What holds on a cable's end holds on what is stacked on it.
func TestScenariosOnLinksOfEveryKind(t *testing.T) {
	for kind, stack := range kinds {
		t.Run(kind, func(t *testing.T) {
			if errors.Is(pile(sandbox.New(t), sandbox.New(t), stack), unix.EOPNOTSUPP) {
				t.Skipf("this kernel has no %s", kind)
			}
			for family, c := range families {
				for _, name := range []string{
					"a held address is answered for, another is not", "a request to the link's own MAC is answered",
					"a host that wants the address for itself learns that it is taken", "a new address is announced in the forms of its family",
				} {
					t.Run(family+": "+name, func(t *testing.T) {
						t.Parallel()
						scenarios[name](stacked(t, kind, stack, c))
					})
				}
			}
		})
	}
}

// stacked makes a bed whose node has a link on top of its cable. A VLAN is one on the client's side too.
func stacked(t *testing.T, kind string, stack func(netlink.Link) error, c cast) *bed {
	node, client := sandbox.New(t), sandbox.New(t)
	if err := pile(node, client, stack); err != nil {
		t.Fatal(err)
	}
	if kind != "VLAN" {
		return between(t, c, end{node, "lan0"}, end{client, "eth0"})
	}
	client.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		return errors.Join(err, stack(eth0))
	})
	return between(t, c, end{node, "lan0"}, end{client, "lan0"})
}

// pile lays a cable and puts a link on top of its end in the first room.
func pile(room, peer *sandbox.Room, stack func(netlink.Link) error) error {
	room.Veth("eth0", peer, "eth0")
	return room.Run(context.Background(), func(context.Context) error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return stack(eth0)
	})
}

// BenchmarkAnswerOverVeth is the time from the client's request to the answer in its hands, two sockets and a cable
// included.
func BenchmarkAnswerOverVeth(b *testing.B) {
	bed := onVeth(b, cast4)
	bed.take(held)
	bed.send(bed.request(held))
	bed.wantHeard("the address is held", bed.answer(held))
	want := bed.answer(held)
	b.ReportAllocs()
	for b.Loop() {
		bed.send(bed.request(held))
		for f := range bed.heard {
			if f == want {
				break
			}
		}
	}
}
