package forwarding

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/steering"
)

var (
	v4, v6 = netip.MustParseAddr("192.0.2.201"), netip.MustParseAddr("2001:db8::201")
	webKey = view.ObjectKey{Namespace: "default", Name: "web"}
	// nodes are the nodes a to d, with their addresses.
	nodes = map[string][]netip.Addr{
		"a": {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, "b": {netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")},
		"c": {netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::3")}, "d": {netip.MustParseAddr("192.0.2.4"), netip.MustParseAddr("2001:db8::4")},
	}
	lan   = facts.Link{Index: 2, AddressesWithPrefixLength: []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24"), netip.MustParsePrefix("2001:db8::9/64")}}
	other = facts.Link{Index: 3, AddressesWithPrefixLength: []netip.Prefix{netip.MustParsePrefix("198.51.100.9/24")}}
)

// inputs are those of a node. order are the holder and the former holders of an address, newest
// first.
func inputs(self, order string) Inputs {
	names := strings.Fields(order)
	return Inputs{
		SelfNode: self, Holders: []elect.Holder{{Address: v4, Node: names[0], Epoch: 9, FormerHolders: names[1:]}},
		Services:        map[view.ObjectKey]*steering.Service{webKey: {Addresses: []netip.Addr{v4, v6}, Traffic: &view.ServiceTraffic{}}},
		AddressesByNode: nodes, IsDead: func(string) bool { return false },
		LinksOf: func(netip.Addr) facts.LinkSet { return facts.LinkSet{lan} },
	}
}

// nodeAt returns the node with an address; "-" if it is not valid.
func nodeAt(a netip.Addr) string {
	for n, all := range nodes {
		if slices.Contains(all, a) {
			return n
		}
	}
	return "-"
}

func TestDecideForwardsDownwards(t *testing.T) {
	for name, tc := range map[string]struct {
		self, order string
		edit        func(*Inputs)
		// where packets of clients go, and those of other nodes
		want string
	}{
		"the holder asks the one before it, and drops what others send":   {"c", "c b a", nil, "b -"},
		"a former holder asks downwards for others":                       {"b", "c b a", nil, "c a"},
		"the first holder asks nobody for others":                         {"a", "c b a", nil, "c -"},
		"a node that may take the address is ready":                       {"d", "c b a", nil, "c -"},
		"back and forth: the holder asks the one between":                 {"a", "a b", nil, "b -"},
		"back and forth: the one between does not ask the holder":         {"b", "a b", nil, "a -"},
		"nobody held it before":                                           {"a", "a", nil, "- -"},
		"a holder that leaves forwards for the next one":                  {"b", "b a", func(in *Inputs) { in.IsLeaving = true }, "a a"},
		"each former holder twice: the oldest one asks nobody for others": {"b", "c a b a b", nil, "c -"},
		"a dead former holder is left out":                                {"c", "c b a", func(in *Inputs) { in.IsDead = func(n string) bool { return n == "b" } }, "a -"},
		"a dead holder is not asked":                                      {"b", "c b a", func(in *Inputs) { in.IsDead = func(n string) bool { return n == "c" } }, "a a"},
		"a node that is gone is left out":                                 {"d", "x c", nil, "c -"},
		"the former holder is on no common link":                          {"c", "c b", func(in *Inputs) { in.LinksOf = func(netip.Addr) facts.LinkSet { return facts.LinkSet{other} } }, "- -"},
		"with IPv6":                                                       {"c", "c b a", func(in *Inputs) { in.Holders[0].Address = v6 }, "b -"},
		"policy Local: the former holder has a Pod":                       {"c", "c b a", func(in *Inputs) { in.Services[webKey] = localService("b") }, "b -"},
		"policy Local: the former holder has no Pod any more":             {"c", "c b a", func(in *Inputs) { in.Services[webKey] = localService("a") }, "a -"},
		"a Service without addresses in the holders' list changes little": {"c", "c b", func(in *Inputs) { in.Services[view.ObjectKey{Name: "new"}] = &steering.Service{} }, "b -"},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputs(tc.self, tc.order)
			if tc.edit != nil {
				tc.edit(&in)
			}
			all := Decide(in).Addresses
			if len(all) != 1 {
				t.Fatalf("forwarded are %+v, want one address", all)
			}
			f := all[0]
			if got := nodeAt(f.NextHop) + " " + nodeAt(f.NextHopOfMembers); got != tc.want {
				t.Errorf("packets go to %s, want %s", got, tc.want)
			}
			if want := tc.self != in.Holders[0].Node; f.IsStandby != want {
				t.Errorf("it is on standby: %t, want %t", f.IsStandby, want)
			}
			if want := in.LinksOf(f.Address)[0].Index; f.Address != in.Holders[0].Address || f.LinkIndex != want {
				t.Errorf("forwarded is %+v, want %s on link %d", f, in.Holders[0].Address, want)
			}
		})
	}
}

func TestOnlyTheOldestFormerHolderThatLivesIsTheEndOfTheChain(t *testing.T) {
	for name, tc := range map[string]struct {
		self string
		edit func(*Inputs)
		want bool
	}{
		"the holder is not: what comes from others went astray": {"c", nil, false},
		"a former holder with an older one is not":              {"b", nil, false},
		"the oldest former holder is":                           {"a", nil, true},
		"a node that never held the address is not":             {"d", nil, false},
		"the older one is listed twice":                         {"b", func(in *Inputs) { in.Holders[0].FormerHolders = []string{"a", "b", "a"} }, true},
		"the older one is dead":                                 {"b", func(in *Inputs) { in.IsDead = func(n string) bool { return n == "a" } }, true},
		"the older one is not known yet":                        {"b", func(in *Inputs) { in.AddressesByNode = nil }, false},
		"the holder leaves, and nobody held it before":          {"c", func(in *Inputs) { in.IsLeaving, in.Holders[0].FormerHolders = true, nil }, true},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputs(tc.self, "c b a")
			if tc.edit != nil {
				tc.edit(&in)
			}
			if got := Decide(in).Addresses[0].IsEndOfChain; got != tc.want {
				t.Errorf("the node is the end of the chain: %t, want %t", got, tc.want)
			}
		})
	}
}

// localService has a Pod on one node and the traffic policy Local.
func localService(node string) *steering.Service {
	return &steering.Service{
		Addresses: []netip.Addr{v4}, HasLocalPolicy: true,
		Slices: []view.EndpointSlice{{WithAddresses: &view.SliceEndpoints{Endpoints: []view.SliceEndpoint{{Node: node}}}}},
	}
}

func TestDecideLeavesOutWhatKubeProxyDoesNotServe(t *testing.T) {
	in := inputs("c", "c b a")
	in.Services[webKey].Traffic = nil
	if got := Decide(in).Addresses; len(got) != 0 {
		t.Errorf("forwarded are %+v, want none", got)
	}
}

func TestNoPacketGoesRoundInCircles(t *testing.T) {
	for _, order := range []string{"a", "a b", "b a", "c b a", "a c b", "d c b a", "b d"} {
		for start := range nodes {
			at, isFromMember := start, false
			var path []string
			for at != "-" && len(path) <= 2*len(nodes) {
				path = append(path, at)
				f := Decide(inputs(at, order)).Addresses[0]
				if isFromMember {
					at = nodeAt(f.NextHopOfMembers)
				} else {
					at = nodeAt(f.NextHop)
				}
				isFromMember = true
			}
			if seen := slices.Clone(path); len(path) > len(nodes) || len(slices.Compact(slices.Sorted(slices.Values(seen)))) != len(path) {
				t.Errorf("with the holders %s a packet that nobody knows goes %v", order, path)
			}
		}
	}
}

func TestDecideListsTheEthernetAddressesOfOtherNodes(t *testing.T) {
	in := inputs("c", "c b a")
	in.MACsByNode = map[string][]facts.MAC{"a": {{2, 0, 0, 0, 0, 1}}, "b": {{2, 0, 0, 0, 0, 2}, {2, 0, 0, 0, 0, 1}}, "c": {{2, 0, 0, 0, 0, 3}}}
	want := intent.Forwarding{Addresses: Decide(in).Addresses, MemberMACs: [][6]byte{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}}
	if got := Decide(in); !got.IsSameAs(want) {
		t.Errorf("the Ethernet addresses are %v, want %v", got.MemberMACs, want.MemberMACs)
	}
}
