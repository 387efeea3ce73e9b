package allocate

import (
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// A Service that could share an address but for one difference is told the difference, also when it
// names no address.
func TestSharingConflictIsNamedWhenNoAddressIsFree(t *testing.T) {
	udp := func(s *view.Service) { s.Ports[0].Protocol = "UDP" }
	tests := map[string]struct {
		first, second []func(*view.Service)
		want          names.Reason
		words         []string
	}{
		"one port is used twice": {
			first: []func(*view.Service){withSharingKeyAndPort("k", 80)}, second: []func(*view.Service){withSharingKeyAndPort("k", 80)},
			want: names.ReasonPortConflict, words: []string{"192.0.2.1 is held by Service default/first", "both use TCP/80"},
		},
		"one is Local, the other is not": {
			first: []func(*view.Service){withSharingKeyAndPort("k", 80)}, second: []func(*view.Service){withSharingKeyAndPort("k", 53), udp, withLocalTrafficPolicy("app=a")},
			want: names.ReasonTrafficPolicyConflict, words: []string{"default/first", "one has externalTrafficPolicy Local"},
		},
		"both Local, other Pods": {
			first: []func(*view.Service){withSharingKeyAndPort("k", 80), withLocalTrafficPolicy("app=a")}, second: []func(*view.Service){withSharingKeyAndPort("k", 81), withLocalTrafficPolicy("app=b")},
			want: names.ReasonTrafficPolicyConflict, words: []string{"default/first", "selectors differ"},
		},
		"the keys differ": {
			first: []func(*view.Service){withSharingKeyAndPort("k", 80)}, second: []func(*view.Service){withSharingKeyAndPort("m", 81)},
			want: names.ReasonSharingKeyDiffers, words: []string{"default/first", `its sharing key is "k", not "m"`},
		},
		"the holder does not share": {
			second: []func(*view.Service){withSharingKeyAndPort("m", 81)}, want: names.ReasonPoolExhausted,
		},
		"the Service does not share": {
			first: []func(*view.Service){withSharingKeyAndPort("k", 80)}, want: names.ReasonPoolExhausted,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			for _, named := range []string{"", "a"} {
				w := newLedgerHarness(t, newPool(t, "a", "192.0.2.1"))
				w.editServiceAndCarryOutDecision("first", tc.first...)
				w.wantDecision(w.editServiceAndCarryOutDecision("second", append(tc.second, withRequestedPool(named))...), "", tc.want, tc.words...)
			}
		})
	}
}

// In a large pool that is full, the key of some other Service is no reason.
func TestFullPoolIsExhaustedDespiteOtherSharingKey(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0/31"))
	w.editServiceAndCarryOutDecision("first", withSharingKeyAndPort("k", 80))
	w.editServiceAndCarryOutDecision("second")
	w.wantDecision(w.editServiceAndCarryOutDecision("third", withSharingKeyAndPort("m", 81)), "", names.ReasonPoolExhausted)
}

// The key of a Service in another namespace is a secret of its owner: with the key, anybody could
// share the address.
func TestSharingKeyOfAnotherNamespaceIsNotTold(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "a", "192.0.2.1"))
	w.editServiceAndCarryOutDecision("first", withSharingKeyAndPort("secret", 80))
	for _, edits := range [][]func(*view.Service){nil, {withRequestedAddresses("192.0.2.1")}} {
		d := w.editServiceAndCarryOutDecision("second", append(edits, inNamespace("other"), withSharingKeyAndPort("m", 81))...)
		w.wantDecision(d, "", names.ReasonSharingKeyDiffers, "its sharing key differs")
	}
}

func TestDualStackServicesShareBothAddressesOrNone(t *testing.T) {
	dual := func(key string, port uint16) []func(*view.Service) {
		return []func(*view.Service){withDualStack(view.RequireDualStack), withSharingKeyAndPort(key, port)}
	}
	onSet := func(w *ledgerHarness) {
		w.wantDecision(w.editServiceAndCarryOutDecision("first", append(dual("k", 80), withRequestedAddresses("192.0.2.11", "fd00:1::d5"))...), "192.0.2.11, fd00:1::d5", names.ReasonAssigned)
	}
	t.Run("both addresses of a holder", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "a", "192.0.2.11", "fd00:1::d0/124"))
		onSet(w)
		w.wantDecision(w.editServiceAndCarryOutDecision("second", dual("k", 443)...), "192.0.2.11, fd00:1::d5", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("third", append(dual("k", 8080), withRequestedPool("a"))...), "192.0.2.11, fd00:1::d5", names.ReasonAssigned)
	})
	t.Run("of two pools", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "four", "192.0.2.11"), newPool(t, "six", "fd00:1::d0/124"))
		onSet(w)
		w.wantDecision(w.editServiceAndCarryOutDecision("second", dual("k", 443)...), "192.0.2.11, fd00:1::d5", names.ReasonAssigned)
	})
	t.Run("two that nobody has, when these are lower", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "a", "192.0.2.10-192.0.2.11", "fd00:1::d0/124"))
		onSet(w)
		w.wantDecision(w.editServiceAndCarryOutDecision("second", dual("k", 443)...), "192.0.2.10, fd00:1::d0", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("third", dual("k", 443)...), "192.0.2.11, fd00:1::d5", names.ReasonAssigned)
	})
	t.Run("neither, when one cannot be shared", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "a", "192.0.2.11-192.0.2.12", "fd00:1::d0/124"))
		onSet(w)
		w.wantDecision(w.editServiceAndCarryOutDecision("six", withSingleStackIPv6, withSharingKeyAndPort("k", 443), withRequestedAddresses("fd00:1::d5")), "fd00:1::d5", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("second", dual("k", 443)...), "192.0.2.12, fd00:1::d0", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("third", dual("m", 443)...), "", names.ReasonSharingKeyDiffers, "192.0.2.11 is held by Service default/first")
		w.wantDecision(w.editServiceAndCarryOutDecision("fourth", dual("k", 443)...), "", names.ReasonPortConflict, "fd00:1::d5 is held by Service default/six")
	})
	t.Run("a Service that becomes dual-stack joins the rest of the set", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "a", "192.0.2.11", "fd00:1::d0/124"))
		onSet(w)
		w.wantDecision(w.editServiceAndCarryOutDecision("second", withSharingKeyAndPort("k", 443)), "192.0.2.11", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("second", withDualStack(view.PreferDualStack)), "192.0.2.11, fd00:1::d5", names.ReasonAssigned)
	})
	t.Run("a holder of one family is a whole set too", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "a", "192.0.2.11", "fd00:1::d0/124"))
		w.editServiceAndCarryOutDecision("first", withSharingKeyAndPort("k", 80))
		w.wantDecision(w.editServiceAndCarryOutDecision("second", dual("k", 443)...), "192.0.2.11, fd00:1::d0", names.ReasonAssigned)
	})
	t.Run("a whole set of one Service before a part of another one", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "a", "192.0.2.10-192.0.2.12", "fd00:1::d0/124"))
		onSet(w)
		w.wantDecision(w.editServiceAndCarryOutDecision("four", withSharingKeyAndPort("k", 53), withRequestedAddresses("192.0.2.10")), "192.0.2.10", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("second", dual("k", 443)...), "192.0.2.11, fd00:1::d5", names.ReasonAssigned)
	})
	t.Run("two that nobody has before a part of another one", func(t *testing.T) {
		for _, pools := range [][]*snapshot.Pool{
			{newPool(t, "a", "192.0.2.10-192.0.2.12", "fd00:1::d0/124")}, {newPool(t, "four", "192.0.2.10-192.0.2.12"), newPool(t, "six", "fd00:1::d0/124")},
		} {
			w := newLedgerHarness(t, pools...)
			w.editServiceAndCarryOutDecision("four", withSharingKeyAndPort("k", 80))
			w.wantDecision(w.editServiceAndCarryOutDecision("six", withSingleStackIPv6, withSharingKeyAndPort("k", 80)), "fd00:1::d0", names.ReasonAssigned)
			w.wantDecision(w.editServiceAndCarryOutDecision("second", dual("k", 443)...), "192.0.2.11, fd00:1::d1", names.ReasonAssigned)
			w.wantDecision(w.editServiceAndCarryOutDecision("third", append(dual("k", 444), withDualStack(view.PreferDualStack))...), "192.0.2.11, fd00:1::d1", names.ReasonAssigned)
		}
	})
	t.Run("the set of the one that may be shared", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "a", "192.0.2.11-192.0.2.12", "fd00:1::d0/124"))
		onSet(w)
		w.wantDecision(w.editServiceAndCarryOutDecision("second", dual("k", 80)...), "192.0.2.12, fd00:1::d0", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("third", append(dual("k", 443), withRequestedAddresses("192.0.2.11", "fd00:1::d5"))...), "192.0.2.11, fd00:1::d5", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("fourth", dual("k", 443)...), "192.0.2.12, fd00:1::d0", names.ReasonAssigned)
	})
}

// A Service that may not share any more holds its address together with the other holders until its
// status is written. Afterwards, nobody takes the address for one that could be shared.
func TestAddressOfFormerSharerIsNotShared(t *testing.T) {
	tests := map[string]struct {
		edit, newcomer func(*view.Service)
		want           names.Reason
	}{
		"a port is used twice": {
			edit: withSharingKeyAndPort("k", 80), newcomer: withSharingKeyAndPort("k", 80), want: names.ReasonPortConflict,
		},
		"the key differs": {
			edit: withSharingKeyAndPort("m", 81), newcomer: withSharingKeyAndPort("m", 82), want: names.ReasonSharingKeyDiffers,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newLedgerHarness(t, newPool(t, "a", "192.0.2.1/32"))
			w.wantDecision(w.editServiceAndCarryOutDecision("stays", withSharingKeyAndPort("k", 80)), "192.0.2.1", names.ReasonAssigned)
			w.wantDecision(w.editServiceAndCarryOutDecision("leaves", withSharingKeyAndPort("k", 81)), "192.0.2.1", names.ReasonAssigned)
			w.wantDecision(w.editServiceAndCarryOutDecision("leaves", tc.edit), "", tc.want)
			w.wantDecision(w.editServiceAndCarryOutDecision("new", tc.newcomer), "", tc.want)
			w.deleteService("leaves")
			w.wantDecision(w.editServiceAndCarryOutDecision("other", tc.newcomer), "", tc.want)
			w.deleteService("stays")
			w.wantDecision(w.editServiceAndCarryOutDecision("other"), "192.0.2.1", names.ReasonAssigned)
		})
	}
	t.Run("while the status is not written", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "a", "192.0.2.1/32"))
		w.editServiceAndCarryOutDecision("stays", withSharingKeyAndPort("k", 80))
		w.editServiceAndCarryOutDecision("leaves", withSharingKeyAndPort("k", 81))
		leaving := *w.lastServiceByName["leaves"]
		withSharingKeyAndPort("m", 81)(&leaving)
		w.ledger.CommitOldAndNewAddresses(&leaving, DecideAssignment(&leaving, w.ledger, w.snapshot))
		w.wantDecision(w.editServiceAndCarryOutDecision("new", withSharingKeyAndPort("m", 82)), "", names.ReasonSharingKeyDiffers)
	})
}
