package preflight

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gantry-lb/gantry/internal/nodefacts"
)

// nodesByText gathers nodes that have the same fault.
type nodesByText map[string][]string

// add notes that a node has a fault.
func (m nodesByText) add(node, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	m[text] = append(m[text], node)
}

// findings returns one finding for each text, each with the same cure.
func (m nodesByText) findings(mend string) []finding {
	var out []finding
	for _, text := range slices.Sorted(maps.Keys(m)) {
		out = append(out, finding{m[text], text, mend})
	}
	return out
}

// findSilentNodes finds nodes that run no program of Gantry, or whose program says nothing.
func findSilentNodes(f *Facts) []finding {
	asked, speakers := nodesByText{}, nodesByText{}
	for i := range f.Nodes {
		n := &f.Nodes[i]
		if n.NotAsked != "" {
			asked.add(n.Name, "the Pod of the preflight says nothing: %s", n.NotAsked)
		}
		switch {
		case !f.IsInstalled:
		case n.Speaker == nil:
			speakers.add(n.Name, "no speaker runs there")
		case !n.Speaker.IsReady:
			speakers.add(n.Name, "its speaker is dead")
		}
	}
	return append(asked.findings("kubectl get pods -A -l app.kubernetes.io/component=preflight -o wide"), speakers.findings("kubectl gantry explain node NAME")...)
}

// findProxyHealth finds nodes on which kube-proxy does not answer.
func findProxyHealth(f *Facts) []finding {
	found := nodesByText{}
	for i := range f.Nodes {
		n := &f.Nodes[i]
		switch {
		case n.Asked != nil && !n.Asked.Proxy.Health.Succeeded:
			found.add(n.Name, "its health check on 127.0.0.1:10256 does not answer: %s", n.Asked.Proxy.Health.Failure)
		case n.Asked == nil && n.Speaker != nil && n.Speaker.FitText != "":
			found.add(n.Name, "%s", n.Speaker.FitText)
		}
	}
	return found.findings("kubectl -n kube-system rollout restart daemonset kube-proxy")
}

// findProxyModes finds nodes whose kube-proxy works otherwise than that of most nodes.
func findProxyModes(f *Facts) []finding {
	nodesByMode := map[string][]string{}
	for _, n := range f.asked() {
		if mode := n.Asked.Proxy.Mode; mode != "" {
			nodesByMode[mode] = append(nodesByMode[mode], n.Name)
		}
	}
	most := mostFrequent(nodesByMode)
	var out []finding
	for _, mode := range slices.Sorted(maps.Keys(nodesByMode)) {
		if mode != most {
			out = append(out, finding{nodesByMode[mode], fmt.Sprintf("kube-proxy runs in mode %s there, and in mode %s on most nodes", mode, most), "kubectl -n kube-system rollout restart daemonset kube-proxy"})
		}
	}
	return out
}

// mostFrequent returns the key with the most nodes, the first one of several.
func mostFrequent(nodesByKey map[string][]string) string {
	keys := slices.Sorted(maps.Keys(nodesByKey))
	if len(keys) == 0 {
		return ""
	}
	return slices.MaxFunc(keys, func(x, y string) int {
		return cmp.Or(cmp.Compare(len(nodesByKey[x]), len(nodesByKey[y])), cmp.Compare(y, x))
	})
}

// findStrictARP finds kube-proxy in mode ipvs without strictARP, in its configuration or in the
// settings of nodes.
func findStrictARP(f *Facts) []finding {
	const mend = `kubectl -n kube-system edit configmap kube-proxy, set "strictARP: true", then: kubectl -n kube-system rollout restart daemonset kube-proxy`
	if f.Proxy.Mode == "ipvs" && !f.Proxy.HasStrictARP {
		return []finding{{nil, "kube-proxy is configured for mode ipvs without strictARP", mend}}
	}
	found := nodesByText{}
	for _, n := range f.asked() {
		for _, l := range n.usableLinks() {
			if n.Asked.Proxy.Mode == "ipvs" && (l.ARPIgnore == 0 || l.ARPAnnounce == 0) {
				found.add(n.Name, "kube-proxy runs in mode ipvs, and arp_ignore of %s is %d and arp_announce %d: it was started without strictARP", l.Name, l.ARPIgnore, l.ARPAnnounce)
			}
		}
	}
	return found.findings(mend)
}

func findRawSockets(f *Facts) []finding {
	found := nodesByText{}
	for i := range f.Nodes {
		n := &f.Nodes[i]
		switch {
		case n.Asked != nil && !n.Asked.RawSockets.Succeeded:
			found.add(n.Name, "the kernel refuses raw sockets: %s", n.Asked.RawSockets.Failure)
		case n.Asked == nil && n.Speaker != nil && slices.ContainsFunc(n.Speaker.Links, func(l SpeakerLink) bool { return l.Reason == rawSocketDenied }):
			found.add(n.Name, "the kernel refuses raw sockets to its speaker")
		}
	}
	return found.findings("give the container the capability NET_RAW, and look at SELinux, AppArmor and seccomp: docs/security.md")
}

// findCarrier finds nodes without a link that can carry addresses.
func findCarrier(f *Facts) []finding {
	found := nodesByText{}
	for i := range f.Nodes {
		n := &f.Nodes[i]
		if n.Asked == nil {
			if n.Speaker != nil && n.Speaker.IsReady && n.Speaker.Layer2Text != "" {
				found.add(n.Name, "%s", n.Speaker.Layer2Text)
			}
			continue
		}
		usable, down := n.usableLinks(), []string(nil)
		for _, l := range usable {
			if !l.HasCarrier {
				down = append(down, l.Name)
			}
		}
		switch {
		case len(usable) == 0:
			found.add(n.Name, "it has no link with an address, but for those of container networks")
		case len(down) == len(usable):
			found.add(n.Name, "its links have no carrier: %s", strings.Join(down, ", "))
		}
	}
	return found.findings("look at the cable and the port of the switch; on the node: ip link")
}

// findUsedPorts finds programs on the ports of Gantry. Those of a speaker that runs are its own.
func findUsedPorts(f *Facts) []finding {
	found := nodesByText{}
	for _, n := range f.asked() {
		if n.Speaker != nil || f.IsInstalled {
			continue
		}
		for _, u := range n.Asked.UsedPorts {
			if u.Port == nodefacts.BGPPort && !f.Needs.BGP || u.Port == nodefacts.BFDPort && !f.Needs.BFD {
				continue // only passive peers and BFD need it
			}
			found.add(n.Name, "another program waits on %s port %d", u.Protocol, u.Port)
		}
	}
	return found.findings("on the node: ss -lntup; stop the program, or give Gantry other ports by its flags")
}

// findMTU finds nodes of one subnet whose links have different MTUs.
func findMTU(f *Facts) []finding {
	nodesBySubnetAndMTU := map[netip.Prefix]map[string][]string{}
	for _, n := range f.asked() {
		for _, l := range n.usableLinks() {
			for _, p := range l.Subnets {
				of := nodesBySubnetAndMTU[p.Masked()]
				if of == nil {
					of = map[string][]string{}
					nodesBySubnetAndMTU[p.Masked()] = of
				}
				of[fmt.Sprint(l.MTU)] = append(of[fmt.Sprint(l.MTU)], n.Name)
			}
		}
	}
	var out []finding
	for _, subnet := range slices.SortedFunc(maps.Keys(nodesBySubnetAndMTU), comparePrefixes) {
		of := nodesBySubnetAndMTU[subnet]
		most := mostFrequent(of)
		for _, mtu := range slices.Sorted(maps.Keys(of)) {
			if mtu != most {
				out = append(out, finding{of[mtu], fmt.Sprintf("the MTU of the link in %s is %s, and %s on most nodes", subnet, mtu, most), fmt.Sprintf("on the node: ip link set dev LINK mtu %s, and the same in its configuration", most)})
			}
		}
	}
	return out
}

func comparePrefixes(x, y netip.Prefix) int {
	return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Bits(), y.Bits()))
}

func findForwarding(f *Facts) []finding {
	found := nodesByText{}
	for _, n := range f.asked() {
		if n.Asked.DoesNotForward {
			found.add(n.Name, "net.ipv4.ip_forward is 0")
		}
	}
	return found.findings("on the node: sysctl -w net.ipv4.ip_forward=1, and the same in /etc/sysctl.d")
}

// strictReversePathFilter is the value of rp_filter that drops a packet whose answer would leave by
// another link (RFC 3704, section 2.2).
const strictReversePathFilter = 1

// findReversePathFilter finds strict filters on nodes with several links: a client behind a router
// may be answered over another link than it asks on. With one link it does not matter.
func findReversePathFilter(f *Facts) []finding {
	found := nodesByText{}
	for _, n := range f.asked() {
		usable := n.usableLinks()
		for _, l := range usable {
			if len(usable) > 1 && l.ReversePathFilter == strictReversePathFilter {
				found.add(n.Name, "it has %d links, and rp_filter of %s is strict (1)", len(usable), l.Name)
			}
		}
	}
	return found.findings("on the node: sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.LINK.rp_filter=2, and the same in /etc/sysctl.d")
}

// findARPSettings finds nodes with several links in one subnet whose kernel answers and asks on
// each of them with the addresses of all.
func findARPSettings(f *Facts) []finding {
	found := nodesByText{}
	for _, n := range f.asked() {
		linksBySubnet := map[netip.Prefix][]nodefacts.Link{}
		for _, l := range n.usableLinks() {
			for _, p := range l.Subnets {
				if p.Addr().Is4() {
					linksBySubnet[p.Masked()] = append(linksBySubnet[p.Masked()], l)
				}
			}
		}
		for _, subnet := range slices.SortedFunc(maps.Keys(linksBySubnet), comparePrefixes) {
			of := linksBySubnet[subnet]
			if len(of) > 1 && slices.ContainsFunc(of, func(l nodefacts.Link) bool { return l.ARPIgnore == 0 || l.ARPAnnounce == 0 }) {
				found.add(n.Name, "several links are in %s, and arp_ignore or arp_announce is 0", subnet)
			}
		}
	}
	return found.findings("on the node: sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2, and the same in /etc/sysctl.d")
}

func findProxyARP(f *Facts) []finding {
	found := nodesByText{}
	for _, n := range f.asked() {
		for _, l := range n.usableLinks() {
			if l.HasProxyARP {
				found.add(n.Name, "proxy_arp of %s is on", l.Name)
			}
		}
	}
	return found.findings("on the node: sysctl -w net.ipv4.conf.LINK.proxy_arp=0 net.ipv4.conf.all.proxy_arp=0, and the same in /etc/sysctl.d")
}

// findIPv6 finds nodes without IPv6, if pools have IPv6 addresses, or if other nodes have it.
func findIPv6(f *Facts) []finding {
	var with, without []string
	for i := range f.Nodes {
		n := &f.Nodes[i]
		switch {
		case !n.isKnown() || n.Asked != nil && len(n.usableLinks()) == 0:
		case n.hasIPv6():
			with = append(with, n.Name)
		default:
			without = append(without, n.Name)
		}
	}
	const mend = "on the node: sysctl -w net.ipv6.conf.all.disable_ipv6=0, and an IPv6 address for the link"
	switch {
	case len(without) == 0:
		return nil
	case f.Needs.IPv6:
		return []finding{{without, "pools have IPv6 addresses, and no link there has IPv6", mend}}
	case len(with) > 0:
		return []finding{{without, "no link there has IPv6, and other nodes have it", mend}}
	}
	return nil
}

// hasIPv6 reports whether a usable link of the node may have IPv6 addresses.
func (n *Node) hasIPv6() bool {
	if n.Asked != nil {
		return n.Asked.HasIPv6 && slices.ContainsFunc(n.usableLinks(), func(l nodefacts.Link) bool { return l.HasIPv6 })
	}
	return slices.ContainsFunc(n.Speaker.Links, func(l SpeakerLink) bool { return l.HasIPv6 })
}

// maxClockSkew is how far a clock may be off. The API server tells its time to a second.
const maxClockSkew = 10 * time.Second

func findClocks(f *Facts) []finding {
	found := nodesByText{}
	for i := range f.Nodes {
		ahead := f.Nodes[i].ClockAhead
		switch {
		case ahead == nil || ahead.Abs() <= maxClockSkew:
		case *ahead > 0:
			found.add(f.Nodes[i].Name, "its clock is %s ahead of the API server's", ahead.Round(time.Second))
		default:
			found.add(f.Nodes[i].Name, "its clock is %s behind the API server's", ahead.Abs().Round(time.Second))
		}
	}
	return found.findings("on the node: systemctl status chronyd systemd-timesyncd; let it follow a time server")
}

// findTCPMD5 finds kernels without TCP MD5, if a BGPPeer has a password.
func findTCPMD5(f *Facts) []finding {
	found := nodesByText{}
	for _, n := range f.asked() {
		if f.Needs.Passwords && !n.Asked.TCPMD5.Succeeded {
			found.add(n.Name, "the kernel refuses a password for TCP: %s", n.Asked.TCPMD5.Failure)
		}
	}
	return found.findings("boot a kernel with CONFIG_TCP_MD5SIG, and without FIPS mode; or remove the password of the BGPPeer and of the router")
}

// findPacketRules finds nodes that cannot steer connections, or cannot keep them, if they should.
func findPacketRules(f *Facts) []finding {
	found := nodesByText{}
	for i := range f.Nodes {
		n := &f.Nodes[i]
		switch {
		case !f.Needs.KeepConnections:
		case n.Speaker != nil && n.Speaker.ForwardingText != "":
			found.add(n.Name, "%s", n.Speaker.ForwardingText)
		case n.Speaker == nil && n.Asked != nil && n.Asked.ForwardingRules.Failure != "":
			found.add(n.Name, "the kernel refuses packet rules that keep connections: %s", n.Asked.ForwardingRules.Failure)
		}
		switch {
		case !f.Needs.AroundDeadNodes:
		case n.Speaker != nil && n.Speaker.SteeringText != "":
			found.add(n.Name, "%s", n.Speaker.SteeringText)
		case n.Speaker == nil && n.Asked != nil && !n.Asked.PacketRules.Succeeded:
			found.add(n.Name, "the kernel refuses packet rules: %s", n.Asked.PacketRules.Failure)
		}
	}
	return found.findings("give the speaker the capability NET_ADMIN (config/continuity), and load the kernel module nf_tables, for --keep-connections also nft_dup_ipv4 and nft_dup_ipv6")
}
