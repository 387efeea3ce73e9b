package elect

import (
	"bytes"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

var (
	firstIP  = netip.MustParseAddr("192.0.2.1")
	secondIP = netip.MustParseAddr("192.0.2.2")
)

func checkKnownClaims(t *testing.T, what string, m *Machine, want ...Claim) {
	t.Helper()
	if d := cmp.Diff(want, m.KnownClaims(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// TestCheckpointRestoresClaims gives the claims of a speaker to its next process.
func TestCheckpointRestoresClaims(t *testing.T) {
	held := Claim{Address: firstIP, Holder: "b", Nonce: 2, Epoch: 5}
	released := Claim{Address: secondIP, Holder: "c", Nonce: 3, Epoch: 7, Released: true}
	m := NewMachine("a", 1, DefaultTiming(), testStart)
	empty := m.ClaimsVersion()
	m.Step(testStart, ClaimsRestored{[]Claim{released, held, {Address: netip.MustParseAddr("192.0.2.3"), Holder: "b"}}})
	checkKnownClaims(t, "the restored claims, in order and without the one of no epoch", m, held, released)
	full := m.ClaimsVersion()
	if full == empty {
		t.Error("the version does not change with the claims")
	}
	if !m.IsClaimed(firstIP) || m.IsClaimed(secondIP) || m.IsClaimed(netip.MustParseAddr("192.0.2.9")) {
		t.Error("claimed is what a node claims and has not released")
	}
	want := []Holder{{Address: firstIP, Node: "b", Epoch: 5}}
	if got := m.Holders(); !reflect.DeepEqual(got, want) {
		t.Errorf("the holders are %+v, want %+v: no member is known", got, want)
	}
	m.Step(testStart, MembersChanged{facts.MemberSet{Members: []facts.Member{{Name: "a", RunNonce: 1}, {Name: "b", RunNonce: 2}}, HasExchangedFullState: true}})
	if want[0].IsAlive = true; !reflect.DeepEqual(m.Holders(), want) {
		t.Errorf("the holders are %+v, want %+v: b is a member", m.Holders(), want)
	}

	older, newer := held, held
	older.Epoch, newer.Epoch = 4, 6
	m.Step(testStart, ClaimsRestored{[]Claim{older}})
	checkKnownClaims(t, "after an older claim", m, held, released)
	m.Step(testStart, ClaimsRestored{[]Claim{newer}})
	checkKnownClaims(t, "after a newer claim", m, newer, released)

	next := NewMachine("a", 4, DefaultTiming(), testStart)
	next.Step(testStart, ClaimsRestored{m.KnownClaims()})
	if next.ClaimsVersion() != m.ClaimsVersion() || !bytes.Equal(next.EncodeAllClaims(), m.EncodeAllClaims()) {
		t.Error("the next process has other claims than its checkpoint")
	}
}

func TestMergeOrderDoesNotChangeWinningClaim(t *testing.T) {
	base := Claim{Address: firstIP, Holder: "b", Nonce: 2, Epoch: 5}
	with := func(edit func(*Claim)) Claim {
		c := base
		edit(&c)
		return c
	}
	for name, c := range map[string]struct{ winner, loser Claim }{
		"the higher epoch":         {with(func(c *Claim) { c.Epoch = 6 }), with(func(c *Claim) { c.Nonce, c.Released = 9, true })},
		"the later process":        {with(func(c *Claim) { c.Nonce = 3 }), base},
		"the release of the claim": {with(func(c *Claim) { c.Released = true }), base},
	} {
		t.Run(name, func(t *testing.T) {
			for _, order := range [][]Claim{{c.winner, c.loser}, {c.loser, c.winner}} {
				m := NewMachine("a", 1, DefaultTiming(), testStart)
				for _, claim := range order {
					m.Step(testStart, RemoteStateReceived{appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), []Claim{claim})})
				}
				checkKnownClaims(t, "after both claims", m, c.winner)
			}
		})
	}
	x, y := with(func(c *Claim) { c.Holder = "x" }), with(func(c *Claim) { c.Holder = "y" })
	if x.supersedes(y) == y.supersedes(x) || base.supersedes(base) {
		t.Error("of two holders in one epoch exactly one wins, and no claim wins over itself")
	}
}

// soleMachine is a node without members that may hold the first address.
type soleMachine struct {
	*Machine
	now     time.Time
	effects []Effect // of the last step
}

func newSoleMachine() *soleMachine {
	s := &soleMachine{Machine: NewMachine("a", 1, DefaultTiming(), testStart), now: testStart}
	s.step(MembersChanged{facts.MemberSet{Members: []facts.Member{{Name: "a", RunNonce: 1, LinkMACs: []facts.MAC{{1}}}}, HasExchangedFullState: true}})
	s.bidOnLinks(1)
	return s
}

func (s *soleMachine) step(in Input) { s.effects = s.Step(s.now, in) }

// bidOnLinks bids for the first address on the links.
func (s *soleMachine) bidOnLinks(links ...int) {
	s.step(BidsChanged{Bids: []intent.Bid{{Address: firstIP, Candidates: intent.NewCandidates(map[string]int{"a": 0}), OwnLinkIndexes: links}}})
}

// findEffect returns the first effect of the type in the last step.
func findEffect[E Effect](s *soleMachine) (found E, ok bool) {
	for _, e := range s.effects {
		if found, ok = e.(E); ok {
			return found, true
		}
	}
	return found, false
}

// awaitEffect lets up to a minute pass until a step has an effect of the type.
func awaitEffect[E Effect](t *testing.T, s *soleMachine) E {
	t.Helper()
	for end := s.now.Add(time.Minute); s.now.Before(end); {
		if at := s.NextDeadline(); at.After(s.now) {
			s.now = at
		} else {
			s.now = s.now.Add(time.Millisecond)
		}
		s.step(TimePassed{})
		if e, ok := findEffect[E](s); ok {
			return e
		}
	}
	t.Fatalf("there is no %T in a minute", *new(E))
	panic("unreachable")
}

// finishProbe finishes a probe of the first address.
func (s *soleMachine) finishProbe(p AcquireProbe, edit func(*facts.ProbeResult)) {
	r := facts.ProbeResult{ID: p.ID, Address: p.Address}
	if edit != nil {
		edit(&r)
	}
	s.step(ProbeFinished{r})
}

func TestUnsentProbeDoesNotAllowTakingAddress(t *testing.T) {
	s := newSoleMachine()
	for range 3 {
		s.finishProbe(awaitEffect[AcquireProbe](t, s), func(r *facts.ProbeResult) { r.NoFrameSent = true })
		if e, ok := findEffect[HoldAddress](s); ok {
			t.Fatalf("the node answers on %+v, although no link could ask", e.Binding)
		}
	}
	s.finishProbe(awaitEffect[AcquireProbe](t, s), nil)
	if e, ok := findEffect[HoldAddress](s); !ok || e.Binding.Address != firstIP {
		t.Errorf("the effects are %+v, want that the node takes the address after a silent probe", s.effects)
	}
}

// newSoleHolder returns a machine that holds the first address on link 1.
func newSoleHolder(t *testing.T) *soleMachine {
	t.Helper()
	s := newSoleMachine()
	s.finishProbe(awaitEffect[AcquireProbe](t, s), nil)
	if e, ok := findEffect[HoldAddress](s); !ok || !slices.Equal(e.Binding.LinkIndexes, []int{1}) {
		t.Fatalf("the effects are %+v, want that the node answers on link 1", s.effects)
	}
	return s
}

func TestForeignHostKeepsItsAddress(t *testing.T) {
	s := newSoleMachine()
	reported := 0
	for range 4 {
		s.finishProbe(awaitEffect[AcquireProbe](t, s), func(r *facts.ProbeResult) { r.AnsweringMACs = []facts.MAC{{9}} })
		if e, ok := findEffect[Event](s); ok {
			reported++
			if e.Kind != EventForeignHostAnswers || !e.IsAnswerOfAnotherHost() || e.Address != firstIP || e.AnsweringMAC != (facts.MAC{9}) || !strings.Contains(e.Text, "outside of the cluster") {
				t.Errorf("the event is %+v", e)
			}
		}
		if _, ok := findEffect[HoldAddress](s); ok {
			t.Fatal("the node takes an address for which another host answers")
		}
	}
	if reported != 1 {
		t.Errorf("the host is reported %d times, want once", reported)
	}
}

func TestHolderReportsAForeignHost(t *testing.T) {
	s := newSoleHolder(t)
	s.step(ConflictDetected{facts.Conflict{Address: firstIP, ForeignMAC: facts.MAC{9}, LinkIndex: 1}})
	e, ok := findEffect[Event](s)
	if !ok || e.Kind != EventForeignHostAnswers || !e.IsAnswerOfAnotherHost() || e.AnsweringMAC != (facts.MAC{9}) {
		t.Errorf("the event is %+v, want a conflict with the host", e)
	}
	if _, ok := findEffect[RejoinGossip](s); !ok {
		t.Error("the node does not look for members that it may have lost")
	}
	if _, ok := findEffect[DropAddress](s); ok {
		t.Error("the holder gives the address up")
	}
	s.step(ConflictDetected{facts.Conflict{Address: secondIP, ForeignMAC: facts.MAC{9}, LinkIndex: 1}})
	if _, ok := findEffect[Event](s); ok {
		t.Error("a host is reported for an address that this node does not hold")
	}
}

func TestHeldAddressIsReboundWhenBidLinksChange(t *testing.T) {
	s := newSoleHolder(t)
	s.bidOnLinks(1, 2)
	if e, ok := findEffect[HoldAddress](s); !ok || !slices.Equal(e.Binding.LinkIndexes, []int{1, 2}) {
		t.Errorf("the effects are %+v, want that the node answers on the links 1 and 2", s.effects)
	}
	s.bidOnLinks(1, 2)
	if e, ok := findEffect[HoldAddress](s); ok {
		t.Errorf("the links are the same, and the node answers again: %+v", e)
	}
}

// TestClaimWithoutCandidatesIsForgottenAfterTimeout: the claim is kept at first, so that a healed
// partition does not bring it back.
func TestClaimWithoutCandidatesIsForgottenAfterTimeout(t *testing.T) {
	s := newSoleHolder(t)
	s.step(BidsChanged{AddressesWithoutBid: []netip.Addr{firstIP}})
	if e, ok := findEffect[DropAddress](s); !ok || e.Address != firstIP {
		t.Fatalf("the effects are %+v, want that the node stops answering", s.effects)
	}
	// another node's claim, whose holder is dead
	s.step(RemoteStateReceived{appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), []Claim{{Address: secondIP, Holder: "b", Nonce: 2, Epoch: 5}})})
	pass := func(d time.Duration) {
		for end := s.now.Add(d); s.now.Before(end); s.now = s.now.Add(time.Second) {
			s.step(TimePassed{})
		}
	}
	pass(claimWithoutCandidatesTimeout / 2)
	if n := len(s.KnownClaims()); n != 2 {
		t.Errorf("after half of the time %d claims are known, want both", n)
	}
	pass(claimWithoutCandidatesTimeout + 2*claimBucketCount*time.Second)
	checkKnownClaims(t, "after the retention timeout", s.Machine)
	if s.ClaimsVersion() != NewMachine("a", 1, DefaultTiming(), testStart).ClaimsVersion() {
		t.Error("the version still contains the forgotten claims")
	}
	if got := s.Holders(); len(got) > 0 {
		t.Errorf("the holders are %+v", got)
	}
}

func TestMalformedMessagesAreErrors(t *testing.T) {
	claims := []Claim{{Address: firstIP, Holder: "b", Nonce: 300, Epoch: 5}}
	whole := appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), claims)
	for n := range len(whole) {
		if _, r := parseMessageHeader(whole[:n]); r != nil {
			if got := r.readClaims(); r.err == nil {
				t.Errorf("%d of %d bytes are read as %+v", n, len(whole), got)
			}
		}
	}
	_, r := parseMessageHeader(appendString(encodeMessageHeader(NewestMessageFormat, kindOffer), strings.Repeat("x", 300)))
	if got := r.readString(); len(got) != 255 || r.err != nil {
		t.Errorf("a name of 300 bytes is read as %d bytes, want the first 255", len(got))
	}
}
