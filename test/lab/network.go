package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// The lab's addresses.
const (
	lanIPv4Network, lanIPv6Network = "192.168.0.0/24", "fd00:a8::/64"
	podIPv4Network, podIPv6Network = "10.244.0.0/16", "fd00:10:244::/48"
	clusterIPv4Network             = "10.96.0.0/16"
	clusterIPv6Network             = "fd00:10:96::/112"
	apiServerPort                  = "6444"
	apiHostNumber                  = 5
	clientHostNumber               = 100
	hostNumberBeforeFirstNode      = 10 // node i has host number hostNumberBeforeFirstNode+i
	lanBridge                      = "lan"
	lanLink                        = "eth0"
)

func nodeName(i int) string { return fmt.Sprintf("node%d", i) }

// routerName returns the name of router i. Its host number on the LAN is i.
func routerName(i int) string { return nameWithNumberUnlessFirst("router", i) }

// nameWithNumberUnlessFirst returns the name of the i-th host of a kind: the first one has no
// number.
func nameWithNumberUnlessFirst(sort string, i int) string {
	if i == 1 {
		return sort
	}
	return fmt.Sprintf("%s%d", sort, i)
}

// clientNetworksBehindRouter returns the networks behind router i.
func (o *Options) clientNetworksBehindRouter(i int) []string {
	return o.networksOfEnabledFamilies(fmt.Sprintf("10.%d.0.0/24", 100-i), fmt.Sprintf("fd00:%d::/64", 100-i))
}

// addressInNetwork returns the address with host number n in a network.
func addressInNetwork(network string, n int) netip.Addr {
	b := netip.MustParsePrefix(network).Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// networksOfEnabledFamilies returns the networks of the families that the lab has, the IPv4 network
// first.
func (o *Options) networksOfEnabledFamilies(v4, v6 string) []string {
	switch o.Families {
	case DualStack:
		return []string{v4, v6}
	case IPv6Only:
		return []string{v6}
	}
	return []string{v4}
}

// apiServerIPAddress returns the address of the API server on the LAN, of the lab's first family.
func (o *Options) apiServerIPAddress() string {
	return addressInNetwork(o.networksOfEnabledFamilies(lanIPv4Network, lanIPv6Network)[0], apiHostNumber).String()
}

// apiServerIPAndPort returns the same address with the port.
func (o *Options) apiServerIPAndPort() string {
	return net.JoinHostPort(o.apiServerIPAddress(), apiServerPort)
}

// apiServerClusterIPAddress returns the address by which Pods reach the API server.
func (o *Options) apiServerClusterIPAddress() string {
	return addressInNetwork(o.networksOfEnabledFamilies(clusterIPv4Network, clusterIPv6Network)[0], 1).String()
}

// podNetworksOfNode returns the Pod networks of node i.
func (o *Options) podNetworksOfNode(i int) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range o.networksOfEnabledFamilies(fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:10:244:%x::/64", i)) {
		out = append(out, netip.MustParsePrefix(n))
	}
	return out
}

// buildNetwork creates the LAN, its hosts and the networks behind the routers.
func (s *supervisor) buildNetwork() error {
	// the bridges are in the supervisor's own namespace
	if err := netns.SetLinkUp("lo"); err != nil {
		return err
	}
	if err := netns.AddBridge(lanBridge); err != nil {
		return err
	}
	numbers := map[string]int{"cp": apiHostNumber, "client": clientHostNumber}
	for i := 1; i <= s.options.Routers; i++ {
		numbers[routerName(i)] = i
	}
	for i := 1; i <= s.options.Nodes; i++ {
		numbers[nodeName(i)] = hostNumberBeforeFirstNode + i
	}
	for name, n := range numbers {
		if err := s.addHost(name, n); err != nil {
			return err
		}
	}
	for i := 1; i <= s.options.Nodes; i++ {
		s.hostByName[nodeName(i)].podNetworks = s.options.podNetworksOfNode(i)
	}
	for i := 1; i <= s.options.Routers; i++ {
		if err := s.addClientBehindRouter(i); err != nil {
			return fmt.Errorf("creating the network behind %s: %w", routerName(i), err)
		}
	}
	for _, h := range s.hostByName {
		if err := h.namespace.RunInside(func() error { return s.addRoutes(h) }); err != nil {
			return fmt.Errorf("routing on %s: %w", h.name, err)
		}
	}
	return nil
}

// addHost creates a host and connects it to the LAN.
func (s *supervisor) addHost(name string, number int) error {
	ns, err := netns.NewNamed(name)
	if err != nil {
		return err
	}
	h := &host{name: name, namespace: ns, currentBridge: lanBridge}
	s.hostByName[name] = h
	if err := netns.AddCable(s.bridgeNamespace, bridgePortNameOfHost(name), ns, lanLink); err != nil {
		return err
	}
	if err := netns.AttachLinkToBridge(bridgePortNameOfHost(name), lanBridge); err != nil {
		return err
	}
	if err := netns.SetLinkUp(bridgePortNameOfHost(name)); err != nil {
		return err
	}
	return ns.RunInside(func() error {
		if err := setForwardingMultipathAndDADSysctls(lanLink); err != nil {
			return err
		}
		if err := netns.SetLinkUp(lanLink); err != nil {
			return err
		}
		for _, n := range s.options.networksOfEnabledFamilies(lanIPv4Network, lanIPv6Network) {
			a := addressInNetwork(n, number)
			h.addresses = append(h.addresses, a)
			if err := netns.AddAddress(lanLink, netip.PrefixFrom(a, netip.MustParsePrefix(n).Bits())); err != nil {
				return err
			}
		}
		return nil
	})
}

// bridgePortNameOfHost returns the name of a host's port on the bridge of the LAN.
func bridgePortNameOfHost(host string) string { return "p-" + host }

// setForwardingMultipathAndDADSysctls turns on forwarding, hashing of flows over equal routes by
// ports too, and the use of IPv6 addresses of a link without Duplicate Address Detection.
func setForwardingMultipathAndDADSysctls(link string) error {
	for key, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
		"net/ipv6/conf/default/accept_dad": "0", "net/ipv6/conf/" + link + "/accept_dad": "0",
		"net/ipv4/fib_multipath_hash_policy": "1", "net/ipv6/fib_multipath_hash_policy": "1",
	} {
		if err := netns.SetSysctl(key, value); err != nil {
			return err
		}
	}
	return nil
}

// addClientBehindRouter creates the client behind router i.
func (s *supervisor) addClientBehindRouter(i int) error {
	ns, err := netns.NewNamed(nameWithNumberUnlessFirst("far", i))
	if err != nil {
		return err
	}
	router := s.hostByName[routerName(i)].namespace
	if err := netns.AddCable(router, "eth1", ns, lanLink); err != nil {
		return err
	}
	for _, end := range []struct {
		ns     netns.Path
		link   string
		number int
	}{{router, "eth1", 1}, {ns, lanLink, 2}} {
		err := end.ns.RunInside(func() error {
			if err := setForwardingMultipathAndDADSysctls(end.link); err != nil {
				return err
			}
			if err := netns.SetLinkUp(end.link); err != nil {
				return err
			}
			for _, n := range s.options.clientNetworksBehindRouter(i) {
				if err := netns.AddAddress(end.link, netip.PrefixFrom(addressInNetwork(n, end.number), netip.MustParsePrefix(n).Bits())); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return ns.RunInside(func() error {
		for _, n := range s.options.clientNetworksBehindRouter(i) {
			if err := netns.AddRoute(lanLink, defaultRoutePrefix(addressInNetwork(n, 1)), addressInNetwork(n, 1)); err != nil {
				return err
			}
		}
		return nil
	})
}

func defaultRoutePrefix(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// addRoutes adds routes to a host of the LAN: a default route via the first router, one to the
// network behind the second router, and one to the Pods of each node.
func (s *supervisor) addRoutes(h *host) error {
	for i := s.options.Routers; i >= 1; i-- {
		for f, n := range s.options.networksOfEnabledFamilies(lanIPv4Network, lanIPv6Network) {
			r := addressInNetwork(n, i)
			to := netip.MustParsePrefix(s.options.clientNetworksBehindRouter(i)[f])
			if i == 1 {
				to = defaultRoutePrefix(r)
			}
			if h.name == routerName(i) {
				continue
			}
			if err := netns.AddRoute(lanLink, to, r); err != nil {
				return err
			}
		}
	}
	for _, other := range s.hostByName {
		if other == h {
			continue
		}
		for i, p := range other.podNetworks {
			if err := netns.AddRoute(lanLink, p, other.addresses[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// cutCable sets the host's port down. The host loses the carrier.
func (s *supervisor) cutCable(name string) error {
	if s.hostByName[name] == nil {
		return fmt.Errorf("no host %q is on the LAN", name)
	}
	return s.bridgeNamespace.RunInside(func() error { return netns.SetLinkDown(bridgePortNameOfHost(name)) })
}

// cutCableKeepingCarrier removes the host's port from its bridge. No frame passes, and the host
// keeps the carrier.
func (s *supervisor) cutCableKeepingCarrier(name string) error {
	return s.changeAndReconnectHostCable(name, func(h *host) { h.dropsAllFrames = true })
}

// plugCable undoes cutCable and cutCableKeepingCarrier. During a partition the host returns to its
// part.
func (s *supervisor) plugCable(name string) error {
	if err := s.changeAndReconnectHostCable(name, func(h *host) { h.dropsAllFrames = false }); err != nil {
		return err
	}
	return s.bridgeNamespace.RunInside(func() error { return netns.SetLinkUp(bridgePortNameOfHost(name)) })
}

// changeAndReconnectHostCable changes which bridge a host belongs to, and connects it.
func (s *supervisor) changeAndReconnectHostCable(name string, change func(*host)) error {
	h := s.hostByName[name]
	if h == nil {
		return fmt.Errorf("no host %q is on the LAN", name)
	}
	s.cableMutex.Lock()
	defer s.cableMutex.Unlock()
	change(h)
	bridge := h.currentBridge
	if h.dropsAllFrames {
		bridge = ""
	}
	return s.bridgeNamespace.RunInside(func() error { return netns.AttachLinkToBridge(bridgePortNameOfHost(name), bridge) })
}

// partitionHosts moves each group of hosts to a bridge of its own. The hosts in no group stay on
// the LAN.
func (s *supervisor) partitionHosts(groups [][]string) error {
	for i, group := range groups {
		bridge := fmt.Sprintf("%s%d", lanBridge, i+1)
		err := s.bridgeNamespace.RunInside(func() error {
			if netns.SetLinkUp(bridge) == nil {
				return nil
			}
			return netns.AddBridge(bridge)
		})
		if err != nil {
			return err
		}
		for _, name := range group {
			if err := s.changeAndReconnectHostCable(name, func(h *host) { h.currentBridge = bridge }); err != nil {
				return err
			}
		}
	}
	return nil
}

// healPartition undoes partitionHosts. Cut cables stay cut.
func (s *supervisor) healPartition() error {
	for name := range s.hostByName {
		if err := s.changeAndReconnectHostCable(name, func(h *host) { h.currentBridge = lanBridge }); err != nil {
			return err
		}
	}
	return nil
}
