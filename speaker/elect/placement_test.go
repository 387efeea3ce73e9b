package elect

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

func TestCandidateGroupsCountAddresses(t *testing.T) {
	groups := sameCandidatesGroups{}
	a := &addressState{bid: intent.Bid{Candidates: &intent.Candidates{ContentHash: 1, Nodes: []string{"a", "b"}}}}
	groups.countAddressForNode(a, "a")
	groups.countAddressForNode(a, "a")
	if n := groups[1].addressCountByNode["a"]; n != 1 {
		t.Errorf("an address is counted %d times for its holder, want once", n)
	}
	if !groups.canOthersHoldAddressesOf("a") || groups.canOthersHoldAddressesOf("b") {
		t.Error("only the holder has an address that another node could hold")
	}
	groups.countAddressForNode(a, "b")
	if by := groups[1].addressCountByNode; by["b"] != 1 || len(by) != 1 {
		t.Errorf("after a move the address is counted for %v, want b", by)
	}
	a.bid.Candidates = &intent.Candidates{ContentHash: 2, Nodes: []string{"b"}}
	groups.countAddressForNode(a, "b")
	if len(groups) != 1 || groups.canOthersHoldAddressesOf("b") {
		t.Errorf("%d groups are left after the candidates of the only address changed, want 1", len(groups))
	}
	a.bid.Candidates = nil
	if groups.countAddressForNode(a, ""); len(groups) != 0 {
		t.Errorf("%d groups are left without an address", len(groups))
	}
}

func TestGroupRanksCandidatesByPreferenceThenFreeShare(t *testing.T) {
	g := &sameCandidatesGroup{
		candidates:   &intent.Candidates{Nodes: []string{"a", "b", "c", "d"}, PreferenceScores: []int{1, 1, 0, 9}},
		addressCount: 4, addressCountByNode: map[string]int{"a": 4},
	}
	address := &addressState{ip: netip.MustParseAddr("192.0.2.1"), group: g}
	ranked := g.rankCandidates(address, nil, func(n string) bool { return n != "d" })
	if len(ranked) != 3 || ranked[0].node != "b" || ranked[1].node != "a" || ranked[2].node != "c" {
		t.Errorf("the ranking is %+v, want b, which has room, then a, then c, which is less preferred", ranked)
	}
	for node, want := range map[string]bool{"a": true, "b": false, "c": true, "d": true} {
		if got := g.isAboveShare(node, ranked); got != want {
			t.Errorf("%s holds more than its share: %v, want %v", node, got, want)
		}
	}
}

func TestBetterCandidatesProbeFirst(t *testing.T) {
	timing := DefaultTiming()
	g := &sameCandidatesGroup{
		candidates:   &intent.Candidates{Nodes: []string{"a", "b", "c"}, PreferenceScores: []int{3, 2, 1}},
		addressCount: 9, addressCountByNode: map[string]int{},
	}
	address := &addressState{ip: netip.MustParseAddr("192.0.2.1"), group: g}
	for name, c := range map[string]struct {
		self   string
		absent string
		want   time.Duration
	}{
		"the best candidate does not wait":                      {"a", "", 0},
		"each better candidate has its turn":                    {"c", "", 2 * timing.PerRankAcquireDelay},
		"a candidate that is not a member yet gets more time":   {"c", "a", timing.StartupWithoutMembersDelay + timing.PerRankAcquireDelay},
		"a worse candidate that is not a member delays nothing": {"b", "c", timing.PerRankAcquireDelay},
	} {
		m := NewMachine(c.self, 1, timing, testStart)
		m.outbox.beginStep()
		var set facts.MemberSet
		for _, n := range g.candidates.Nodes {
			if n != c.absent {
				set.Members = append(set.Members, facts.Member{Name: n, RunNonce: 1})
			}
		}
		m.applyMembers(set)
		ranking := ownRankFinder{isNotYetMember: func(n string) bool { return n == c.absent }, candidatesByGroup: map[*sameCandidatesGroup]eligibleCandidates{}}
		own, first := ranking.rankSelf(m, address)
		if got := own.delayBeforeProbe(&timing); got != c.want || first != "a" {
			t.Errorf("%s: the delay is %v and the first candidate %s, want %v and a", name, got, first, c.want)
		}
	}
}

func TestOneOfTwoProbersTakesTheAddress(t *testing.T) {
	macs := map[string]facts.MAC{"a": {1}, "b": {2}}
	a := &addressState{
		ip: netip.MustParseAddr("192.0.2.1"), bid: intent.Bid{Candidates: &intent.Candidates{Nodes: []string{"a", "b"}}},
	}
	yields := 0
	for self, rival := range map[string]string{"a": "b", "b": "a"} {
		s := &membership{self: self, nodesByMAC: map[facts.MAC]string{}}
		s.replaceMembers(facts.MemberSet{Members: []facts.Member{{Name: rival, LinkMACs: []facts.MAC{macs[rival]}}}}, 1)
		if a.isOutrankedByRivalProber(s, []facts.MAC{macs[rival]}) {
			yields++
		}
	}
	if yields != 1 {
		t.Errorf("%d of two nodes that probe at one time leave the address to the other, want 1", yields)
	}
}

func TestSyncAnswerHasOnlyBucketsThatDiffer(t *testing.T) {
	var mine, theirs claimHashBuckets
	for i, ip := range []string{"192.0.2.1", "192.0.2.2"} {
		a := &addressState{ip: netip.MustParseAddr(ip)}
		a.highestKnownClaim = Claim{Address: a.ip, Holder: "a", Nonce: 1, Epoch: 1}
		// they lack the second claim
		for _, known := range []*claimHashBuckets{&mine, &theirs}[:2-i] {
			known[claimBucketIndex(a.ip)].addAddress(a)
			known[claimBucketIndex(a.ip)].updateDigest(a.highestKnownClaim.digestContribution())
		}
	}
	ask := func(asked *claimHashBuckets) *messageReader {
		s := newSyncRequests()
		out := outbox{messageFormat: NewestMessageFormat}
		timing := DefaultTiming()
		s.requestSync("a", &theirs, stepContext{now: testStart, timing: &timing}, &out)
		_, request := parseMessageHeader(out.urgentMessages[0].Payload)
		out.beginStep()
		asked.answerSyncRequest("b", request, &out)
		if len(out.normalPriorityMessages) != 1 {
			t.Fatalf("a request is answered with %d messages, want 1", len(out.normalPriorityMessages))
		}
		_, r := parseMessageHeader(out.normalPriorityMessages[0].Payload)
		r.readUvarint()
		return r
	}
	r := ask(&mine)
	if n, bucket, claims := r.readUvarint(), r.readUvarint(), r.readClaims(); n != 1 || len(claims) != 1 ||
		int(bucket) != claimBucketIndex(netip.MustParseAddr("192.0.2.2")) {
		t.Errorf("the answer has %d buckets and the claims %+v, want the one that the other lacks", n, claims)
	}
	if n := ask(&theirs).readUvarint(); n != 0 {
		t.Errorf("between two members with the same claims %d buckets are sent, want none", n)
	}
}
