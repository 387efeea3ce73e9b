package netns

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// MainTableRoute is a route in the kernel's main table.
type MainTableRoute struct {
	Prefix netip.Prefix
	// NextHops are the next hops of equal cost, sorted. A route to the link itself has none, nor
	// has one that discards.
	NextHops []netip.Addr
	// Weights are the weights of NextHops, in the same order, 1 to 256.
	Weights []int
	// RouteOriginNumber is the origin of the route (rtnetlink(7), /etc/iproute2/rt_protos): 2 the
	// kernel, 3 or 4 an administrator, 12 BIRD, 186 BGP of FRR, 196 static routes of FRR.
	RouteOriginNumber int
}

// ListMainTableRoutes returns the routes of both families in the main table of the namespace, both
// unicast routes and those that discard.
func (h Path) ListMainTableRoutes() ([]MainTableRoute, error) {
	var out []MainTableRoute
	err := h.RunInside(func() error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			list, err := netlink.RouteList(nil, family)
			if err != nil {
				return err
			}
			for _, r := range list {
				out = append(out, toMainTableRoute(r, family))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the routes of %s: %w", h, err)
	}
	return out, nil
}

func toMainTableRoute(r netlink.Route, family int) MainTableRoute {
	o := MainTableRoute{RouteOriginNumber: int(r.Protocol), Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	if family == unix.AF_INET6 {
		o.Prefix = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if r.Dst != nil {
		a, _ := netip.AddrFromSlice(r.Dst.IP)
		n, _ := r.Dst.Mask.Size()
		o.Prefix = netip.PrefixFrom(a.Unmap(), n)
	}
	hops := r.MultiPath
	if len(hops) == 0 {
		hops = []*netlink.NexthopInfo{{Gw: r.Gw, Via: r.Via}}
	}
	weights := map[netip.Addr]int{}
	for _, hop := range hops {
		gw := hop.Gw
		if v, ok := hop.Via.(*netlink.Via); ok { // an IPv4 route over an IPv6 next hop
			gw = v.Addr
		}
		if a, ok := netip.AddrFromSlice(gw); ok {
			o.NextHops = append(o.NextHops, a.Unmap())
			weights[a.Unmap()] = hop.Hops + 1
		}
	}
	slices.SortFunc(o.NextHops, netip.Addr.Compare)
	for _, a := range o.NextHops {
		o.Weights = append(o.Weights, weights[a])
	}
	return o
}

// FindRouteToExactPrefix returns the route to exactly this prefix, and whether it exists.
func (h Path) FindRouteToExactPrefix(p netip.Prefix) (MainTableRoute, bool, error) {
	list, err := h.ListMainTableRoutes()
	for _, r := range list {
		if r.Prefix == p {
			return r, true, nil
		}
	}
	return MainTableRoute{}, false, err
}
