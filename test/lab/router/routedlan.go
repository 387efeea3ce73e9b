package router

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// RoutedLANOptions describe a RoutedLAN.
type RoutedLANOptions struct {
	// Nodes is the number of plain nodes on the LAN, 0 to 80.
	Nodes int
	// Routers is the number of routers, 1 or 2; 0 means 1. Each has a client behind it.
	Routers int
}

// RoutedLAN is a dual-stack LAN in unnamed namespaces, with the same addresses as lab.Lab:
//
//	router   192.168.0.1   fd00:a8::1    and towards its client 10.99.0.1, fd00:99::1
//	router2  192.168.0.2   fd00:a8::2    and towards its client 10.98.0.1, fd00:98::1
//	client   192.168.0.100 fd00:a8::64   on the LAN
//	node1... 192.168.0.11  fd00:a8::b    and so on
//	far      10.99.0.2     fd00:99::2    behind router
//	far2     10.98.0.2     fd00:98::2    behind router2
//
// The link to the LAN is eth0 on each host; far and far2 have eth0 to their router, which has eth1
// to them. Every host has routes to all others and forwards packets. Flows are hashed over equal
// routes by addresses and ports. The kernel removes everything when the process ends.
type RoutedLAN struct {
	namespaceByHost map[string]netns.Path
	bridgeNamespace netns.Path
	releaseFuncs    []func()
}

const (
	lanLink                = "eth0"
	routerToClientLinkName = "eth1"
	lanBridge              = "lan"
)

// linkConfig is a link of a host, with its networks and the host number in them.
type linkConfig struct {
	link       string
	networks   []string
	hostNumber int
}

var lanNetworks = []string{"192.168.0.0/24", "fd00:a8::/64"}

// clientNetworksBehindRouter returns the networks behind router i.
func clientNetworksBehindRouter(i int) []string {
	return []string{fmt.Sprintf("10.%d.0.0/24", 100-i), fmt.Sprintf("fd00:%d::/64", 100-i)}
}

func nameWithNumberUnlessFirst(host string, i int) string {
	if i == 1 {
		return host
	}
	return host + strconv.Itoa(i)
}

// NewRoutedLAN creates a RoutedLAN. It changes nothing in the machine's own namespaces.
func NewRoutedLAN(o RoutedLANOptions) (*RoutedLAN, error) {
	o.Routers = max(o.Routers, 1)
	if o.Nodes < 0 || o.Nodes > 80 || o.Routers > 2 {
		return nil, fmt.Errorf("a harness has at most 80 nodes and 2 routers, not %d and %d", o.Nodes, o.Routers)
	}
	b := &RoutedLAN{namespaceByHost: map[string]netns.Path{}}
	if err := b.buildNetwork(o); err != nil {
		b.DeleteNamespaces()
		return nil, err
	}
	return b, nil
}

func (b *RoutedLAN) buildNetwork(o RoutedLANOptions) (err error) {
	if b.bridgeNamespace, err = b.newNamespace(); err != nil {
		return err
	}
	if err := b.bridgeNamespace.RunInside(func() error { return netns.AddBridge(lanBridge) }); err != nil {
		return err
	}
	numbers := map[string]int{"client": 100}
	for i := 1; i <= o.Nodes; i++ {
		numbers["node"+strconv.Itoa(i)] = 10 + i
	}
	for i := 1; i <= o.Routers; i++ {
		numbers[nameWithNumberUnlessFirst("router", i)] = i
	}
	for name, n := range numbers {
		if err := b.addHost(name, n); err != nil {
			return err
		}
	}
	for i := 1; i <= o.Routers; i++ {
		if err := b.addClientBehindRouter(i); err != nil {
			return err
		}
		for name := range numbers {
			if name == nameWithNumberUnlessFirst("router", i) {
				continue
			}
			if err := b.namespaceByHost[name].RunInside(func() error {
				return addRoutes(lanLink, clientNetworksBehindRouter(i), addressesInNetworks(lanNetworks, i))
			}); err != nil {
				return fmt.Errorf("routing on %s: %w", name, err)
			}
		}
	}
	return nil
}

func (b *RoutedLAN) newNamespace() (netns.Path, error) {
	h, release, err := netns.NewUnnamed()
	if err == nil {
		b.releaseFuncs = append(b.releaseFuncs, release)
	}
	return h, err
}

// addHost creates a host and connects it to the LAN.
func (b *RoutedLAN) addHost(name string, number int) error {
	h, err := b.newNamespace()
	if err != nil {
		return err
	}
	b.namespaceByHost[name] = h
	port := "p-" + name
	if err := netns.AddCable(b.bridgeNamespace, port, h, lanLink); err != nil {
		return err
	}
	err = b.bridgeNamespace.RunInside(func() error {
		if err := netns.AttachLinkToBridge(port, lanBridge); err != nil {
			return err
		}
		return netns.SetLinkUp(port)
	})
	if err != nil {
		return err
	}
	return h.RunInside(func() error { return configureLink(linkConfig{lanLink, lanNetworks, number}) })
}

// addClientBehindRouter creates the client behind router i.
func (b *RoutedLAN) addClientBehindRouter(i int) error {
	h, err := b.newNamespace()
	if err != nil {
		return err
	}
	router := b.namespaceByHost[nameWithNumberUnlessFirst("router", i)]
	b.namespaceByHost[nameWithNumberUnlessFirst("far", i)] = h
	if err := netns.AddCable(router, routerToClientLinkName, h, lanLink); err != nil {
		return err
	}
	if err := router.RunInside(func() error {
		return configureLink(linkConfig{routerToClientLinkName, clientNetworksBehindRouter(i), 1})
	}); err != nil {
		return err
	}
	return h.RunInside(func() error {
		if err := configureLink(linkConfig{lanLink, clientNetworksBehindRouter(i), 2}); err != nil {
			return err
		}
		return addRoutes(lanLink, []string{"0.0.0.0/0", "::/0"}, addressesInNetworks(clientNetworksBehindRouter(i), 1))
	})
}

// configureLink brings a link up with its addresses, and turns on forwarding on its host.
func configureLink(p linkConfig) error {
	for key, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv6/conf/" + p.link + "/accept_dad": "0",
		"net/ipv4/fib_multipath_hash_policy": "1", "net/ipv6/fib_multipath_hash_policy": "1",
	} {
		if err := netns.SetSysctl(key, value); err != nil {
			return err
		}
	}
	if err := netns.SetLinkUp(p.link); err != nil {
		return err
	}
	for i, a := range addressesInNetworks(p.networks, p.hostNumber) {
		if err := netns.AddAddress(p.link, netip.PrefixFrom(a, netip.MustParsePrefix(p.networks[i]).Bits())); err != nil {
			return err
		}
	}
	return nil
}

// addRoutes adds a route to each network, via the address of its family.
func addRoutes(link string, networks []string, via []netip.Addr) error {
	for i, n := range networks {
		if err := netns.AddRoute(link, netip.MustParsePrefix(n), via[i]); err != nil {
			return err
		}
	}
	return nil
}

// addressesInNetworks returns the addresses with that host number in the networks.
func addressesInNetworks(networks []string, number int) []netip.Addr {
	var out []netip.Addr
	for _, n := range networks {
		s := netip.MustParsePrefix(n).Addr().AsSlice()
		s[len(s)-1] = byte(number)
		a, _ := netip.AddrFromSlice(s)
		out = append(out, a)
	}
	return out
}

// NamespaceOfHost returns a host by its name. The methods of an unknown host return errors.
func (b *RoutedLAN) NamespaceOfHost(name string) netns.Path { return b.namespaceByHost[name] }

// CutCableKeepingCarrier drops all frames between a host and the LAN. The host keeps the carrier,
// as when a switch between them fails.
func (b *RoutedLAN) CutCableKeepingCarrier(host string) error {
	return b.bridgeNamespace.RunInside(func() error { return netns.AttachLinkToBridge("p-"+host, "") })
}

// PlugCable undoes CutCableKeepingCarrier.
func (b *RoutedLAN) PlugCable(host string) error {
	return b.bridgeNamespace.RunInside(func() error {
		if err := netns.AttachLinkToBridge("p-"+host, lanBridge); err != nil {
			return err
		}
		return netns.SetLinkUp("p-" + host)
	})
}

// DeleteNamespaces removes the namespaces. Each one exists until the processes in it have ended.
func (b *RoutedLAN) DeleteNamespaces() {
	for _, f := range b.releaseFuncs {
		f()
	}
}
