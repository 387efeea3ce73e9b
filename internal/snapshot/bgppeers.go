package snapshot

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/ipfamily"
)

// Defaults and limits of a BGP session (RFC 4271, section 10) and of BFD.
const (
	defaultPeerPort                    = 179
	defaultBGPHoldTime                 = 90 * time.Second
	maxBGPHoldTime                     = 65535 * time.Second
	defaultBFDReceiveAndTransmitMillis = 300
	defaultBFDDetectMultiplier         = 3
	defaultBFDEchoIntervalMillis       = 50
	defaultBFDMinimumTTL               = 254
	maxTCPMD5PasswordBytes             = 80 // the kernel's limit for TCP MD5 keys
)

// parsePeers parses the BGPPeers, the oldest first. If an edit breaks a BGPPeer, its last good
// state stays in effect. A BGPPeer that never had a good state gets a fault.
func (b *snapshotBuilder) parsePeers(in []v1beta2.BGPPeer, o *ConfigurationObjects) []*Peer {
	in = slices.Clone(in)
	slices.SortFunc(in, func(x, y v1beta2.BGPPeer) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Name, y.Name))
	})
	profiles := map[string]*BFDProfile{}
	for i := range o.BFDProfiles {
		profiles[o.BFDProfiles[i].Name] = parseBFDProfile(&o.BFDProfiles[i])
	}
	var out []*Peer
	for i := range in {
		object := ObjectReference{Kind: "BGPPeer", Namespace: in[i].Namespace, Name: in[i].Name}
		b.currentObjectUnservable = false
		p := b.parsePeer(object, &in[i].Spec)
		p.Name = in[i].Name
		b.resolveBFDProfile(object, p, in[i].Spec.BFDProfile, profiles)
		b.resolvePassword(object, p, &in[i].Spec, o)
		b.reportDuplicateSelectors(object, "spec.nodeSelectors", in[i].Spec.NodeSelectors)
		b.parsePeerExtension(object, p, in[i].Spec.Gantry, o.Nodes)
		if b.currentObjectUnservable {
			last := o.PreviousSnapshot.PeerByName(p.Name)
			if last == nil || last.FirstProblem != nil {
				cause := b.currentObjectFirstFault
				p.FirstProblem = &cause
				out = append(out, p)
				continue
			}
			p = last
		}
		out = append(out, b.markDuplicateOfOlderPeers(object, b.useBFDParametersOfOlderPeer(object, p, out, o.Nodes), out, o.Nodes))
	}
	slices.SortFunc(out, func(x, y *Peer) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

// markDuplicateOfOlderPeers sets OlderPeersWithSameSession to the older peers with the same
// session. A router would end the older session when the newer one connects.
func (b *snapshotBuilder) markDuplicateOfOlderPeers(o ObjectReference, p *Peer, older []*Peer, nodes []NodeLabels) *Peer {
	out := *p
	out.OlderPeersWithSameSession = nil
	for _, q := range older {
		if q.FirstProblem != nil || !q.hasSameSession(p) {
			continue
		}
		out.OlderPeersWithSameSession = append(out.OlderPeersWithSameSession, q.Name)
		if haveNodeInCommon(q.NodeSelectors, p.NodeSelectors, nodes) {
			b.reportProblem(o, "spec.peerAddress", names.ReasonDuplicatePeer,
				"spec.peerAddress: BGPPeer %q already connects to %s from the same nodes and source address, and the router cannot tell the two sessions apart, so that this one is not started there: delete one of them, or give it another sourceAddress, peerPort or nodeSelectors",
				q.Name, p.describeRemote())
		}
	}
	return &out
}

// useBFDParametersOfOlderPeer gives a peer the BFD parameters of an older peer with the same path,
// since there is only one BFD session to an address.
func (b *snapshotBuilder) useBFDParametersOfOlderPeer(o ObjectReference, p *Peer, older []*Peer, nodes []NodeLabels) *Peer {
	for _, q := range older {
		if p.BFD == nil || q.BFD == nil || q.FirstProblem != nil || !q.hasSameBFDPath(p) || q.hasSameSession(p) || p.BFD.hasSameParameters(q.BFD) || !haveNodeInCommon(q.NodeSelectors, p.NodeSelectors, nodes) {
			continue
		}
		b.reportProblem(o, "spec.bfdProfile", names.ReasonConflictingBFD,
			"spec.bfdProfile: there is only one BFD session to %s, and the older BGPPeer %q runs it with BFDProfile %q, not %q: name the same profile in both, or give one of them another sourceAddress",
			p.describeRemote(), q.Name, q.BFD.Name, p.BFD.Name)
		shared := *p
		shared.BFD = q.BFD
		return &shared
	}
	return p
}

// hasSameBFDPath says whether one BFD session watches the paths of both peers.
func (p *Peer) hasSameBFDPath(q *Peer) bool {
	return p.Address == q.Address && p.DefaultGatewayFamily == q.DefaultGatewayFamily && p.Interface == q.Interface && p.VRF == q.VRF && p.SourceAddress == q.SourceAddress && p.MultiHop == q.MultiHop
}

// hasSameParameters says whether two profiles differ in nothing but the name.
func (f *BFDProfile) hasSameParameters(g *BFDProfile) bool {
	x, y := *f, *g
	x.Name, y.Name = "", ""
	return x == y
}

// hasSameSession says whether a router cannot tell the sessions of both peers apart.
func (p *Peer) hasSameSession(q *Peer) bool {
	return p.Address == q.Address && p.DefaultGatewayFamily == q.DefaultGatewayFamily && p.Interface == q.Interface && p.Port == q.Port && p.VRF == q.VRF && p.SourceAddress == q.SourceAddress
}

// describeRemote names the router in messages.
func (p *Peer) describeRemote() string {
	if p.Address.IsValid() {
		return netip.AddrPortFrom(p.Address, p.Port).String()
	}
	if p.DefaultGatewayFamily != 0 {
		return fmt.Sprintf("the default gateway of IPv%d", p.DefaultGatewayFamily)
	}
	return "interface " + p.Interface
}

// parsePeerExtension reads spec.gantry of a peer. A node without the label does not peer; the
// others do.
func (b *snapshotBuilder) parsePeerExtension(o ObjectReference, p *Peer, in *v1beta2.PeerExtension, nodes []NodeLabels) {
	if in == nil {
		return
	}
	p.DefaultGatewayFamily = map[string]ipfamily.Family{"IPv4": ipfamily.IPv4, "IPv6": ipfamily.IPv6}[in.DefaultGateway]
	p.NodeLabelOfMyASN, p.NodeLabelOfPeerASN, p.Passive = in.MyASNLabel, in.PeerASNLabel, in.Passive
	if in.TTLSecurityHops != nil {
		p.MaxTTLSecurityHops = uint8(min(max(*in.TTLSecurityHops, 1), 254))
	}
	p.RestartTime, p.BFDStrict = durationOrZero(in.RestartTime), in.BFDStrict
	p.DrainDelay, p.HasDrainDelay = durationOrZero(in.DrainDelay), in.DrainDelay != nil
	b.parseNextHops(o, p, in.NextHops)
	if in.RestartTime != nil && !p.GracefulRestart {
		b.reportProblem(o, "spec.gantry.restartTime", names.ReasonInvalidTimer, "spec.gantry.restartTime: it has no effect without enableGracefulRestart: set that, or remove restartTime")
	}
	if in.BFDStrict && p.BFD == nil {
		b.reportProblem(o, "spec.gantry.bfdStrict", names.ReasonUnknownBFDProfile, "spec.gantry.bfdStrict: it has no effect without bfdProfile: set bfdProfile, or remove bfdStrict")
	}
	if p.NodeLabelOfMyASN == "" && p.NodeLabelOfPeerASN == "" {
		return
	}
	bad, first, why := 0, "", error(nil)
	for _, n := range nodes {
		if _, _, err := p.ASNsForNode(n.Labels); err != nil && p.SelectsNode(n.Labels) {
			bad++
			if first == "" || n.Name < first {
				first, why = n.Name, err
			}
		}
	}
	if bad > 0 {
		b.reportProblem(o, "spec.gantry", names.ReasonNodeLabel, "spec.gantry: %d of the selected nodes do not peer, node %q among them: %v", bad, first, why)
	}
}

// parseNextHops reads the next hops: addresses and networks, at most one of each family.
func (b *snapshotBuilder) parseNextHops(o ObjectReference, p *Peer, in []string) {
	const field = "spec.gantry.nextHops"
	for _, text := range in {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			a, addressErr := netip.ParseAddr(text)
			prefix, err = netip.PrefixFrom(a, a.BitLen()), addressErr
		}
		a := prefix.Addr()
		if err != nil || a.Zone() != "" || a.IsUnspecified() && prefix.IsSingleIP() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.Is4In6() || a == limitedBroadcast {
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: %q cannot be a next hop: write an address such as 192.0.2.1, or a network such as 192.0.2.0/24 that contains an address of each node", field, text)
			continue
		}
		target := &p.NextHopIPv4
		if a.Is6() {
			target = &p.NextHopIPv6
		}
		if target.IsValid() {
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: it has two entries of the family of %q: write one", field, text)
		}
		*target = prefix.Masked()
		if family := ipfamily.FamilyOf(a); !p.CarriesFamily(family) {
			b.reportProblem(o, field, names.ReasonInvalidAddress, "%s: %s has no effect, since the session carries no %s routes: set dualStackAddressFamily, or remove it", field, prefix.Masked(), family)
		}
	}
}

func (b *snapshotBuilder) parsePeer(o ObjectReference, in *v1beta2.BGPPeerSpec) *Peer {
	p := &Peer{
		MyASN: in.MyASN, PeerASN: in.PeerASN, LocalASN: in.LocalASN, Interface: in.Interface,
		Port: in.PeerPort, VRF: in.VRFName, ConnectInterval: durationOrZero(in.ConnectTime),
		GracefulRestart: in.EnableGracefulRestart, MultiHop: in.EBGPMultiHop, DisableMultiprotocol: in.DisableMP, DualStack: in.DualStackAddressFamily,
		NodeSelectors: b.parseSelectors(o, "spec.nodeSelectors", in.NodeSelectors),
		Address:       b.parseOptionalAddress(o, "spec.peerAddress", in.PeerAddress),
		SourceAddress: b.parseOptionalAddress(o, "spec.sourceAddress", in.SourceAddress),
		RouterID:      b.parseOptionalAddress(o, "spec.routerID", in.RouterID),
	}
	b.checkPeerAddresses(o, p)
	if len(in.Password) > maxTCPMD5PasswordBytes {
		b.reportProblemAndMarkBroken(o, "spec.password", names.ReasonUnknownSecret, "spec.password: it is longer than the %d bytes that TCP MD5 allows: shorten it", maxTCPMD5PasswordBytes)
	}
	if p.Port == 0 {
		p.Port = defaultPeerPort
	}
	switch in.DynamicASN {
	case v1beta2.DynamicASNInternal:
		p.DynamicASN = InternalASN
	case v1beta2.DynamicASNExternal:
		p.DynamicASN = ExternalASN
	}
	p.HoldTime, p.KeepaliveInterval = parseBGPTimers(in)
	if p.HoldTime != 0 && p.HoldTime < 3*time.Second || p.HoldTime > maxBGPHoldTime {
		b.reportProblemAndMarkBroken(o, "spec.holdTime", names.ReasonInvalidTimer, "spec.holdTime: %s is out of range: write 0s (never) or 3s to 65535s", p.HoldTime)
	}
	if p.KeepaliveInterval > p.HoldTime {
		b.reportProblemAndMarkBroken(o, "spec.keepaliveTime", names.ReasonInvalidTimer, "spec.keepaliveTime: %s is longer than the holdTime of %s: write at most the holdTime, best a third of it", p.KeepaliveInterval, p.HoldTime)
	}
	return p
}

// limitedBroadcast is the address of all hosts of a link (RFC 919 section 7).
var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// checkPeerAddresses reports addresses that no router can have, and link-local ones without a link.
func (b *snapshotBuilder) checkPeerAddresses(o ObjectReference, p *Peer) {
	for field, a := range map[string]netip.Addr{"spec.peerAddress": p.Address, "spec.sourceAddress": p.SourceAddress} {
		if a.IsUnspecified() || a.IsMulticast() || a == limitedBroadcast {
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: %s cannot be the address of a host: write one such as 192.0.2.1", field, a)
		}
	}
	if p.Address.Is6() && p.Address.IsLinkLocalUnicast() && p.VRF == "" && p.Interface == "" {
		b.reportProblemAndMarkBroken(o, "spec.peerAddress", names.ReasonInvalidAddress,
			"spec.peerAddress: %s is link-local and does not say on which link: name the link in vrf, or write interface instead of peerAddress to find the router on a link", p.Address)
	}
}

// parseBGPTimers derives an unset timer from the other: the hold time is three keepalive intervals.
func parseBGPTimers(in *v1beta2.BGPPeerSpec) (hold, keepalive time.Duration) {
	switch {
	case in.HoldTime != nil && in.KeepaliveTime != nil:
		hold, keepalive = durationOrZero(in.HoldTime), durationOrZero(in.KeepaliveTime)
	case in.HoldTime != nil:
		hold = durationOrZero(in.HoldTime).Truncate(time.Second)
		keepalive = hold / 3
	case in.KeepaliveTime != nil:
		keepalive = durationOrZero(in.KeepaliveTime)
		hold = 3 * keepalive
	default:
		hold, keepalive = defaultBGPHoldTime, defaultBGPHoldTime/3
	}
	return hold.Truncate(time.Second), keepalive
}

func durationOrZero(d *metav1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d.Duration
}

// parseOptionalAddress parses an address; an empty text is the zero Addr.
func (b *snapshotBuilder) parseOptionalAddress(o ObjectReference, field, text string) netip.Addr {
	if text == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: %q is no IP address: write one such as 192.0.2.1", field, text)
	}
	return a.Unmap()
}

func (b *snapshotBuilder) resolveBFDProfile(o ObjectReference, p *Peer, name string, profiles map[string]*BFDProfile) {
	if name == "" {
		return
	}
	if p.BFD = profiles[name]; p.BFD == nil {
		b.reportProblemAndMarkBroken(o, "spec.bfdProfile", names.ReasonUnknownBFDProfile,
			"spec.bfdProfile: no BFDProfile %q exists in namespace %q: create it, or correct the name", name, o.Namespace)
		return
	}
	if far := p.Address.IsLinkLocalUnicast() || p.Interface != "" || p.MultiHop; far && p.BFD.EchoMode {
		b.reportProblem(o, "spec.bfdProfile", names.ReasonEchoUnsupported,
			"spec.bfdProfile: the BFDProfile %q has echoMode, but link-local neighbours and routers several hops away do not return echo packets, so that only control packets watch the path: name a profile without echoMode", name)
	}
}

// resolvePassword sets the password. If the Secret is missing, the password is not empty: the peer
// waits for the Secret.
func (b *snapshotBuilder) resolvePassword(o ObjectReference, p *Peer, in *v1beta2.BGPPeerSpec, objects *ConfigurationObjects) {
	p.Password = in.Password
	name := in.PasswordSecret.Name
	if name == "" {
		b.reportTrailingLineBreakInPassword(o, "spec.password", "it", in.Password)
		return
	}
	const field = "spec.passwordSecret"
	i := slices.IndexFunc(objects.Secrets, func(s BasicAuthSecret) bool { return s.Name == name })
	switch {
	case i < 0:
		b.reportProblemAndMarkBroken(o, field, names.ReasonUnknownSecret,
			"%s: no Secret %q of type kubernetes.io/basic-auth exists in namespace %q: create it with the entry \"password\", or correct the name", field, name, o.Namespace)
	case objects.Secrets[i].IsForbidden:
		b.reportProblemAndMarkBroken(o, field, names.ReasonUnknownSecret, "%s: Gantry has no right to read the Secret %q: add its name to the chart's value bgp.passwordSecrets, or to the Roles of Gantry", field, name)
	case !objects.Secrets[i].HasPassword || objects.Secrets[i].Password == "":
		b.reportProblemAndMarkBroken(o, field, names.ReasonUnknownSecret, "%s: the Secret %q has no entry \"password\", or it is empty: write the password there", field, name)
	case len(objects.Secrets[i].Password) > maxTCPMD5PasswordBytes:
		b.reportProblemAndMarkBroken(o, field, names.ReasonUnknownSecret, "%s: the password in Secret %q is longer than the %d bytes that TCP MD5 allows: shorten it", field, name, maxTCPMD5PasswordBytes)
	default:
		p.Password = objects.Secrets[i].Password
		b.reportTrailingLineBreakInPassword(o, field, fmt.Sprintf("the password in Secret %q", name), p.Password)
	}
}

// reportTrailingLineBreakInPassword reports a password with a line break at its end. No router has
// one, so that it is a mistake of the tool that wrote the Secret, and the router would never
// answer.
func (b *snapshotBuilder) reportTrailingLineBreakInPassword(o ObjectReference, field, what, password string) {
	if strings.HasSuffix(password, "\n") || strings.HasSuffix(password, "\r") {
		b.reportProblem(o, field, names.ReasonUnknownSecret, "%s: %s ends with a line break, which belongs to the password then: remove the line break, for example with \"printf %%s\" instead of \"echo\"", field, what)
	}
}

func parseBFDProfile(in *v1beta1.BFDProfile) *BFDProfile {
	or := func(p *uint32, d uint32) uint32 {
		if p == nil {
			return d
		}
		return *p
	}
	ms := func(n uint32) time.Duration { return time.Duration(n) * time.Millisecond }
	return &BFDProfile{
		Name:            in.Name,
		ReceiveInterval: ms(or(in.Spec.ReceiveInterval, defaultBFDReceiveAndTransmitMillis)), TransmitInterval: ms(or(in.Spec.TransmitInterval, defaultBFDReceiveAndTransmitMillis)),
		DetectMultiplier: uint8(min(or(in.Spec.DetectMultiplier, defaultBFDDetectMultiplier), 255)),
		EchoInterval:     ms(or(in.Spec.EchoInterval, defaultBFDEchoIntervalMillis)),
		EchoMode:         in.Spec.EchoMode != nil && *in.Spec.EchoMode, PassiveMode: in.Spec.PassiveMode != nil && *in.Spec.PassiveMode,
		MinimumMultihopTTL: uint8(min(or(in.Spec.MinimumTTL, defaultBFDMinimumTTL), 254)),
	}
}
