package lab

import (
	"fmt"
	"net/netip"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// The lab's addresses.
const (
	lan4, lan6   = "192.168.0.0/24", "fd00:a8::/64"
	apiHost      = "192.168.0.5"
	apiAddress   = apiHost + ":6444"
	apiNumber    = 5
	clientNumber = 100
	nodeOffset   = 10 // node i has the number nodeOffset+i
	lanBridge    = "lan"
	lanLink      = "eth0"
)

func nodeName(i int) string { return fmt.Sprintf("node%d", i) }

// routerName is the name of router i, which has the number i on the LAN.
func routerName(i int) string { return numbered("router", i) }

// numbered is the name of the first, second... host of a sort.
func numbered(sort string, i int) string {
	if i == 1 {
		return sort
	}
	return fmt.Sprintf("%s%d", sort, i)
}

// behind returns the networks behind router i.
func (o *Options) behind(i int) []string {
	return o.networks(fmt.Sprintf("10.%d.0.0/24", 100-i), fmt.Sprintf("fd00:%d::/64", 100-i))
}

// Address returns the address with that number in a network.
func address(network string, n int) netip.Addr {
	b := netip.MustParsePrefix(network).Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// networks returns the IPv4 network, and the IPv6 one in a dual-stack lab.
func (o *Options) networks(v4, v6 string) []string {
	if o.Families == DualStack {
		return []string{v4, v6}
	}
	return []string{v4}
}

// podNetworks returns the networks of the Pods of node i.
func (o *Options) podNetworks(i int) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range o.networks(fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:10:244:%x::/64", i)) {
		out = append(out, netip.MustParsePrefix(n))
	}
	return out
}

// wire makes the LAN, its hosts, and the networks behind the routers.
func (s *supervisor) wire() error {
	if err := netns.SetUp("lo"); err != nil { // the supervisor's own namespace is the fabric
		return err
	}
	if err := netns.Bridge(lanBridge); err != nil {
		return err
	}
	numbers := map[string]int{"cp": apiNumber, "client": clientNumber}
	for i := 1; i <= s.o.Routers; i++ {
		numbers[routerName(i)] = i
	}
	for i := 1; i <= s.o.Nodes; i++ {
		numbers[nodeName(i)] = nodeOffset + i
	}
	for name, n := range numbers {
		if err := s.join(name, n); err != nil {
			return err
		}
	}
	for i := 1; i <= s.o.Nodes; i++ {
		s.hosts[nodeName(i)].pods = s.o.podNetworks(i)
	}
	for i := 1; i <= s.o.Routers; i++ {
		if err := s.behindRouter(i); err != nil {
			return fmt.Errorf("laying the network behind %s: %w", routerName(i), err)
		}
	}
	for _, h := range s.hosts {
		if err := h.ns.Do(func() error { return s.routes(h) }); err != nil {
			return fmt.Errorf("routing on %s: %w", h.name, err)
		}
	}
	return nil
}

// join makes a host and plugs it into the LAN.
func (s *supervisor) join(name string, number int) error {
	ns, err := netns.New(name)
	if err != nil {
		return err
	}
	h := &host{name: name, ns: ns, bridge: lanBridge}
	s.hosts[name] = h
	if err := netns.Cable(s.fabric, port(name), ns, lanLink); err != nil {
		return err
	}
	if err := netns.Plug(port(name), lanBridge); err != nil {
		return err
	}
	if err := netns.SetUp(port(name)); err != nil {
		return err
	}
	return ns.Do(func() error {
		if err := forward(lanLink); err != nil {
			return err
		}
		if err := netns.SetUp(lanLink); err != nil {
			return err
		}
		for _, n := range s.o.networks(lan4, lan6) {
			a := address(n, number)
			h.addresses = append(h.addresses, a)
			if err := netns.AddAddress(lanLink, netip.PrefixFrom(a, netip.MustParsePrefix(n).Bits())); err != nil {
				return err
			}
		}
		return nil
	})
}

// port is the name of a host's port on the LAN's bridge.
func port(host string) string { return "p-" + host }

// forward has a host route, spread flows over equal routes by their ports too, and use the IPv6 addresses of a link at once.
func forward(link string) error {
	for key, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
		"net/ipv6/conf/default/accept_dad": "0", "net/ipv6/conf/" + link + "/accept_dad": "0",
		"net/ipv4/fib_multipath_hash_policy": "1", "net/ipv6/fib_multipath_hash_policy": "1",
	} {
		if err := netns.Sysctl(key, value); err != nil {
			return err
		}
	}
	return nil
}

// behindRouter makes the client on the other side of router i.
func (s *supervisor) behindRouter(i int) error {
	ns, err := netns.New(numbered("far", i))
	if err != nil {
		return err
	}
	router := s.hosts[routerName(i)].ns
	if err := netns.Cable(router, "eth1", ns, lanLink); err != nil {
		return err
	}
	for _, end := range []struct {
		ns     netns.Handle
		link   string
		number int
	}{{router, "eth1", 1}, {ns, lanLink, 2}} {
		err := end.ns.Do(func() error {
			if err := forward(end.link); err != nil {
				return err
			}
			if err := netns.SetUp(end.link); err != nil {
				return err
			}
			for _, n := range s.o.behind(i) {
				if err := netns.AddAddress(end.link, netip.PrefixFrom(address(n, end.number), netip.MustParsePrefix(n).Bits())); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return ns.Do(func() error {
		for _, n := range s.o.behind(i) {
			if err := netns.AddRoute(lanLink, everything(address(n, 1)), address(n, 1)); err != nil {
				return err
			}
		}
		return nil
	})
}

func everything(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// routes gives a host of the LAN its default route, which is via the first router, the way to what is behind the second,
// and those to the Pods of the nodes.
func (s *supervisor) routes(h *host) error {
	for i := s.o.Routers; i >= 1; i-- {
		for f, n := range s.o.networks(lan4, lan6) {
			r := address(n, i)
			to := netip.MustParsePrefix(s.o.behind(i)[f])
			if i == 1 {
				to = everything(r)
			}
			if h.name == routerName(i) {
				continue
			}
			if err := netns.AddRoute(lanLink, to, r); err != nil {
				return err
			}
		}
	}
	for _, other := range s.hosts {
		if other == h {
			continue
		}
		for i, p := range other.pods {
			if err := netns.AddRoute(lanLink, p, other.addresses[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// cut pulls a host's cable: it loses the carrier.
func (s *supervisor) cut(name string) error {
	if s.hosts[name] == nil {
		return fmt.Errorf("no host %q is on the LAN", name)
	}
	return s.fabric.Do(func() error { return netns.SetDown(port(name)) })
}

// cutSilently takes a host's port out of its bridge: the carrier stays, nothing passes.
func (s *supervisor) cutSilently(name string) error {
	return s.rewire(name, func(h *host) { h.silent = true })
}

// plug undoes cut and cutSilently. In a partition the host is in its part again.
func (s *supervisor) plug(name string) error {
	if err := s.rewire(name, func(h *host) { h.silent = false }); err != nil {
		return err
	}
	return s.fabric.Do(func() error { return netns.SetUp(port(name)) })
}

// rewire changes where a host is to be plugged in, and plugs it in there.
func (s *supervisor) rewire(name string, change func(*host)) error {
	h := s.hosts[name]
	if h == nil {
		return fmt.Errorf("no host %q is on the LAN", name)
	}
	s.cables.Lock()
	defer s.cables.Unlock()
	change(h)
	bridge := h.bridge
	if h.silent {
		bridge = ""
	}
	return s.fabric.Do(func() error { return netns.Plug(port(name), bridge) })
}

// partition puts each group of hosts on a bridge of its own; those in no group stay together.
func (s *supervisor) partition(groups [][]string) error {
	for i, group := range groups {
		bridge := fmt.Sprintf("%s%d", lanBridge, i+1)
		err := s.fabric.Do(func() error {
			if netns.SetUp(bridge) == nil {
				return nil
			}
			return netns.Bridge(bridge)
		})
		if err != nil {
			return err
		}
		for _, name := range group {
			if err := s.rewire(name, func(h *host) { h.bridge = bridge }); err != nil {
				return err
			}
		}
	}
	return nil
}

// heal undoes partition. Cut cables stay cut.
func (s *supervisor) heal() error {
	for name := range s.hosts {
		if err := s.rewire(name, func(h *host) { h.bridge = lanBridge }); err != nil {
			return err
		}
	}
	return nil
}
