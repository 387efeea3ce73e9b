package plan

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// publishedLinksWithOneLink describes a node with one link.
func publishedLinksWithOneLink(name string, addresses ...string) *facts.PublishedLinks {
	l := facts.Link{Index: 1, Name: name}
	for _, a := range addresses {
		l.AddressesWithPrefixLength = append(l.AddressesWithPrefixLength, netip.MustParsePrefix(a))
	}
	return facts.NewPublishedLinks(facts.LinkSet{l}, nil)
}

func candidateNodesOfAddress(p Plan, a netip.Addr) []string {
	for _, b := range p.Bids.Slice() {
		if b.Address == a {
			return b.Candidates.Nodes
		}
	}
	return nil
}

// Node a has the subnet of the address on eth0. What nodes b and c say about their links decides
// whether they are candidates.
func TestOtherNodesAreCandidatesIfTheirLinksReachTheAddress(t *testing.T) {
	named := editL2Advertisement(func(ad *snapshot.L2Advertisement) { ad.Interfaces = []string{"eth0", "lan1"} })
	for name, c := range map[string]struct {
		edit func(*Inputs)
		b    *facts.PublishedLinks
		want []string
	}{
		"nothing is known of them":           {want: []string{"a", "b", "c"}},
		"a link of the subnet":               {b: publishedLinksWithOneLink("eth0", "192.0.2.11/24"), want: []string{"a", "b", "c"}},
		"a link of another subnet":           {b: publishedLinksWithOneLink("eth0", "203.0.113.11/24"), want: []string{"a", "c"}},
		"raw sockets are denied":             {b: &facts.PublishedLinks{RawSocketsDenied: true, HasIPv4: true, Links: publishedLinksWithOneLink("eth0", "192.0.2.11/24").Links}, want: []string{"a", "c"}},
		"the link of the subnet is down":     {b: facts.NewPublishedLinks(nil, facts.LinkSet{{Name: "eth0", IsDown: true, AddressesWithPrefixLength: []netip.Prefix{netip.MustParsePrefix("192.0.2.11/24")}}}), want: []string{"a", "c"}},
		"no room for all links":              {b: &facts.PublishedLinks{HasIPv4: true, IsIncomplete: true}, want: []string{"a", "b", "c"}},
		"the named link":                     {edit: named, b: publishedLinksWithOneLink("lan1", "203.0.113.11/24"), want: []string{"a", "b", "c"}},
		"no link of the name":                {edit: named, b: publishedLinksWithOneLink("eth7", "192.0.2.11/24"), want: []string{"a", "c"}},
		"no node has the subnet":             {edit: func(in *Inputs) { in.UsableLinks = in.UsableLinks[1:] }, b: publishedLinksWithOneLink("eth0", "203.0.113.11/24"), want: []string{"a", "b", "c"}},
		"only the other node has the subnet": {edit: func(in *Inputs) { in.UsableLinks = in.UsableLinks[1:] }, b: publishedLinksWithOneLink("eth0", "192.0.2.11/24"), want: []string{"b", "c"}},
		"only an excluded node has the subnet": {edit: func(in *Inputs) {
			in.UsableLinks = in.UsableLinks[1:]
			editNode("b", func(n *view.Node) { n.IsExcluded = true })(in)
		}, b: publishedLinksWithOneLink("eth0", "192.0.2.11/24"), want: []string{"c"}},
		"no IPv4 on the node": {edit: func(in *Inputs) {
			named(in)
			editNode("b", func(n *view.Node) { n.InternalAddresses = []netip.Addr{netip.MustParseAddr("2001:db8::11")} })(in)
		}, b: publishedLinksWithOneLink("eth0", "2001:db8::11/64"), want: []string{"a", "c"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := exampleInputs()
			if c.edit != nil {
				c.edit(&in)
			}
			if c.b != nil {
				in.PublishedLinksByNode = map[string]*facts.PublishedLinks{"b": c.b}
			}
			if got := candidateNodesOfAddress(buildPlan(in), serviceAddress); !slices.Equal(got, c.want) {
				t.Errorf("the candidates are %v, want %v", got, c.want)
			}
		})
	}
}

// The addresses of one Service are judged one by one.
func TestANodeWithoutIPv6HoldsIPv4Addresses(t *testing.T) {
	six := netip.MustParseAddr("2001:db8::1")
	in := exampleInputs()
	in.Snapshot.Pools[0].Ranges = append(in.Snapshot.Pools[0].Ranges, snapshot.Range{First: six, Last: six})
	editService(func(s *view.Service) { s.AssignedAddresses = []netip.Addr{serviceAddress, six} })(&in)
	in.PublishedLinksByNode = map[string]*facts.PublishedLinks{
		"b": publishedLinksWithOneLink("eth0", "192.0.2.11/24", "2001:db8::b/64"), "c": publishedLinksWithOneLink("eth0", "192.0.2.12/24"),
	}
	p := buildPlan(in)
	if four, sixth := candidateNodesOfAddress(p, serviceAddress), candidateNodesOfAddress(p, six); !slices.Equal(four, []string{"a", "b", "c"}) || !slices.Equal(sixth, []string{"b"}) {
		t.Errorf("the candidates of the IPv4 address are %v, those of the IPv6 address %v, want all and only b", four, sixth)
	}
	if v := p.Layer2Verdicts.Slice()[0]; !v.IsSelfCandidate || v.Reason != names.ReasonNotHolder {
		t.Errorf("the verdict is %+v, want this node to be a candidate for the IPv4 address", v)
	}
}

// Who learns of other links makes another plan, and equal candidates are shared.
func TestPublishedLinksOfOtherNodeChangeBids(t *testing.T) {
	p := NewPlanner(exampleInputs())
	p.Update()
	p.SetPublishedLinksOfNodes(map[string]*facts.PublishedLinks{"b": publishedLinksWithOneLink("eth0", "203.0.113.11/24")})
	if d := p.Update(); len(d.ChangedBids) != 1 || d.ChangedBids[0].IsCandidate("b") {
		t.Errorf("the changed bids are %+v, want one without node b", d.ChangedBids)
	}
	p.SetPublishedLinksOfNodes(map[string]*facts.PublishedLinks{"b": publishedLinksWithOneLink("eth0", "203.0.113.11/24")})
	if d := p.Update(); len(d.ChangedBids) != 0 {
		t.Errorf("the bids %+v changed though nothing new is known", d.ChangedBids)
	}
}

// The endpoints of a Service may have addresses of one family only.
func TestAddressNeedsEndpointsOfItsFamily(t *testing.T) {
	six := netip.MustParseAddr("2001:db8::1")
	for name, c := range map[string]struct {
		endpoints  view.Endpoints
		local      bool
		four, six_ []string
		routes     []string
	}{
		"endpoints of both families": {endpoints: view.Endpoints{ServingNodes: []string{"a", "b"}}, four: []string{"a", "b", "c"}, six_: []string{"a", "b", "c"}, routes: []string{"192.0.2.1/32", "2001:db8::1/128"}},
		"only IPv4 endpoints":        {endpoints: view.Endpoints{ServingNodes: []string{"a", "b"}, NoneServesIPv6: true, NodesWithoutIPv6: []string{"a", "b"}}, four: []string{"a", "b", "c"}, routes: []string{"192.0.2.1/32"}},
		"policy Local, each node has one family": {
			endpoints: view.Endpoints{ServingNodes: []string{"a", "b"}, ReadyNodes: []string{"a", "b"}, NodesWithoutIPv6: []string{"a"}, NodesWithoutIPv4: []string{"b"}},
			local:     true, four: []string{"a"}, six_: []string{"b"}, routes: []string{"192.0.2.1/32"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := exampleInputs()
			in.Snapshot.Pools[0].Ranges = append(in.Snapshot.Pools[0].Ranges, snapshot.Range{First: six, Last: six})
			in.UsableLinks[0].AddressesWithPrefixLength = append(in.UsableLinks[0].AddressesWithPrefixLength, netip.MustParsePrefix("2001:db8::a/64"))
			in.Snapshot.BGPAdvertisements = []*snapshot.BGPAdvertisement{{Name: "routes", Pools: []string{"p"}, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128}}
			in.Snapshot.Peers = []*snapshot.Peer{{Name: "tor", Address: netip.MustParseAddr("192.0.2.254"), MyASN: 64512, PeerASN: 65000, Port: 179, DualStack: true}}
			editService(func(s *view.Service) {
				s.AssignedAddresses, s.HasLocalTrafficPolicy = []netip.Addr{serviceAddress, six}, c.local
			})(&in)
			c.endpoints.Service, c.endpoints.AnyServing = webServiceKey, true
			in.Endpoints[webServiceKey] = c.endpoints
			p := buildPlan(in)
			if four, sixth := candidateNodesOfAddress(p, serviceAddress), candidateNodesOfAddress(p, six); !slices.Equal(four, c.four) || !slices.Equal(sixth, c.six_) {
				t.Errorf("the candidates are %v and %v, want %v and %v", four, sixth, c.four, c.six_)
			}
			if got := prefixesOf(p.Routes); !slices.Equal(got, c.routes) {
				t.Errorf("the routes are %v, want %v", got, c.routes)
			}
		})
	}
}

func prefixesOf(routes []*intent.Route) []string {
	var out []string
	for _, r := range routes {
		out = append(out, r.Prefix.String())
	}
	return out
}
