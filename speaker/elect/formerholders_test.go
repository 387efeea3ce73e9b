package elect

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

func TestFormerHoldersAreThoseThatHandedTheAddressOver(t *testing.T) {
	held := Claim{Address: firstIP, Holder: "b", Nonce: 2, Epoch: 5, FormerHolders: []string{"c", "a", "d"}}
	for name, tc := range map[string]struct {
		before  Claim
		isAlive bool
		want    []string
	}{
		"nobody held it":                       {Claim{Address: firstIP}, false, nil},
		"b hands it over":                      {held, true, []string{"b", "c", "d"}},
		"b is dead, and its connections ended": {held, false, []string{"c", "d"}},
		"this node held it itself":             {Claim{Address: firstIP, Holder: "a", Epoch: 5, FormerHolders: []string{"b"}}, true, []string{"b"}},
		"there were many": {Claim{Address: firstIP, Holder: "x", Epoch: 5, FormerHolders: []string{"1", "2", "3", "4", "5", "6", "7", "8"}}, true,
			[]string{"x", "1", "2", "3", "4", "5", "6", "7"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := listFormerHolders(tc.before, "a", tc.isAlive); !slices.Equal(got, tc.want) {
				t.Errorf("the former holders are %v, want %v", got, tc.want)
			}
		})
	}
}

// TestFormerHoldersFollowTheAddress moves addresses from node to node and back.
func TestFormerHoldersFollowTheAddress(t *testing.T) {
	w := newClusterSimulation(t, 2, 3, 1)
	w.startAllSpeakers()
	w.runSimulationFor(5*time.Second, nil)
	ip := w.addresses[0]
	var order []string
	for range 3 {
		holder := w.nodesByName[w.answeringNodes(ip)[0]]
		order = append(order, holder.name)
		holder.hasServingEndpoint = false
		w.deliverBids()
		w.runSimulationFor(time.Second, nil)
		holder.hasServingEndpoint = true
		w.deliverBids()
		w.runSimulationFor(time.Second, nil)
	}
	current := w.answeringNodes(ip)[0]
	var want []string
	for _, n := range slices.Backward(order) {
		if n != current && !slices.Contains(want, n) {
			want = append(want, n)
		}
	}
	for _, n := range w.nodeNames {
		for _, h := range w.nodesByName[n].machine.Holders() {
			if h.Node != current || !slices.Equal(h.FormerHolders, want) {
				t.Errorf("%s knows the holder %s after %v, want %s after %v", n, h.Node, h.FormerHolders, current, want)
			}
		}
	}
}

// TestFormerHoldersArePassedOn: a full state has them, and a claim that came without them gets them
// later.
func TestFormerHoldersArePassedOn(t *testing.T) {
	claims := []Claim{
		{Address: firstIP, Holder: "b", Nonce: 2, Epoch: 5, FormerHolders: []string{"c", "d"}},
		{Address: netip.MustParseAddr("2001:db8::1"), Holder: "b", Nonce: 2, Epoch: 1},
		{Address: secondIP, Holder: "c", Nonce: 3, Epoch: 7, FormerHolders: []string{"b"}},
	}
	without := slices.Clone(claims)
	for i := range without {
		without[i].FormerHolders = nil
	}
	known := newMachineAmongMembersOfFormat(t, NewestMessageFormat)
	known.Step(testStart, RemoteStateReceived{appendClaims(encodeMessageHeader(oldestMessageFormat, kindClaims), without)})
	known.Step(testStart, RemoteStateReceived{appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), claims)})
	m := newMachineAmongMembersOfFormat(t, NewestMessageFormat)
	m.Step(testStart, RemoteStateReceived{known.EncodeAllClaims()})
	for _, want := range claims {
		i := slices.IndexFunc(m.KnownClaims(), func(c Claim) bool { return c.Address == want.Address })
		if i < 0 || !slices.Equal(m.KnownClaims()[i].FormerHolders, want.FormerHolders) {
			t.Errorf("the claims are %+v, want %+v among them", m.KnownClaims(), want)
		}
	}
}

// manyFormerHolders are as many as a claim may have, each twice.
var manyFormerHolders = []string{"1", "2", "3", "4", "5", "6", "7", "8", "1", "2", "3", "4", "5", "6", "7", "8"}

// TestFormerHoldersDoNotSpoilMessages: whatever a message says of former holders, its claims are
// read.
func TestFormerHoldersDoNotSpoilMessages(t *testing.T) {
	claim := Claim{Address: firstIP, Holder: "b", Nonce: 2, Epoch: 5}
	with := func(formerHolders ...string) Claim {
		c := claim
		c.FormerHolders = formerHolders
		return c
	}
	plain := appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), []Claim{claim})
	address := appendString(nil, string(firstIP.AsSlice()))
	for name, tc := range map[string]struct {
		payload []byte
		want    []string
	}{
		"the list is too long":     {appendFormerHolders(plain, with("1", "2", "3", "4", "5", "6", "7", "8", "9")), manyFormerHolders[:8]},
		"each of them twice":       {appendFormerHolders(plain, with(manyFormerHolders...)), manyFormerHolders[:8]},
		"the holder is among them": {appendFormerHolders(plain, with("c", "b", "d")), []string{"c", "d"}},
		"the list comes twice":     {appendFormerHolders(appendFormerHolders(plain, with("c", "d")), with("c", "d")), []string{"c", "d"}},
		"the list is cut off":      {append(append(slices.Clip(plain), address...), 2, 1, 'c', 5), nil},
		"the number is too large":  {append(append(slices.Clip(plain), address...), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1), nil},
		"the address is not valid": {append(slices.Clip(plain), 3, 1, 2, 3, 1, 1, 'c'), nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachineAmongMembersOfFormat(t, NewestMessageFormat)
			m.Step(testStart, MessageReceived{From: "b", Payload: tc.payload})
			checkKnownClaims(t, "the message has one claim", m, with(tc.want...))
		})
	}
	t.Run("checkpoint", func(t *testing.T) {
		m := newMachineAmongMembersOfFormat(t, NewestMessageFormat)
		m.Step(testStart, ClaimsRestored{[]Claim{with(manyFormerHolders...)}})
		checkKnownClaims(t, "the checkpoint has one claim", m, with(manyFormerHolders[:8]...))
	})
}

// TestStalePeerGetsClaimOnce: the answer of a peer that knows an older claim shows twice that it
// is behind.
func TestStalePeerGetsClaimOnce(t *testing.T) {
	for _, count := range []int{2, maxFormerHolders} {
		t.Run(strconv.Itoa(count), func(t *testing.T) {
			stale := Claim{Address: firstIP, Holder: "b", Nonce: 2, Epoch: 5}
			known := Claim{Address: firstIP, Holder: "c", Nonce: 3, Epoch: 6, FormerHolders: manyFormerHolders[:count]}
			m := newMachineAmongMembersOfFormat(t, NewestMessageFormat)
			m.Step(testStart, ClaimsRestored{[]Claim{known}})
			id := m.syncRequests.beginRequest("b", testStart, time.Second)
			delta := append(encodeMessageHeader(NewestMessageFormat, kindSyncDelta), byte(id), 1)
			delta = binary.AppendUvarint(delta, uint64(claimBucketIndex(firstIP)))
			effects := m.Step(testStart, MessageReceived{From: "b", Payload: appendClaims(delta, []Claim{stale})})
			peer, passedOn := NewMachine("b", 2, DefaultTiming(), testStart), 0
			peer.Step(testStart, MembersChanged{facts.MemberSet{Members: []facts.Member{{Name: "a", RunNonce: 1}, {Name: "b", RunNonce: 2}, {Name: "c", RunNonce: 3}}}})
			for _, e := range effects {
				if s, ok := e.(SendMessage); ok && s.To == "b" && s.Payload[1] == kindClaims {
					_, r := parseMessageHeader(s.Payload)
					passedOn += len(r.readClaims())
					peer.Step(testStart, MessageReceived{From: "a", Payload: s.Payload})
				}
			}
			if passedOn != 1 {
				t.Errorf("the peer gets %d claims, want one", passedOn)
			}
			checkKnownClaims(t, "the peer learns the claim", peer, known)
			third := newMachineAmongMembersOfFormat(t, NewestMessageFormat)
			third.Step(testStart, RemoteStateReceived{peer.EncodeAllClaims()})
			checkKnownClaims(t, "a third speaker learns it from the peer", third, known)
		})
	}
}

func TestLateFormerHoldersChangeVersionOfClaims(t *testing.T) {
	claim := Claim{Address: firstIP, Holder: "b", Nonce: 2, Epoch: 5}
	m := newMachineAmongMembersOfFormat(t, NewestMessageFormat)
	versions := []ClaimsVersion{m.ClaimsVersion()}
	receive := func() {
		m.Step(testStart, MessageReceived{From: "b", Payload: appendClaims(encodeMessageHeader(NewestMessageFormat, kindClaims), []Claim{claim})})
		versions = append(versions, m.ClaimsVersion())
	}
	receive()
	claim.FormerHolders = []string{"c"}
	receive()
	receive()
	if versions[0] == versions[1] || versions[1] == versions[2] || versions[2] != versions[3] {
		t.Errorf("the versions are %v, want that only the last message changes nothing", versions)
	}
}
