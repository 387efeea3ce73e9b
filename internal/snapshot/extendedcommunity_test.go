package snapshot

import (
	"encoding/hex"
	"reflect"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
)

func TestParseExtendedCommunity(t *testing.T) {
	// the examples of FRR's and BIRD's manuals, as they are on the wire
	for text, want := range map[string]string{
		"rt:64512:100": "0002fc0000000064", "rt:65535:4294967295": "0002ffffffffffff", "soo:64512:1": "0003fc0000000001",
		"rt:192.0.2.1:7": "0102c00002010007", "rt:4200000000:9": "0202fa56ea000009", "0x4004fC0047c35000": "4004fc0047c35000",
	} {
		if c, err := ParseExtendedCommunity(text); err != nil || hex.EncodeToString(c[:]) != want {
			t.Errorf("%q is %x (%v), want %s", text, c, err, want)
		}
	}
	for _, text := range []string{"", "rt", "rt:1", "rt:1:2:3", "xx:1:2", "rt:-1:2", "rt:4200000000:65536", "rt:192.0.2.1:65536", "rt:1:4294967296", "rt:2001:db8::1:5", "0x", "0x00", "0xzz02fc0000000064", "64512:100"} {
		if c, err := ParseExtendedCommunity(text); err == nil || !strings.Contains(err.Error(), "write rt:A:N") {
			t.Errorf("%q is %x (%v), want an error that says what to write", text, c, err)
		}
	}
}

func FuzzParseExtendedCommunity(f *testing.F) {
	f.Add("rt:64512:100")
	f.Add("0x4004fc0047c35000")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := ParseExtendedCommunity(text); err == nil {
			if again, err := ParseExtendedCommunity("0x" + hex.EncodeToString(c[:])); err != nil || again != c {
				t.Errorf("%q is %x, which reads as %x (%v)", text, c, again, err)
			}
		}
	})
}

func TestGantryFieldsOfBGPAdvertisementAreParsed(t *testing.T) {
	metric := int64(42)
	alias := v1beta1.Community{Spec: v1beta1.CommunitySpec{Gantry: &v1beta1.CommunityExtension{Extended: []v1beta1.ExtendedCommunityAlias{{Name: "vpn", Value: "rt:1:2"}}}}}
	alias.Name = "aliases"
	o := ConfigurationObjects{
		Communities: []v1beta1.Community{alias},
		BGPAdvertisements: []v1beta1.BGPAdvertisement{
			newBGPAdvertisement("good", 0, v1beta1.BGPAdvertisementSpec{Gantry: &v1beta1.BGPAdvertisementExtension{
				MED: &metric, ASPathPrepend: 2, ExtendedCommunities: []string{"soo:1:2", "vpn", "rt:1:2"}, LinkBandwidthPerEndpoint: 10,
			}}),
			newBGPAdvertisement("nobody", 0, v1beta1.BGPAdvertisementSpec{Gantry: &v1beta1.BGPAdvertisementExtension{ExtendedCommunities: []string{"other"}}}),
			newBGPAdvertisement("wrong", 0, v1beta1.BGPAdvertisementSpec{Gantry: &v1beta1.BGPAdvertisementExtension{ExtendedCommunities: []string{"1:2"}}}),
		},
	}
	s, problems := BuildSnapshot(o)
	good := s.bgpAdvertisementByName("good")
	if !good.HasMED || good.MED != 42 || good.ASPathPrepend != 2 || good.LinkBandwidthPerEndpoint != 10 || len(good.ExtendedCommunities) != 2 {
		t.Errorf("it is %+v", good)
	}
	if got := problemReasonsOfKind(problems, "BGPAdvertisement"); !reflect.DeepEqual(got, []names.Reason{names.ReasonUnknownCommunity, names.ReasonInvalidCommunity}) {
		t.Errorf("the problems are %v", problems)
	}
}

func TestNodeLabelsSetASNs(t *testing.T) {
	spec := v1beta2.BGPPeerSpec{PeerAddress: "192.0.2.1", Gantry: &v1beta2.PeerExtension{PeerASNLabel: "rack/asn", MyASNLabel: "rack/mine"}}
	peer := newPeer("p", 0, spec)
	peer.Spec.PeerASN = 0
	label := func(kv ...string) map[string]string {
		out := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			out[kv[i]] = kv[i+1]
		}
		return out
	}
	o := ConfigurationObjects{BGPPeers: []v1beta2.BGPPeer{peer}, Nodes: []NodeLabels{{Name: "a", Labels: label("rack/asn", "65001")}, {Name: "b", Labels: label("rack/asn", "65002", "rack/mine", "64600")}}}
	s, problems := BuildSnapshot(o)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for i, want := range [][2]uint32{{64512, 65001}, {64600, 65002}} {
		if mine, theirs, err := s.PeerByName("p").ASNsForNode(o.Nodes[i].Labels); err != nil || mine != want[0] || theirs != want[1] {
			t.Errorf("on node %s the numbers are %d and %d (%v), want %v", o.Nodes[i].Name, mine, theirs, err, want)
		}
	}
	for name, bad := range map[string]map[string]string{
		"no label": nil, "a word": label("rack/asn", "rack-7"), "zero": label("rack/asn", "0"), "a number of ours that is none": label("rack/asn", "1", "rack/mine", "x"),
	} {
		o.Nodes[0].Labels = bad
		s, problems := BuildSnapshot(o)
		if got := problemReasonsOfKind(problems, "BGPPeer"); !reflect.DeepEqual(got, []names.Reason{names.ReasonNodeLabel}) || !strings.Contains(problems[0].Text, `node "a"`) || s.PeerByName("p") == nil {
			t.Errorf("%s: the problems are %v", name, problems)
		}
	}
}
