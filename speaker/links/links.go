// Package links watches the network interfaces of the node and delivers the usable ones, and those
// that are down, as immutable LinkUpdates. After each netlink event, and each
// periodicLinkReadInterval, it reads the whole state again, so that a lost event does no harm. It
// changes nothing on the node.
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
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// DefaultExcludePatterns matches the interfaces of container networks and tunnels, which have no
// clients on their segment.
var DefaultExcludePatterns = []string{
	"^docker.*", "^cbr.*", "^dummy.*", "^virbr.*", "^lxcbr.*", "^veth.*", "^lo$", "^cali.*", "^tunl.*", "^flannel.*",
	"^kube-ipvs.*", "^cni.*", "^nodelocaldns.*", "^lxc.*",
	`^vxlan(-v6)?\.calico$`, "^cilium_.*", "^antrea-gw.*", "^ovn-k8s-mp.*", "^weave.*", "^kube-bridge$", "^br-[0-9a-f]{12}$", "^podman.*",
}

const (
	// eventCoalesceDelay is how long events are gathered: an interface that comes up sends several.
	eventCoalesceDelay = 5 * time.Millisecond
	// periodicLinkReadInterval is how often the interfaces and the patterns are read without an
	// event.
	periodicLinkReadInterval = 5 * time.Second
	// failedReadRetryDelay is the delay after the interfaces could not be read.
	failedReadRetryDelay = time.Second
	// resubscribeDelay is the delay after netlink failed.
	resubscribeDelay = time.Second
)

// ExcludePatternsFunc returns the regular expressions that exclude interfaces by name. The Watcher
// calls it at each read, so that an edit takes effect.
type ExcludePatternsFunc func() ([]string, error)

// Watcher delivers the usable links of the process's network namespace.
type Watcher struct {
	readExcludePatterns            ExcludePatternsFunc
	excludePatterns                []string // as last read
	compiledExcludePatterns        []*regexp.Regexp
	compiledDefaultExcludePatterns []*regexp.Regexp // of DefaultExcludePatterns
	// the last error of readExcludePatterns in the log
	lastLoggedPatternError string
	log                    *slog.Logger
	linkUpdates            *latest.Value[facts.LinkSet]
	skippedLinks           atomic.Pointer[[]facts.SkippedLink]
	gateways               gatewayCache
}

// NewWatcher returns a Watcher that excludes the interfaces whose names match one of the patterns.
// While the patterns cannot be read, the last valid ones apply, at first DefaultExcludePatterns.
// These apply always if exclude is nil.
func NewWatcher(exclude ExcludePatternsFunc, log *slog.Logger) *Watcher {
	if exclude == nil {
		exclude = func() ([]string, error) { return DefaultExcludePatterns, nil }
	}
	w := &Watcher{readExcludePatterns: exclude, log: log, linkUpdates: latest.NewValue[facts.LinkSet](), gateways: gatewayCache{readDefaultRoutes: readDefaultGateways, now: time.Now}}
	// cannot fail; a test checks that
	w.compiledDefaultExcludePatterns, _ = compilePatterns(DefaultExcludePatterns)
	w.skippedLinks.Store(&[]facts.SkippedLink{})
	return w
}

// reloadExcludePatterns reads the exclude patterns again.
func (w *Watcher) reloadExcludePatterns() {
	patterns, err := w.readExcludePatterns()
	if err == nil && w.compiledExcludePatterns != nil && slices.Equal(patterns, w.excludePatterns) {
		w.lastLoggedPatternError = ""
		return
	}
	var compiled []*regexp.Regexp
	if err == nil {
		compiled, err = compilePatterns(patterns)
	}
	if err != nil {
		if w.compiledExcludePatterns == nil {
			w.excludePatterns, w.compiledExcludePatterns = DefaultExcludePatterns, w.compiledDefaultExcludePatterns
		}
		if err.Error() != w.lastLoggedPatternError {
			w.lastLoggedPatternError = err.Error()
			w.log.Error("reading the exclude patterns of interfaces; the last valid ones stay in use", "error", err)
		}
		return
	}
	w.excludePatterns, w.compiledExcludePatterns, w.lastLoggedPatternError = slices.Clone(patterns), compiled, ""
}

func compilePatterns(patterns []string) ([]*regexp.Regexp, error) {
	out := []*regexp.Regexp{}
	for _, p := range patterns {
		re, err := regexp.Compile(p)
		if err != nil {
			return nil, fmt.Errorf("invalid pattern %q: %w", p, err)
		}
		out = append(out, re)
	}
	return out, nil
}

// SkippedLinks returns the interfaces that were not usable at the last read, sorted by name.
func (w *Watcher) SkippedLinks() []facts.SkippedLink { return *w.skippedLinks.Load() }

// LinkUpdates delivers the links, those that are down included, at the start and after each change.
// A later set replaces one that was not received yet.
func (w *Watcher) LinkUpdates() <-chan facts.LinkSet { return w.linkUpdates.C() }

// Run watches until ctx ends. When netlink fails, for example for lack of buffers, it
// subscribes again.
func (w *Watcher) Run(ctx context.Context) error {
	var last facts.LinkSet
	for first := true; ctx.Err() == nil; first = false {
		if !first {
			select {
			case <-ctx.Done():
			case <-time.After(resubscribeDelay):
			}
		}
		if err := w.watchUntilNetlinkFails(ctx, &last); err != nil {
			w.log.Warn("watching the network interfaces; trying again", "error", err)
		}
	}
	return nil
}

// watchUntilNetlinkFails subscribes and delivers sets until netlink fails or ctx ends.
func (w *Watcher) watchUntilNetlinkFails(ctx context.Context, last *facts.LinkSet) error {
	e, err := subscribeToNetlink()
	if err != nil {
		return err
	}
	defer e.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	changed := e.eventReceivedSignal.C()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-e.endErrorChannel:
			return err
		case <-changed:
			// The events of this delay are gathered. It is not extended, however many events come.
			changed = nil
			w.gateways.markRoutesChanged()
			timer.Reset(eventCoalesceDelay)
		case <-timer.C:
			changed = e.eventReceivedSignal.C()
			timer.Reset(w.deliverLinks(last))
		}
	}
}

// deliverLinks reads the links and delivers them if they changed. It returns the delay
// until the next read.
func (w *Watcher) deliverLinks(last *facts.LinkSet) time.Duration {
	set, err := w.readLinks()
	if err != nil {
		w.log.Warn("reading the network interfaces", "error", err)
		return failedReadRetryDelay
	}
	if *last != nil && reflect.DeepEqual(*last, set) {
		return periodicLinkReadInterval
	}
	*last = set
	w.linkUpdates.Put(set)
	return periodicLinkReadInterval
}

// indexesOfVRFs returns the indexes of the VRF devices. ARP and NDP of a port of a VRF work on the
// port itself, unlike those of a port of a bridge or bond.
func indexesOfVRFs(all []netlink.Link) map[int]bool {
	out := map[int]bool{}
	for _, l := range all {
		if l.Type() == (&netlink.Vrf{}).Type() {
			out[l.Attrs().Index] = true
		}
	}
	return out
}

// portMACsByBond returns the Ethernet addresses of the ports of each bond, by the index of the
// bond. A bond of mode balance-alb sends each answer with the address of one of its ports.
func portMACsByBond(all []netlink.Link) map[int][]facts.MAC {
	bonds, out := map[int]bool{}, map[int][]facts.MAC{}
	for _, l := range all {
		if l.Type() == (&netlink.Bond{}).Type() {
			bonds[l.Attrs().Index] = true
		}
	}
	for _, l := range all {
		if a := l.Attrs(); bonds[a.MasterIndex] && len(a.HardwareAddr) == 6 {
			out[a.MasterIndex] = append(out[a.MasterIndex], facts.MAC(a.HardwareAddr))
		}
	}
	for bond, macs := range out {
		slices.SortFunc(macs, func(x, y facts.MAC) int { return slices.Compare(x[:], y[:]) })
		out[bond] = slices.Compact(macs)
	}
	return out
}

// readLinks returns the usable links, and those that are only down or without carrier. An interface
// whose addresses cannot be read is delivered without addresses.
func (w *Watcher) readLinks() (facts.LinkSet, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	gateways, err := w.gateways.currentGateways()
	if err != nil {
		w.log.Warn("reading the default routes", "error", err)
	}
	w.reloadExcludePatterns()
	set, skipped := facts.LinkSet{}, []facts.SkippedLink{}
	vrfs, portMACs := indexesOfVRFs(all), portMACsByBond(all)
	for _, l := range all {
		a := l.Attrs()
		why := w.skipReason(a, vrfs)
		if why != facts.NotSkipped {
			skipped = append(skipped, facts.SkippedLink{Name: a.Name, Reason: why})
		}
		if why != facts.NotSkipped && why != facts.SkippedDownOrNoCarrier {
			continue
		}
		link := facts.Link{Index: a.Index, Name: a.Name, MAC: facts.MAC(a.HardwareAddr), PortMACs: portMACs[a.Index], IsDown: why == facts.SkippedDownOrNoCarrier}
		link.AddressesWithPrefixLength, err = readAddressesWithPrefixLength(l)
		if err != nil {
			w.log.Warn("reading the addresses of a link", "link", a.Name, "error", err)
		}
		link.DefaultGateways, link.LowestMetricDefaultGateways = gateways.allByLinkIndex[a.Index], gateways.lowestMetricByLinkIndex[a.Index]
		link.GatewaysWithKnownMAC, err = readGatewaysWithKnownMAC(a.Index, link.DefaultGateways)
		if err != nil {
			w.log.Warn("reading the Ethernet addresses of the gateways", "link", a.Name, "error", err)
		}
		set = append(set, link)
	}
	slices.SortFunc(set, func(x, y facts.Link) int { return x.Index - y.Index })
	slices.SortFunc(skipped, func(x, y facts.SkippedLink) int { return strings.Compare(x.Name, y.Name) })
	w.skippedLinks.Store(&skipped)
	return set, nil
}

// skipReason returns why an interface is not usable. A usable interface is Ethernet, is up, has
// carrier and can broadcast. It is not a port of a bridge or bond: the master is used instead.
func (w *Watcher) skipReason(a *netlink.LinkAttrs, vrfs map[int]bool) facts.SkipReason {
	switch {
	case matchesAnyExpression(w.compiledExcludePatterns, a.Name) && matchesAnyExpression(w.compiledDefaultExcludePatterns, a.Name):
		return facts.SkippedContainerNetwork
	case matchesAnyExpression(w.compiledExcludePatterns, a.Name):
		return facts.SkippedExcludedByName
	case a.Flags&net.FlagLoopback != 0, a.Flags&net.FlagBroadcast == 0, a.RawFlags&unix.IFF_NOARP != 0, len(a.HardwareAddr) != 6:
		return facts.SkippedNotBroadcastEthernet
	case a.MasterIndex != 0 && !vrfs[a.MasterIndex]:
		return facts.SkippedMemberOfMaster
	case a.Flags&net.FlagUp == 0, a.RawFlags&unix.IFF_LOWER_UP == 0:
		return facts.SkippedDownOrNoCarrier
	}
	return facts.NotSkipped
}

func matchesAnyExpression(expressions []*regexp.Regexp, name string) bool {
	return slices.ContainsFunc(expressions, func(re *regexp.Regexp) bool { return re.MatchString(name) })
}

func readAddressesWithPrefixLength(l netlink.Link) ([]netip.Prefix, error) {
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

// defaultGatewaysByLink are the next hops of the default routes by link index, sorted.
type defaultGatewaysByLink struct{ allByLinkIndex, lowestMetricByLinkIndex map[int][]netip.Addr }

// readDefaultGateways returns the next hops of all default routes, including routes
// with several next hops.
func readDefaultGateways() (defaultGatewaysByLink, error) {
	out := defaultGatewaysByLink{map[int][]netip.Addr{}, map[int][]netip.Addr{}}
	type hop struct {
		link, metric int
		address      netip.Addr
	}
	var found []hop
	best := map[bool]int{} // the lowest metric, by whether it is IPv4
	add := func(link, metric int, gw net.IP) {
		ip, ok := netip.AddrFromSlice(gw)
		if !ok {
			return
		}
		ip = ip.Unmap()
		found = append(found, hop{link, metric, ip})
		if least, any := best[ip.Is4()]; !any || metric < least {
			best[ip.Is4()] = metric
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				continue
			}
		}
		add(r.LinkIndex, r.Priority, r.Gw)
		for _, h := range r.MultiPath {
			add(h.LinkIndex, r.Priority, h.Gw)
		}
	}
	slices.SortFunc(found, func(x, y hop) int { return x.address.Compare(y.address) })
	for _, h := range found {
		out.allByLinkIndex[h.link] = append(out.allByLinkIndex[h.link], h.address)
		if h.metric == best[h.address.Is4()] {
			out.lowestMetricByLinkIndex[h.link] = append(out.lowestMetricByLinkIndex[h.link], h.address)
		}
	}
	for _, m := range []map[int][]netip.Addr{out.allByLinkIndex, out.lowestMetricByLinkIndex} {
		for link, list := range m {
			m[link] = slices.Compact(list)
		}
	}
	return out, err
}

// readGatewaysWithKnownMAC returns the gateways whose Ethernet addresses the kernel knows.
func readGatewaysWithKnownMAC(index int, gateways []netip.Addr) ([]facts.LinkNeighbour, error) {
	if len(gateways) == 0 {
		return nil, nil
	}
	known, err := netlink.NeighList(index, netlink.FAMILY_ALL)
	var out []facts.LinkNeighbour
	for _, n := range known {
		ip, ok := netip.AddrFromSlice(n.IP)
		if ok && len(n.HardwareAddr) == 6 && slices.Contains(gateways, ip.Unmap()) {
			out = append(out, facts.LinkNeighbour{Address: ip.Unmap(), MAC: facts.MAC(n.HardwareAddr)})
		}
	}
	slices.SortFunc(out, func(x, y facts.LinkNeighbour) int { return x.Address.Compare(y.Address) })
	return out, err
}
