package v1beta1_test

import (
	"context"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
)

func testInvalidBGPPeerExtensionsAreRefused(t *testing.T, c client.Client) {
	hops, far := int32(1), int32(255)
	with := func(e v1beta2.PeerExtension) v1beta2.BGPPeerSpec {
		return v1beta2.BGPPeerSpec{MyASN: 64512, PeerASN: 65000, PeerAddress: "192.0.2.1", Gantry: &e}
	}
	for name, tc := range map[string]struct {
		in   v1beta2.BGPPeerSpec
		want []string // nil: accepted
	}{
		"an address and a number":     {in: v1beta2.BGPPeerSpec{MyASN: 64512, PeerASN: 65000, PeerAddress: "192.0.2.1"}},
		"no address":                  {in: v1beta2.BGPPeerSpec{MyASN: 64512, PeerASN: 65000}, want: []string{"write either peerAddress"}},
		"no number":                   {in: v1beta2.BGPPeerSpec{MyASN: 64512, PeerAddress: "192.0.2.1"}, want: []string{"write either peerASN"}},
		"an address and an interface": {in: v1beta2.BGPPeerSpec{MyASN: 64512, PeerASN: 65000, PeerAddress: "192.0.2.1", Interface: "eth0"}, want: []string{"write either peerAddress"}},
		"a number and any number":     {in: v1beta2.BGPPeerSpec{MyASN: 64512, PeerASN: 65000, DynamicASN: "external", PeerAddress: "192.0.2.1"}, want: []string{"write either peerASN"}},
		"the default gateway":         {in: v1beta2.BGPPeerSpec{MyASN: 64512, PeerASN: 65000, Gantry: &v1beta2.PeerExtension{DefaultGateway: "IPv4"}}},
		"the gateway and an address":  {in: with(v1beta2.PeerExtension{DefaultGateway: "IPv4"}), want: []string{"write either peerAddress"}},
		"a family that is none":       {in: with(v1beta2.PeerExtension{DefaultGateway: "v4"}), want: []string{"spec.gantry.defaultGateway", "IPv4"}},
		"numbers from labels":         {in: v1beta2.BGPPeerSpec{MyASN: 64512, PeerAddress: "192.0.2.1", Gantry: &v1beta2.PeerExtension{PeerASNLabel: "rack/asn", MyASNLabel: "rack/mine"}}},
		"a label beside a number":     {in: with(v1beta2.PeerExtension{PeerASNLabel: "rack/asn"}), want: []string{"write either peerASN"}},
		"a router on the link":        {in: with(v1beta2.PeerExtension{TTLSecurityHops: &hops})},
		"a router that is too far":    {in: with(v1beta2.PeerExtension{TTLSecurityHops: &far}), want: []string{"spec.gantry.ttlSecurityHops", "254"}},
		"a router that may be far, and not": {in: func() v1beta2.BGPPeerSpec {
			s := with(v1beta2.PeerExtension{TTLSecurityHops: &hops})
			s.EBGPMultiHop = true
			return s
		}(), want: []string{"ebgpMultiHop and gantry.ttlSecurityHops exclude each other"}},
		"the passive side": {in: with(v1beta2.PeerExtension{Passive: true})},
	} {
		t.Run(name, func(t *testing.T) {
			p := &v1beta2.BGPPeer{Spec: tc.in}
			p.Namespace, p.GenerateName = names.DefaultNamespace, "peer-"
			if tc.want != nil {
				checkCreationIsRefusedWithTexts(t, c, p, tc.want...)
				return
			}
			if err := c.Create(context.Background(), p); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func testInvalidBGPAdvertisementExtensionsAreRefused(t *testing.T, c client.Client) {
	metric, wide := int64(0), int64(1<<32)
	for name, tc := range map[string]struct {
		in   v1beta1.BGPAdvertisementExtension
		want []string
	}{
		"everything": {in: v1beta1.BGPAdvertisementExtension{
			MED: &metric, ASPathPrepend: 3, ExtendedCommunities: []string{"rt:64512:100", "0x4004fc0047c35000", "alias"}, LinkBandwidthPerEndpoint: 1000,
		}},
		"a metric that is too large": {in: v1beta1.BGPAdvertisementExtension{MED: &wide}, want: []string{"spec.gantry.med"}},
		"far too long a path":        {in: v1beta1.BGPAdvertisementExtension{ASPathPrepend: 17}, want: []string{"spec.gantry.asPathPrepend"}},
	} {
		t.Run(name, func(t *testing.T) {
			a := &v1beta1.BGPAdvertisement{Spec: v1beta1.BGPAdvertisementSpec{Gantry: &tc.in}}
			a.Namespace, a.GenerateName = names.DefaultNamespace, "ad-"
			if tc.want != nil {
				checkCreationIsRefusedWithTexts(t, c, a, tc.want...)
				return
			}
			if err := c.Create(context.Background(), a); err != nil {
				t.Fatal(err)
			}
		})
	}
	for value, want := range map[string]string{
		"rt:64512:100": "", "soo:192.0.2.1:7": "", "rt:4200000000:1": "", "0x0002fc0000000064": "",
		"64512:100": "invalid extended community value: '64512:100'", "rt:1": "invalid extended", "0x00": "invalid extended",
	} {
		t.Run("the alias of "+value, func(t *testing.T) {
			o := &v1beta1.Community{Spec: v1beta1.CommunitySpec{Gantry: &v1beta1.CommunityExtension{Extended: []v1beta1.ExtendedCommunityAlias{{Name: "a", Value: value}}}}}
			o.Namespace, o.GenerateName = names.DefaultNamespace, "c-"
			if want != "" {
				checkCreationIsRefusedWithTexts(t, c, o, want)
				return
			}
			if err := c.Create(context.Background(), o); err != nil {
				t.Fatal(err)
			}
		})
	}
}
