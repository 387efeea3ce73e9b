package snapshot

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/internal/view"
)

// Peer is a parsed BGPPeer with everything that it names resolved. The same value serves every node.
type Peer struct {
	Name string
	// Fault is why no node may peer, nil where they may. Beyond the name and the nodes nothing of a faulty Peer means anything.
	Fault *Problem
	// DuplicateOf are the names of older peers with which a router would take this one for the same: on their nodes it stays away.
	DuplicateOf []string
	// MyASN is the node's autonomous system, LocalASN what the router sees in its place; 0 means MyASN.
	MyASN, LocalASN uint32
	// PeerASN is the router's autonomous system; 0 when Dynamic says which are accepted.
	PeerASN    uint32
	DynamicASN DynamicASN
	// Address of the router; the zero Addr for an unnumbered peer on Interface.
	Address   netip.Addr
	Interface string
	// SourceAddress is the address that the session starts from; the zero Addr leaves it to the kernel.
	SourceAddress netip.Addr
	// Port of the router, 1 to 65535.
	Port uint16
	// HoldTime is 0 (never) or 3 s to 65535 s in whole seconds, Keepalive at most Hold; Connect is 0 for the default.
	HoldTime, KeepaliveInterval, ConnectInterval time.Duration
	// RouterID is the zero Addr where the node chooses it.
	RouterID netip.Addr
	// NodeSelectors: a node matches when any does; empty matches all.
	NodeSelectors []labels.Selector
	// Password of TCP MD5; empty for none. It is never logged.
	Password string
	// BFD is nil without BFD.
	BFD *BFDProfile
	// VRF is the link that the session is bound to; empty for none.
	VRF string
	// DefaultGateway is the family of the node's default gateway, which the peer is in place of Address; 0 when it is not.
	DefaultGateway view.Family
	// MyASNLabel and PeerASNLabel are keys of node labels whose values go before MyASN, and take the place of PeerASN; empty
	// for none.
	MyASNLabel, PeerASNLabel string
	// TTLSecurityHops is how many hops away the router may be (RFC 5082), 1 to 254; 0 does not look.
	TTLSecurityHops uint8
	// Passive waits for the router to connect.
	Passive bool

	GracefulRestart, MultiHop, DisableMultiprotocol, DualStack bool
}

// DynamicASN says which autonomous systems a peer without a fixed number may have.
type DynamicASN uint8

// The kinds of DynamicASN.
const (
	FixedASN    DynamicASN = iota // PeerASN alone
	InternalASN                   // MyASN alone
	ExternalASN                   // any but MyASN
)

// BFDProfile is a parsed BFDProfile, defaults filled in.
type BFDProfile struct {
	Name                              string
	ReceiveInterval, TransmitInterval time.Duration // 10 ms to 60 s
	DetectMultiplier                  uint8         // 2 to 255
	EchoInterval                      time.Duration // 10 ms to 60 s
	EchoMode, PassiveMode             bool
	MinimumTTL                        uint8 // 1 to 254, for multihop sessions
}

// BGPAdvertisement is a parsed BGPAdvertisement.
type BGPAdvertisement struct {
	Name string
	// Pools are the names of the pools it covers, resolved from names and selectors, sorted.
	Pools []string
	// PrefixLengthIPv4 and Length6 are the lengths of the announced prefixes: 1 to 32, 1 to 128.
	PrefixLengthIPv4, PrefixLengthIPv6 int
	// LocalPref is 0 where the router is to choose.
	LocalPref uint32
	// Communities are sorted, without repetition.
	Communities []Community
	// NodeSelectors: a node matches when any does; empty matches all.
	NodeSelectors []labels.Selector
	// ServiceSelectors: a Service matches when any does; empty matches all.
	ServiceSelectors []labels.Selector
	// Peers are names of BGPPeers, sorted; empty means all.
	Peers []string
	// MED is sent when HasMED; Prepend is how often the own number is repeated, 0 to 16.
	MED           uint32
	HasMED        bool
	ASPathPrepend uint8
	// ExtendedCommunities are sorted, without repetition.
	ExtendedCommunities []ExtendedCommunity
	// LinkBandwidthPerEndpoint is what each local endpoint adds to the link bandwidth, in megabits per second; 0 announces none.
	LinkBandwidthPerEndpoint int32
}

// ASNsForNode returns the numbers for a node with these labels; an error says which label is missing or has no such number.
func (p *Peer) ASNsForNode(set map[string]string) (mine, peers uint32, err error) {
	mine, peers = p.MyASN, p.PeerASN
	if text, ok := set[p.MyASNLabel]; ok && p.MyASNLabel != "" {
		if mine, err = parseASNLabel(p.MyASNLabel, text); err != nil {
			return 0, 0, err
		}
	}
	if p.PeerASNLabel != "" {
		text, ok := set[p.PeerASNLabel]
		if !ok {
			return 0, 0, fmt.Errorf("the node has no label %q, which gives the router's AS number: set it", p.PeerASNLabel)
		}
		if peers, err = parseASNLabel(p.PeerASNLabel, text); err != nil {
			return 0, 0, err
		}
	}
	return mine, peers, nil
}

func parseASNLabel(label, text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("the node's label %q is %q, which is no AS number: write 1 to 4294967295", label, text)
	}
	return uint32(n), nil
}

// Node is what Build needs to know of a node.
type Node struct {
	Name   string
	Labels map[string]string
}

// Secret is what Build needs to know of a Secret of type kubernetes.io/basic-auth.
type Secret struct {
	Name string
	// Password is the entry "password"; Set says whether it is there.
	Password    string
	HasPassword bool
}

// PeerByName returns the peer of that name, or nil.
func (s *Snapshot) PeerByName(name string) *Peer {
	if s == nil {
		return nil
	}
	for _, p := range s.Peers {
		if p.Name == name {
			return p
		}
	}
	return nil
}

func (s *Snapshot) l2AdvertisementByName(name string) *L2Advertisement {
	if s == nil {
		return nil
	}
	for _, a := range s.L2Advertisements {
		if a.Name == name {
			return a
		}
	}
	return nil
}

func (s *Snapshot) bgpAdvertisementByName(name string) *BGPAdvertisement {
	if s == nil {
		return nil
	}
	for _, a := range s.BGPAdvertisements {
		if a.Name == name {
			return a
		}
	}
	return nil
}

// SelectorsMatch says whether any of the selectors matches the labels; none of them matches everything.
func SelectorsMatch(selectors []labels.Selector, set map[string]string) bool {
	for _, s := range selectors {
		if s.Matches(labels.Set(set)) {
			return true
		}
	}
	return len(selectors) == 0
}
