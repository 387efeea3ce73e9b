package plan

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// Each address is announced by the advertisements that cover its own pool.
func TestAddressesOfTwoPoolsAreAnnouncedByTheirOwnAds(t *testing.T) {
	six := netip.MustParseAddr("fd00:1::1")
	in := inputsWithPeers()
	in.Snapshot.Pools = append(in.Snapshot.Pools, &snapshot.Pool{Name: "six", Ranges: []snapshot.Range{{First: six, Last: six}}})
	in.Snapshot.Peers[0].DualStack = true
	editService(func(s *view.Service) { s.AssignedAddresses = append(s.AssignedAddresses, six) })(&in)

	// The advertisements of both protocols cover only the first pool.
	p := buildPlan(in)
	if p.Bids.Len() != 1 || p.Bids.Slice()[0].Address != serviceAddress || p.Layer2Verdicts.Slice()[0].Reason != names.ReasonNotHolder {
		t.Errorf("the bids are %+v, the verdict %+v; want one bid for %s", p.Bids, p.Layer2Verdicts.Slice()[0], serviceAddress)
	}
	if len(p.Routes) != 1 || p.Routes[0].Prefix.Addr() != serviceAddress || p.BGPVerdicts.Slice()[0].Reason != names.ReasonAnnounced {
		t.Errorf("the routes are %+v, the verdict %+v; want one for %s", p.Routes, p.BGPVerdicts.Slice()[0], serviceAddress)
	}
	if got := p.BGPVerdicts.Slice()[0].Addresses; !slices.Equal(got, []netip.Addr{serviceAddress}) {
		t.Errorf("the verdict says that %v are announced, want only %s", got, serviceAddress)
	}
	// Now the second address is announced too, by its own advertisement.
	in.Snapshot.L2Advertisements = append(in.Snapshot.L2Advertisements, &snapshot.L2Advertisement{Name: "six", Pools: []string{"six"}, Interfaces: []string{"eth1"}})
	in.Snapshot.BGPAdvertisements = append(in.Snapshot.BGPAdvertisements, &snapshot.BGPAdvertisement{Name: "six", Pools: []string{"six"}, PrefixLengthIPv4: 32, PrefixLengthIPv6: 64})
	p = buildPlan(in)
	if p.Bids.Len() != 2 || !slices.Equal(p.Bids.Slice()[0].OwnLinkIndexes, []int{2}) || !slices.Equal(p.Bids.Slice()[1].OwnLinkIndexes, []int{3}) {
		t.Errorf("the bids are %+v; want one for each address, on the links that its advertisement names", p.Bids)
	}
	if got := p.BGPVerdicts.Slice()[0].Addresses; len(got) != 2 {
		t.Errorf("the verdict says that %v are announced, want both addresses", got)
	}
	if len(p.Routes) != 2 || p.Routes[0].Prefix != netip.PrefixFrom(serviceAddress, 32) || p.Routes[1].Prefix != netip.MustParsePrefix("fd00:1::/64") {
		t.Errorf("the routes are %+v; want one for each address, of the length that its advertisement says", p.Routes)
	}
}

// One node answers for all addresses of a Service. A node that is selected only for one of them is
// no candidate, neither for itself nor for others.
func TestNodeNeedsAnAdvertisementOfEachAddress(t *testing.T) {
	six := netip.MustParseAddr("fd00:1::1")
	for self, want := range map[string]names.Reason{"a": names.ReasonNoAdvertisement, "b": names.ReasonNotHolder} {
		in := exampleInputs()
		in.SelfNode = self
		in.Snapshot.Pools = append(in.Snapshot.Pools, &snapshot.Pool{Name: "six", Ranges: []snapshot.Range{{First: six, Last: six}}})
		in.Snapshot.L2Advertisements = append(in.Snapshot.L2Advertisements, &snapshot.L2Advertisement{Name: "six", Pools: []string{"six"}, NodeSelectors: selectNodeByName("b")})
		editService(func(s *view.Service) { s.AssignedAddresses = append(s.AssignedAddresses, six) })(&in)
		p := buildPlan(in)
		if got := p.Layer2Verdicts.Slice()[0].Reason; got != want {
			t.Errorf("node %s: the reason is %s, want %s", self, got, want)
		}
		for b := range p.Bids.All() {
			if !slices.Equal(b.Candidates.Nodes, []string{"b"}) {
				t.Errorf("node %s: the candidates for %s are %v, want only b, which is selected for both", self, b.Address, b.Candidates.Nodes)
			}
		}
		if p.Bids.Len() != 2 {
			t.Errorf("node %s: there are %d bids, want one for each address", self, p.Bids.Len())
		}
	}
}

// The Service keeps the address, so packets to it have to arrive.
func TestAddressRemovedFromItsPoolIsStillAnnounced(t *testing.T) {
	for name, edit := range map[string]func(*Inputs){
		"excluded by now": func(in *Inputs) { in.Snapshot.Pools[0].ExcludedRanges = in.Snapshot.Pools[0].Ranges },
		"no longer in its pool": func(in *Inputs) {
			in.Snapshot.Pools[0].Ranges = nil
			editService(func(s *view.Service) { s.RecordedPool = "p" })(in)
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputsWithPeers()
			edit(&in)
			if p := buildPlan(in); p.Bids.Len() != 1 || len(p.Routes) != 1 {
				t.Errorf("it is not announced any more: %+v, %+v", p.Layer2Verdicts, p.BGPVerdicts)
			}
		})
	}
}
