// Package nodefacts is the format in which a node says what preflight checks need to know of it:
// its links, settings of its kernel, and what a speaker would be allowed to do. A program of
// Gantry's image serves it as JSON, and kubectl gantry reads it. It only declares values.
package nodefacts

import (
	"net/netip"
	"time"
)

const (
	// Subcommand is the argument with which the speaker only serves the facts.
	Subcommand = "preflight-facts"
	// BesideSpeakerArgument follows Subcommand where a speaker is installed: the port of the gossip
	// is its own, also while it restarts.
	BesideSpeakerArgument = "beside-speaker"
	// PagePort is the port of the pages. They are served on 127.0.0.1 only.
	PagePort = 7476
	// FactsPagePath is the path of the page with the Facts of the node.
	FactsPagePath = "/facts"
	// PathsPagePath is the path of the page with a Path to each address of the parameters
	// PathsParameter.
	PathsPagePath  = "/paths"
	PathsParameter = "to"
)

// The ports that the programs of Gantry use on a node.
const (
	GossipPort            = 7946
	BGPPort               = 179
	BFDPort               = 3784
	ControllerMetricsPort = 7472
	SpeakerMetricsPort    = 7473
	SpeakerHealthPort     = 7474
	SpeakerRoutesPort     = 7475
)

// Facts are what one node says.
type Facts struct {
	Node string `json:"node"`
	// Time is that of the node's clock when it answered.
	Time  time.Time `json:"time"`
	Links []Link    `json:"links,omitempty"`
	// Proxy is kube-proxy.
	Proxy ServiceProxy `json:"proxy"`
	// RawSockets, TCPMD5, PacketRules and ForwardingRules are what a speaker with the same rights
	// could do. The last ones are the packet rules that keep connections.
	RawSockets      Attempt `json:"rawSockets"`
	TCPMD5          Attempt `json:"tcpMD5"`
	PacketRules     Attempt `json:"packetRules"`
	ForwardingRules Attempt `json:"forwardingRules"`
	// UsedPorts are those of Gantry's ports on which another program already waits.
	UsedPorts []UsedPort `json:"usedPorts,omitempty"`
	// DoesNotForward is set if the kernel forwards no IPv4 packets.
	DoesNotForward bool `json:"doesNotForward,omitempty"`
	// HasIPv6 is set if the kernel has IPv6, and it is not switched off for all links.
	HasIPv6 bool `json:"hasIPv6,omitempty"`
}

// Link is a network interface of the node.
type Link struct {
	Name string `json:"name"`
	MAC  string `json:"mac,omitempty"`
	// MTU is in bytes.
	MTU int `json:"mtu"`
	// IsExcluded is set if the speaker uses no link of this name by default.
	IsExcluded bool `json:"isExcluded,omitempty"`
	HasCarrier bool `json:"hasCarrier,omitempty"`
	// Subnets are the addresses of the link with the lengths of their prefixes, without link-local
	// ones.
	Subnets []netip.Prefix `json:"subnets,omitempty"`
	// ReversePathFilter, ARPIgnore and ARPAnnounce are the values in effect of the settings
	// rp_filter, arp_ignore and arp_announce: the larger one of the link's and of all links'.
	ReversePathFilter int `json:"rpFilter"`
	ARPIgnore         int `json:"arpIgnore"`
	ARPAnnounce       int `json:"arpAnnounce"`
	// HasProxyARP is set if the kernel answers on the link for addresses of other hosts.
	HasProxyARP bool `json:"hasProxyARP,omitempty"`
	// HasIPv6 is set if the link may have IPv6 addresses.
	HasIPv6 bool `json:"hasIPv6,omitempty"`
}

// ServiceProxy is what kube-proxy on the node says. Another program that does its work says
// nothing.
type ServiceProxy struct {
	// Mode is iptables, ipvs or nftables; empty if it is not known.
	Mode string `json:"mode,omitempty"`
	// Health is whether its health check answers.
	Health Attempt `json:"health"`
}

// Attempt is whether something succeeded.
type Attempt struct {
	Succeeded bool `json:"succeeded"`
	// Failure says why not.
	Failure string `json:"failure,omitempty"`
}

// NewAttempt returns the Attempt with this outcome.
func NewAttempt(err error) Attempt {
	if err != nil {
		return Attempt{Failure: err.Error()}
	}
	return Attempt{Succeeded: true}
}

// UsedPort is a port on which a program waits.
type UsedPort struct {
	// Protocol is TCP or UDP.
	Protocol string `json:"protocol"`
	Port     int    `json:"port"`
}

// Path says whether another node answered on GossipPort.
type Path struct {
	To  netip.Addr `json:"to"`
	TCP Attempt    `json:"tcp"`
	UDP Attempt    `json:"udp"`
}
