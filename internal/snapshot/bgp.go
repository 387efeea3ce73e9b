package snapshot

import (
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/internal/ipfamily"
)

// Peer is a parsed BGPPeer with all its references resolved. One value serves every node.
type Peer struct {
	Name string
	// FirstProblem is why no node may peer; nil when nodes may. Only Name and NodeSelectors of a
	// faulty Peer are valid.
	FirstProblem *Problem
	// OlderPeersWithSameSession are the names of older peers with the same session as far as the
	// router can see. On nodes that have one of them this peer does not connect.
	OlderPeersWithSameSession []string
	// MyASN is the node's AS number. LocalASN is the number that the router sees; 0 means MyASN.
	MyASN, LocalASN uint32
	// PeerASN is the router's AS number; 0 when DynamicASN says which numbers are accepted.
	PeerASN    uint32
	DynamicASN DynamicASN
	// Address of the router; the zero Addr for an unnumbered peer on Interface.
	Address   netip.Addr
	Interface string
	// SourceAddress is the node's address for the session; the zero Addr lets the kernel choose.
	SourceAddress netip.Addr
	// Port of the router, 1 to 65535.
	Port uint16
	// HoldTime is 0 (never) or 3 s to 65535 s, in whole seconds. KeepaliveInterval is at most
	// HoldTime. ConnectInterval is the time between attempts to connect, 0 for the default.
	HoldTime, KeepaliveInterval, ConnectInterval time.Duration
	// RouterID is the zero Addr when the node chooses it.
	RouterID netip.Addr
	// NodeSelectors: a node matches when one of them does, or when there is none.
	NodeSelectors []labels.Selector
	// Password of TCP MD5; empty for none. It is never logged.
	Password string
	// BFD is nil without BFD.
	BFD *BFDProfile
	// VRF is the link to which the session is bound; empty for none.
	VRF string
	// DefaultGatewayFamily is the family of the node's default gateway, which is the router in
	// place of Address; 0 when Address is.
	DefaultGatewayFamily ipfamily.Family
	// NodeLabelOfMyASN is the key of a node label whose value overrides MyASN. NodeLabelOfPeerASN
	// is the key of one whose value is the router's AS number. Both may be empty.
	NodeLabelOfMyASN, NodeLabelOfPeerASN string
	// MaxTTLSecurityHops is the largest number of hops to the router (RFC 5082), 1 to 254; 0 turns
	// the check off.
	MaxTTLSecurityHops uint8
	// Passive peers wait for the router to connect.
	Passive bool
	// NextHopIPv4 and NextHopIPv6 are the next hops of the routes: an address with its full length,
	// or a network with an address of the node. They are invalid if the speaker chooses.
	NextHopIPv4, NextHopIPv6 netip.Prefix
	// DrainDelay is how long the routes of a drained node, or of terminating endpoints, stay. It
	// counts if HasDrainDelay is set.
	DrainDelay    time.Duration
	HasDrainDelay bool
	// RestartTime is how long routers keep the routes while the speaker restarts; 0 for the
	// default.
	RestartTime time.Duration
	// BFDStrict withholds the routes while the BFD session is not Up.
	BFDStrict bool

	GracefulRestart, MultiHop, DisableMultiprotocol, DualStack bool
}

// DynamicASN says which AS numbers the router may have.
type DynamicASN uint8

// The kinds of DynamicASN.
const (
	FixedASN    DynamicASN = iota // only PeerASN
	InternalASN                   // only MyASN
	ExternalASN                   // any number but MyASN
)

// BFDProfile is a parsed BFDProfile, with defaults filled in.
type BFDProfile struct {
	Name                              string
	ReceiveInterval, TransmitInterval time.Duration // 10 ms to 60 s
	DetectMultiplier                  uint8         // 2 to 255
	EchoInterval                      time.Duration // 10 ms to 60 s
	EchoMode, PassiveMode             bool
	MinimumMultihopTTL                uint8 // 1 to 254, for multihop sessions
}

// BGPAdvertisement is a parsed BGPAdvertisement.
type BGPAdvertisement struct {
	Name string
	// Pools are the names of the pools that it covers, sorted.
	Pools []string
	// PrefixLengthIPv4 (1 to 32) and PrefixLengthIPv6 (1 to 128) are the lengths of the announced
	// prefixes.
	PrefixLengthIPv4, PrefixLengthIPv6 int
	// LocalPref is 0 when the router chooses.
	LocalPref uint32
	// Communities are sorted, without repetition.
	Communities []Community
	// NodeSelectors: a node matches when one of them does, or when there is none.
	NodeSelectors []labels.Selector
	// ServiceSelectors: a Service matches when one of them does, or when there is none.
	ServiceSelectors []labels.Selector
	// Peers are the names of BGPPeers, sorted; empty means all.
	Peers []string
	// MED is sent if HasMED is set.
	MED    uint32
	HasMED bool
	// ASPathPrepend is how many more times the AS path repeats our number, 0 to 16.
	ASPathPrepend uint8
	// ExtendedCommunities are sorted, without repetition.
	ExtendedCommunities []ExtendedCommunity
	// LinkBandwidthPerEndpoint is what each local endpoint adds to the link bandwidth, in megabits
	// per second; 0 announces none.
	LinkBandwidthPerEndpoint int32
}

// SelectsNode says whether nodes with these labels peer.
func (p *Peer) SelectsNode(set map[string]string) bool {
	return AnySelectorMatches(p.NodeSelectors, labels.Set(set))
}

// HasSameSettings says whether a session of both is the same, whichever nodes they select.
func (p *Peer) HasSameSettings(o *Peer) bool {
	x, y := *p, *o
	x.NodeSelectors, y.NodeSelectors = nil, nil
	return reflect.DeepEqual(x, y)
}

// CarriesFamily says whether a session with the peer carries routes of the family.
func (p *Peer) CarriesFamily(f ipfamily.Family) bool {
	switch {
	case p.DualStack:
		return true
	case p.DefaultGatewayFamily != 0:
		return p.DefaultGatewayFamily == f
	}
	return p.Interface != "" || p.Address.IsValid() && ipfamily.FamilyOf(p.Address) == f
}

// ASNsForNode returns our and the router's AS number for a node with these labels. The error names
// the label that is missing or invalid.
func (p *Peer) ASNsForNode(set map[string]string) (mine, peers uint32, err error) {
	mine, peers = p.MyASN, p.PeerASN
	if text, ok := set[p.NodeLabelOfMyASN]; ok && p.NodeLabelOfMyASN != "" {
		if mine, err = parseASNLabel(p.NodeLabelOfMyASN, text); err != nil {
			return 0, 0, err
		}
	}
	if p.NodeLabelOfPeerASN != "" {
		text, ok := set[p.NodeLabelOfPeerASN]
		if !ok {
			return 0, 0, fmt.Errorf("the node has no label %q, which gives the router's AS number: set it", p.NodeLabelOfPeerASN)
		}
		if peers, err = parseASNLabel(p.NodeLabelOfPeerASN, text); err != nil {
			return 0, 0, err
		}
	}
	return mine, peers, nil
}

func parseASNLabel(label, text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("the node's label %q is %q, which is not an AS number: write 1 to 4294967295", label, text)
	}
	return uint32(n), nil
}

// NodeLabels is what Build needs to know of a node.
type NodeLabels struct {
	Name   string
	Labels map[string]string
}

// BasicAuthSecret is what Build needs to know of a Secret of type kubernetes.io/basic-auth.
type BasicAuthSecret struct {
	Name string
	// Password is the entry "password"; HasPassword says whether the entry exists.
	Password    string
	HasPassword bool
	// IsForbidden says that the program may not read the Secret.
	IsForbidden bool
}

// PeerByName returns the peer with that name, or nil.
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

// AnySelectorMatches says whether one of the selectors matches the labels. An empty list matches
// everything.
func AnySelectorMatches(selectors []labels.Selector, set labels.Labels) bool {
	for _, s := range selectors {
		if s.Matches(set) {
			return true
		}
	}
	return len(selectors) == 0
}
