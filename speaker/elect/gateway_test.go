package elect

import (
	"reflect"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// A speaker of an earlier version reads a claim without gateway as one that is not released: it
// takes only 1 in the last byte for released.
func TestClaimWithoutGatewayIsReadableByEarlierVersions(t *testing.T) {
	for _, c := range []Claim{
		{Address: firstIP, Holder: "b", Nonce: 2, Epoch: 3},
		{Address: firstIP, Holder: "b", Nonce: 2, Epoch: 3, WithoutGateway: true},
		{Address: firstIP, Holder: "b", Nonce: 2, Epoch: 3, Released: true},
	} {
		encoded := appendClaim(nil, c)
		if isReleased := encoded[len(encoded)-1] == 1; isReleased != c.Released {
			t.Errorf("an earlier version reads %+v as released: %v", c, isReleased)
		}
		if got := (&messageReader{unread: encoded}).readClaim(); !reflect.DeepEqual(got, c) {
			t.Errorf("the claim is read as %+v, want %+v", got, c)
		}
	}
}

// holdFirstIPAgainst returns node a, which holds an address, and its answer to a higher claim of
// the living node b.
func holdFirstIPAgainst(t *testing.T, c Claim) (*Machine, time.Time, []Effect) {
	t.Helper()
	m := NewMachine("a", 1, DefaultTiming(), testStart)
	m.Step(testStart, MembersChanged{facts.MemberSet{Members: []facts.Member{{Name: "a", RunNonce: 1}, {Name: "b", RunNonce: 2}}}},
		RemoteStateReceived{appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), nil)},
		BidsChanged{Bids: []intent.Bid{{Address: firstIP, OwnLinkIndexes: []int{1}, Candidates: intent.NewCandidates(map[string]int{"a": 0, "b": 0})}}})
	m.outbox.beginStep()
	m.takeAddress(m.ensureAddressState(firstIP), 1, reasonUnheld)
	now := testStart.Add(10 * time.Millisecond)
	payload := appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), []Claim{c})
	return m, now, m.Step(now, MessageReceived{From: "b", Payload: payload})
}

func TestGatewayDecidesAboutClaimWithoutGateway(t *testing.T) {
	for name, tc := range map[string]struct {
		withoutGateway bool
		answers        []facts.MAC
		isLost         bool
		isKept         bool
	}{
		"a claim that does not lack the gateway wins at once": {withoutGateway: false},
		"the gateway answers the holder":                      {withoutGateway: true, answers: []facts.MAC{{0xfe}}, isKept: true},
		"no gateway answers the holder either":                {withoutGateway: true},
		"the result of the probe is lost":                     {withoutGateway: true, isLost: true},
	} {
		t.Run(name, func(t *testing.T) {
			rival := Claim{Address: firstIP, Holder: "b", Nonce: 2, Epoch: 4, WithoutGateway: tc.withoutGateway}
			m, now, effects := holdFirstIPAgainst(t, rival)
			for _, e := range effects {
				if probe, ok := e.(ReachabilityProbe); ok && probe.OnlyGateways && !tc.isLost {
					now = now.Add(5 * time.Millisecond)
					m.Step(now, ProbeFinished{facts.ProbeResult{ID: probe.ID, AnsweringMACs: tc.answers}})
				}
			}
			for range 7 { // until a result that is lost is given up
				now = now.Add(90 * time.Millisecond)
				m.lease.recordConfirmation(now)
				m.Step(now, TimePassed{})
			}
			a := m.addressesByIP[firstIP]
			if c := a.highestKnownClaim; a.isHeldBySelf != tc.isKept || tc.isKept && c.Epoch <= rival.Epoch || !tc.isKept && !reflect.DeepEqual(c, rival) {
				t.Errorf("the address is kept: %v, with the claim %+v", a.isHeldBySelf, c)
			}
		})
	}
}

// On a busy machine the gateway may answer after the address is taken. The claim then loses its
// mark. Later answers do not count: the cut may have ended.
func TestLateGatewayAnswerUnmarksClaim(t *testing.T) {
	for name, tc := range map[string]struct {
		delay    time.Duration
		isMarked bool
	}{"after 150 ms": {150 * time.Millisecond, false}, "after a second": {time.Second, true}} {
		t.Run(name, func(t *testing.T) {
			m := NewMachine("a", 1, DefaultTiming(), testStart)
			bid := intent.Bid{Address: firstIP, OwnLinkIndexes: []int{1}, Candidates: intent.NewCandidates(map[string]int{"a": 0})}
			inputs, takenAt := []Input{BidsChanged{Bids: []intent.Bid{bid}}}, time.Time{}
			for now := testStart; now.Before(testStart.Add(4 * time.Second)); now = now.Add(10 * time.Millisecond) {
				effects := m.Step(now, append(inputs, TimePassed{})...)
				inputs = nil
				for _, e := range effects {
					switch e := e.(type) {
					case AcquireProbe:
						inputs = append(inputs, ProbeFinished{facts.ProbeResult{ID: e.ID, Address: firstIP}})
					case HoldAddress:
						takenAt = now
						if !m.addressesByIP[firstIP].highestKnownClaim.WithoutGateway {
							t.Error("the first claim is not one without gateway")
						}
					case ReachabilityProbe:
						r := facts.ProbeResult{ID: e.ID}
						if !takenAt.IsZero() && now.Sub(takenAt) >= tc.delay {
							r.AnsweringMACs = []facts.MAC{{0xfe}}
						}
						inputs = append([]Input{ProbeFinished{r}}, inputs...)
					}
				}
			}
			if c := m.addressesByIP[firstIP].highestKnownClaim; c.WithoutGateway != tc.isMarked {
				t.Errorf("the claim is %+v", c)
			}
		})
	}
}
