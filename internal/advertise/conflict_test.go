package advertise

import (
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

func TestConflictingBGPAdsOfAService(t *testing.T) {
	host := func(name string, edit func(*snapshot.BGPAdvertisement)) *snapshot.BGPAdvertisement {
		ad := &snapshot.BGPAdvertisement{Name: name, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128}
		if edit != nil {
			edit(ad)
		}
		return ad
	}
	prefer := func(n uint32) func(*snapshot.BGPAdvertisement) {
		return func(ad *snapshot.BGPAdvertisement) { ad.LocalPref = n }
	}
	large := func(from int) func(*snapshot.BGPAdvertisement) {
		return func(ad *snapshot.BGPAdvertisement) {
			for i := range 200 {
				ad.Communities = append(ad.Communities, snapshot.Community{Large: true, FirstPart: 1, SecondPart: 2, ThirdPartOfLarge: uint32(from + i)})
			}
		}
	}
	rack := func(name string) []labels.Selector {
		return []labels.Selector{labels.SelectorFromSet(labels.Set{"rack": name})}
	}
	nodes := []snapshot.NodeLabels{{Name: "n1", Labels: map[string]string{"rack": "1"}}, {Name: "n2", Labels: map[string]string{"rack": "2"}}}
	addresses := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	pools := []*snapshot.Pool{{Name: "p", Ranges: []snapshot.Range{{First: addresses[0], Last: addresses[0]}}}}
	peers := []*snapshot.Peer{{Name: "x", Address: addresses[0]}, {Name: "y", Address: addresses[0]}}
	for name, c := range map[string]struct {
		ads  []*snapshot.BGPAdvertisement
		want names.Reason
		text string
	}{
		"one":                             {ads: []*snapshot.BGPAdvertisement{host("a", prefer(7))}},
		"the same preference":             {ads: []*snapshot.BGPAdvertisement{host("a", prefer(7)), host("b", prefer(7))}},
		"two preferences":                 {ads: []*snapshot.BGPAdvertisement{host("a", prefer(7)), host("b", prefer(8))}, want: names.ReasonConflictingAdvertisements, text: `"a" and "b" both select the Service, with a localPref of 7 and of 8`},
		"two preferences for two lengths": {ads: []*snapshot.BGPAdvertisement{host("a", prefer(7)), host("b", func(ad *snapshot.BGPAdvertisement) { ad.LocalPref, ad.PrefixLengthIPv4 = 8, 24 })}},
		"two preferences for two peers": {ads: []*snapshot.BGPAdvertisement{
			host("a", func(ad *snapshot.BGPAdvertisement) { ad.LocalPref, ad.Peers = 7, []string{"x"} }), host("b", func(ad *snapshot.BGPAdvertisement) { ad.LocalPref, ad.Peers = 8, []string{"y"} }),
		}},
		"two preferences on two nodes": {ads: []*snapshot.BGPAdvertisement{
			host("a", func(ad *snapshot.BGPAdvertisement) { ad.LocalPref, ad.NodeSelectors = 7, rack("1") }), host("b", func(ad *snapshot.BGPAdvertisement) { ad.LocalPref, ad.NodeSelectors = 8, rack("2") }),
		}},
		"many communities":           {ads: []*snapshot.BGPAdvertisement{host("a", large(0)), host("b", large(200))}, want: names.ReasonTooManyCommunities, text: `"a" among them`},
		"the same communities twice": {ads: []*snapshot.BGPAdvertisement{host("a", large(0)), host("b", large(0))}},
	} {
		for _, ad := range c.ads {
			ad.Pools = []string{"p"}
		}
		s := &snapshot.Snapshot{Pools: pools, Peers: peers, BGPAdvertisements: c.ads}
		got := ExplainUnannouncedService(s, &Service{Labels: labels.Set{}, Addresses: addresses}, nodes)
		if got.Reason != c.want || !strings.Contains(got.Text, c.text) {
			t.Errorf("%s: %s, %q; want %s with %q", name, got.Reason, got.Text, c.want, c.text)
		}
	}
}
