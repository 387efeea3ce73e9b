package bfd_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bfd/bfdtest"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

func TestInvalidSessionsAreRejected(t *testing.T) {
	peer4, peer6, linkLocal := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fe80::1")
	for sentence, tc := range map[string]struct {
		key  bfd.SessionKey
		edit func(p *bfd.Profile)
		want names.Reason
	}{
		"the defaults":         {key: bfd.SessionKey{PeerAddress: peer4}},
		"IPv6":                 {key: bfd.SessionKey{PeerAddress: peer6}},
		"multihop":             {key: bfd.SessionKey{PeerAddress: peer4, Multihop: true}},
		"link-local on a link": {key: bfd.SessionKey{PeerAddress: linkLocal, Interface: "eth0"}},
		"the fastest": {key: bfd.SessionKey{PeerAddress: peer4}, edit: func(p *bfd.Profile) {
			p.ReceiveInterval, p.TransmitInterval, p.DetectMultiplier = 10*time.Millisecond, 10*time.Millisecond, 2
		}},
		"the slowest": {key: bfd.SessionKey{PeerAddress: peer4}, edit: func(p *bfd.Profile) {
			p.ReceiveInterval, p.TransmitInterval, p.DetectMultiplier = time.Minute, time.Minute, 255
		}},
		"no peer":                                {want: names.ReasonInvalidBFD},
		"a zone in the address":                  {key: bfd.SessionKey{PeerAddress: linkLocal.WithZone("eth0"), Interface: "eth0"}, want: names.ReasonInvalidBFD},
		"a multicast address":                    {key: bfd.SessionKey{PeerAddress: netip.MustParseAddr("224.0.0.5")}, want: names.ReasonInvalidBFD},
		"link-local without a link":              {key: bfd.SessionKey{PeerAddress: linkLocal}, want: names.ReasonInvalidBFD},
		"a source address of the other family":   {key: bfd.SessionKey{PeerAddress: peer4, LocalAddress: peer6}, want: names.ReasonInvalidBFD},
		"multihop on a link":                     {key: bfd.SessionKey{PeerAddress: peer4, Multihop: true, Interface: "eth0"}, want: names.ReasonInvalidBFD},
		"receive interval too short":             {key: bfd.SessionKey{PeerAddress: peer4}, edit: func(p *bfd.Profile) { p.ReceiveInterval = 9 * time.Millisecond }, want: names.ReasonInvalidBFD},
		"transmit interval too long":             {key: bfd.SessionKey{PeerAddress: peer4}, edit: func(p *bfd.Profile) { p.TransmitInterval = 61 * time.Second }, want: names.ReasonInvalidBFD},
		"echo interval too short":                {key: bfd.SessionKey{PeerAddress: peer4}, edit: func(p *bfd.Profile) { p.EchoInterval = time.Millisecond }, want: names.ReasonInvalidBFD},
		"a multiplier of one":                    {key: bfd.SessionKey{PeerAddress: peer4}, edit: func(p *bfd.Profile) { p.DetectMultiplier = 1 }, want: names.ReasonInvalidBFD},
		"a TTL of zero":                          {key: bfd.SessionKey{PeerAddress: peer4}, edit: func(p *bfd.Profile) { p.MinimumTTL = 0 }, want: names.ReasonInvalidBFD},
		"a TTL that multihop cannot arrive with": {key: bfd.SessionKey{PeerAddress: peer4}, edit: func(p *bfd.Profile) { p.MinimumTTL = 255 }, want: names.ReasonInvalidBFD},
	} {
		s := bfd.SessionConfig{SessionKey: tc.key, Profile: bfdtest.DefaultProfile()}
		if tc.edit != nil {
			tc.edit(&s.Profile)
		}
		if f := s.Validate(); f.Reason != tc.want || (f.Text == "") != (tc.want == "") {
			t.Errorf("%s: %+v, want reason %q with a text", sentence, f, tc.want)
		}
	}
}

func TestInvalidSessionDoesNotAffectOthers(t *testing.T) {
	simulateEnginePair(t, func(p *enginePair) {
		bad := p.nodeSessionToRouter(fastProfile())
		bad.PeerAddress, bad.DetectMultiplier = netip.MustParseAddr("192.0.2.99"), 0
		p.nodeEngine.SetSessions([]bfd.SessionConfig{bad, p.nodeSessionToRouter(fastProfile())})
		p.routerEngine.SetSessions([]bfd.SessionConfig{p.routerSessionToNode(fastProfile())})
		p.waitForNodeEvent("the valid session comes up", bfd.Event{Up: true, Cause: session.CauseHandshakeProgress})
		all := p.nodeEngine.SessionStatuses()
		if len(all) != 2 || all[0].Fault.Reason != names.ReasonInvalidBFD || all[1].Fault.IsSet() {
			t.Errorf("status %+v, want the first rejected and the second running", all)
		}
	})
}
