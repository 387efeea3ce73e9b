package elect

import (
	"bytes"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

var testStart = time.Unix(1_000_000, 0)

func TestEncodedClaimsDecodeUnchanged(t *testing.T) {
	tests := map[string][]Claim{
		"no claims":      nil,
		"IPv4":           {{Address: netip.MustParseAddr("192.0.2.1"), Holder: "a", Nonce: 1<<64 - 1, Epoch: 7}},
		"IPv6":           {{Address: netip.MustParseAddr("2001:db8::1"), Holder: "b", Nonce: 3, Epoch: 1 << 40}},
		"released":       {{Address: netip.MustParseAddr("192.0.2.1"), Holder: "a", Nonce: 1, Epoch: 2, Released: true}},
		"former holders": {{Address: netip.MustParseAddr("192.0.2.1"), Holder: "a", Epoch: 2, FormerHolders: []string{"b", "c"}}, {Address: netip.MustParseAddr("2001:db8::1"), Holder: "b", Epoch: 1}},
		"no node name":   {{Address: netip.MustParseAddr("192.0.2.1"), Epoch: 1}},
	}
	for name, claims := range tests {
		t.Run(name, func(t *testing.T) {
			kind, r := parseMessageHeader(appendClaims(encodeMessageHeader(NewestMessageFormat, kindOffer), claims))
			if got := r.readClaims(); kind != kindOffer || r.err != nil || !reflect.DeepEqual(got, claims) {
				t.Errorf("read kind %d, %v, error %v; written %v", kind, got, r.err, claims)
			}
		})
	}
}

// FuzzReceivedMessages feeds arbitrary bytes to a machine that is not a candidate for any address.
// It must neither panic nor hold an address because of them.
func FuzzReceivedMessages(f *testing.F) {
	claim := Claim{Address: netip.MustParseAddr("192.0.2.1"), Holder: "b", Nonce: 2, Epoch: 5}
	f.Add([]byte(nil))
	f.Add([]byte{NewestMessageFormat + 1, kindClaims, 1})
	f.Add(appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), []Claim{claim}))
	f.Add(append(encodeMessageHeader(NewestMessageFormat, kindSyncDelta), 1, 1, 7, 0))
	f.Add(append(encodeMessageHeader(NewestMessageFormat, kindSyncRequest), make([]byte, 1+4*claimBucketCount)...))
	f.Add([]byte{NewestMessageFormat, kindBeaconAck, 1, 1, 0})
	f.Add(appendClaims(encodeMessageHeader(NewestMessageFormat, kindOffer), []Claim{claim}))
	f.Add(append(appendString(encodeMessageHeader(NewestMessageFormat, kindSuspicion), "b"), 2, 1, 9, 0))
	f.Add([]byte{NewestMessageFormat, kindBeacon, 2, 1, 0, 0})
	f.Add([]byte{NewestMessageFormat, kindClaims, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	claim.FormerHolders = manyFormerHolders
	f.Add(appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), []Claim{claim, claim}))
	f.Fuzz(func(t *testing.T, payload []byte) {
		m := NewMachine("a", 1, DefaultTiming(), testStart)
		members := []facts.Member{{Name: "a", RunNonce: 1}, {Name: "b", RunNonce: 2}}
		m.Step(testStart, MembersChanged{facts.MemberSet{Members: members, HasExchangedFullState: true}})
		before := bytes.Clone(payload)
		effects := m.Step(testStart, MessageReceived{From: "b", Payload: payload})
		effects = append(effects, m.Step(testStart.Add(time.Millisecond), RemoteStateReceived{EncodedClaims: payload})...)
		for _, e := range effects {
			if h, ok := e.(HoldAddress); ok {
				t.Errorf("the machine holds %v", h.Binding)
			}
		}
		for _, c := range m.KnownClaims() {
			if n := c.FormerHolders; len(n) > maxFormerHolders || len(deduplicateFormerHolders(n, c.Holder)) != len(n) {
				t.Errorf("%s has the former holders %q of %q", c.Address, n, c.Holder)
			}
		}
		if !bytes.Equal(before, payload) {
			t.Error("the machine changed the payload")
		}
	})
}
