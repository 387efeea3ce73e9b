package elect

import (
	"net/netip"
	"slices"
	"testing"
	"time"
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
