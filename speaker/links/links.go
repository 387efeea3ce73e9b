// Package links watches the network interfaces of the node and delivers the usable ones as immutable LinkSets. Events of
// netlink say that something changed; what is true is read anew each time, so that a lost event costs a minute at
// the most. It changes nothing on the node.
package links

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// DefaultExclude matches the interfaces of container networks and tunnels, which lead to no segment of clients.
const DefaultExclude = `^(docker|cbr|dummy|virbr|lxcbr|veth|cali|tunl|flannel|kube-ipvs|cni|nodelocaldns|lxc)|^lo$`

const (
	// coalesce is how long events are gathered: an interface that comes up sends several.
	coalesce = 5 * time.Millisecond
	// resync is how often the interfaces are read without any event.
	resync = time.Minute
	// again is the pause after the interfaces could not be read.
	again = time.Second
	// resubscribe is the pause after netlink failed.
	resubscribe = time.Second
)

// Watcher delivers the usable links of the process's network namespace.
type Watcher struct {
	exclude *regexp.Regexp
	log     *slog.Logger
	sets    chan facts.LinkSet
}

// New returns a Watcher that leaves out the interfaces whose names match the expression.
func New(exclude string, log *slog.Logger) (*Watcher, error) {
	re, err := regexp.Compile(exclude)
	if err != nil {
		return nil, fmt.Errorf("reading the expression for excluded interfaces %q: %w", exclude, err)
	}
	return &Watcher{exclude: re, log: log, sets: make(chan facts.LinkSet, 1)}, nil
}

// Sets delivers the links now and after each change; a set that nobody took yet is replaced by a later one.
func (w *Watcher) Sets() <-chan facts.LinkSet { return w.sets }

// Run watches until ctx ends. When netlink fails, for lack of buffer say, it subscribes anew.
func (w *Watcher) Run(ctx context.Context) error {
	var last facts.LinkSet
	for first := true; ctx.Err() == nil; first = false {
		if !first {
			select {
			case <-ctx.Done():
			case <-time.After(resubscribe):
			}
		}
		if err := w.watch(ctx, &last); err != nil {
			w.log.Warn("watching the network interfaces; trying again", "error", err)
		}
	}
	return nil
}

// watch subscribes and delivers sets until netlink fails or ctx ends.
func (w *Watcher) watch(ctx context.Context, last *facts.LinkSet) error {
	e, err := subscribe()
	if err != nil {
		return err
	}
	defer e.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	something := e.something
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-e.failed:
			return err
		case <-something:
			// What follows is gathered, but for no longer than this, however many events there are.
			something = nil
			timer.Reset(coalesce)
		case <-timer.C:
			something = e.something
			timer.Reset(w.deliver(last))
		}
	}
}

// deliver reads the links and passes them on if they are not what they were. It returns when to read them again.
func (w *Watcher) deliver(last *facts.LinkSet) time.Duration {
	set, err := w.Read()
	if err != nil {
		w.log.Warn("reading the network interfaces", "error", err)
		return again
	}
	if *last != nil && reflect.DeepEqual(*last, set) {
		return resync
	}
	*last = set
	for {
		select {
		case w.sets <- set:
			return resync
		default:
		}
		select {
		case <-w.sets:
		default:
		}
	}
}

// Read returns the usable links. An interface whose addresses cannot be read is delivered without any.
func (w *Watcher) Read() (facts.LinkSet, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	gateways, err := gateways()
	if err != nil {
		w.log.Warn("reading the default routes", "error", err)
	}
	set := facts.LinkSet{}
	for _, l := range all {
		a := l.Attrs()
		if w.exclude.MatchString(a.Name) || !usable(a) {
			continue
		}
		link := facts.Link{Index: a.Index, Name: a.Name, MAC: facts.MAC(a.HardwareAddr)}
		link.Prefixes, err = prefixes(l)
		if err != nil {
			w.log.Warn("reading the addresses of a link", "link", a.Name, "error", err)
		}
		link.Gateways = gateways[a.Index]
		set = append(set, link)
	}
	slices.SortFunc(set, func(x, y facts.Link) int { return x.Index - y.Index })
	return set, nil
}

// usable says whether ARP works on the interface: up, with carrier, Ethernet, able to broadcast, and no port of a bridge
// or bond, whose master speaks for it.
func usable(a *netlink.LinkAttrs) bool {
	const need = net.FlagUp | net.FlagBroadcast
	return a.Flags&need == need && a.RawFlags&unix.IFF_LOWER_UP != 0 && a.RawFlags&unix.IFF_NOARP == 0 &&
		a.Flags&net.FlagLoopback == 0 && a.MasterIndex == 0 && len(a.HardwareAddr) == 6
}

func prefixes(l netlink.Link) ([]netip.Prefix, error) {
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	var out []netip.Prefix
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		bits, _ := a.Mask.Size()
		out = append(out, netip.PrefixFrom(ip.Unmap(), bits))
	}
	slices.SortFunc(out, func(x, y netip.Prefix) int { return x.Addr().Compare(y.Addr()) })
	return out, err
}

// gateways returns the next hops of the default routes by link index, those of routes with several next hops included.
func gateways() (map[int][]netip.Addr, error) {
	out := map[int][]netip.Addr{}
	add := func(link int, gw net.IP) {
		if ip, ok := netip.AddrFromSlice(gw); ok {
			out[link] = append(out[link], ip.Unmap())
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				continue
			}
		}
		add(r.LinkIndex, r.Gw)
		for _, hop := range r.MultiPath {
			add(hop.LinkIndex, hop.Gw)
		}
	}
	for link, hops := range out {
		slices.SortFunc(hops, netip.Addr.Compare)
		out[link] = slices.Compact(hops)
	}
	return out, err
}
