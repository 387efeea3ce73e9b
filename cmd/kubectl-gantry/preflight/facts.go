// Package preflight checks whether a cluster and its nodes fulfil what Gantry needs: before an
// installation, and at any time after it. Each check is a function of the Facts, which other files
// of the package read from objects of the cluster and, if asked to, from Pods that they create and
// delete again.
package preflight

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gantry-lb/gantry/internal/nodefacts"
)

// Facts are all that the checks look at.
type Facts struct {
	// IsInstalled is set if Gantry's speakers are in the cluster.
	IsInstalled bool
	// Namespace is the one of Gantry. PodSecurityLevel is the level that it enforces; empty if it
	// enforces none. HasNamespace is set if it exists.
	Namespace        string
	HasNamespace     bool
	PodSecurityLevel string
	Nodes            []Node
	// Paths are the attempts of nodes to reach each other on the port of the gossip.
	Paths []PathBetweenNodes
	// IsOnePartOfPathsChecked is set if there are too many nodes to check each pair.
	IsOnePartOfPathsChecked bool
	Rivals                  []Rival
	// StatusWriters are other programs that gave addresses to Services of Gantry.
	StatusWriters []StatusWriter
	Proxy         ProxyConfiguration
	Needs         Needs
}

// Node is what is known of one node.
type Node struct {
	Name string
	// Asked are the facts that the node itself says; nil if it was not asked.
	Asked *nodefacts.Facts
	// NotAsked says why it could not be asked, although it should; empty if it was.
	NotAsked string
	// ClockAhead is how far its clock is ahead of the API server's, by whichever source; nil if
	// that is not known.
	ClockAhead *time.Duration
	// Speaker is what its speaker reports; nil if there is none.
	Speaker *Speaker
}

// Speaker is what a speaker reports in its SpeakerStatus.
type Speaker struct {
	// IsReady is set if the speaker lives.
	IsReady bool
	// Unreachable are nodes with whose speakers it exchanges no gossip. GossipText says why.
	Unreachable []string
	GossipText  string
	// Layer2Text, FitText, SteeringText and ForwardingText say why the node cannot answer ARP and
	// NDP, is served worse than others, cannot steer connections, or cannot keep them; empty if all
	// is well.
	Layer2Text, FitText, SteeringText, ForwardingText string
	UsableLinks                                       []string
	Links                                             []SpeakerLink
}

// SpeakerLink is a link as a speaker reports it.
type SpeakerLink struct {
	Name, Reason string
	HasIPv6      bool
	Subnets      []netip.Prefix
}

// PathBetweenNodes is one direction between two nodes.
type PathBetweenNodes struct {
	From, To string
	TCP, UDP nodefacts.Attempt
}

// Rival is another program that serves Services of type LoadBalancer, or writes the same pools.
type Rival struct {
	// Program is its name, such as MetalLB.
	Program string
	// Workload names its Deployment or DaemonSet, as kubectl takes it: kind/name.
	Workload, Namespace string
	// Mend is a command, or what to do, so that it serves them no more.
	Mend string
}

// StatusWriter is another program that gave addresses to Services that Gantry would serve.
type StatusWriter struct {
	// Program is its name in the records of the API server, with the product if that is known.
	Program string
	// Services are namespaces and names.
	Services []string
}

// ProxyConfiguration is what the configuration of kube-proxy says.
type ProxyConfiguration struct {
	// Mode is empty if it is not known.
	Mode         string
	HasStrictARP bool
}

// Needs are the parts of Gantry that are used. Before an installation nothing is known, and all
// that is not used by default is off.
type Needs struct {
	BGP, BFD, IPv6, Passwords, AroundDeadNodes, KeepConnections bool
}

// usableLinks returns the links of a node on which addresses may be announced, as far as the node
// knows before a speaker runs.
func (n *Node) usableLinks() []nodefacts.Link {
	if n.Asked == nil {
		return nil
	}
	var out []nodefacts.Link
	for _, l := range n.Asked.Links {
		if !l.IsExcluded && len(l.Subnets) > 0 {
			out = append(out, l)
		}
	}
	return out
}

// subnetsByLink returns the subnets of each usable link of the node, from the node itself or from
// its speaker.
func (n *Node) subnetsByLink() map[string][]netip.Prefix {
	out := map[string][]netip.Prefix{}
	for _, l := range n.usableLinks() {
		out[l.Name] = l.Subnets
	}
	if n.Asked == nil && n.Speaker != nil {
		for _, l := range n.Speaker.Links {
			if slices.Contains(n.Speaker.UsableLinks, l.Name) && len(l.Subnets) > 0 {
				out[l.Name] = l.Subnets
			}
		}
	}
	return out
}

// isKnown reports whether anything is known of the node's links.
func (n *Node) isKnown() bool { return n.Asked != nil || n.Speaker != nil && n.Speaker.IsReady }

// asked returns the nodes that said something themselves.
func (f *Facts) asked() []*Node {
	var out []*Node
	for i := range f.Nodes {
		if f.Nodes[i].Asked != nil {
			out = append(out, &f.Nodes[i])
		}
	}
	return out
}

// joinNames lists names, of nodes for example, the first ones in full.
func joinNames(all []string) string {
	const limit = 5
	all = slices.Compact(slices.Sorted(slices.Values(all)))
	if len(all) <= limit {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:limit], ", "), len(all)-limit)
}
