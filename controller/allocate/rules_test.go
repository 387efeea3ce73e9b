package allocate

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

func TestSharingRules(t *testing.T) {
	udp := func(s *view.Service) { s.Ports[0].Protocol = "UDP" }
	tests := map[string]struct {
		first, second []func(*view.Service)
		want          names.Reason
		words         string
	}{
		"one key, other ports":           {first: []func(*view.Service){withSharingKeyAndPort("k", 80)}, second: []func(*view.Service){withSharingKeyAndPort("k", 81)}, want: names.ReasonAssigned},
		"one key, one number, TCP, UDP":  {first: []func(*view.Service){withSharingKeyAndPort("k", 53)}, second: []func(*view.Service){withSharingKeyAndPort("k", 53), udp}, want: names.ReasonAssigned},
		"across namespaces":              {first: []func(*view.Service){withSharingKeyAndPort("k", 80)}, second: []func(*view.Service){inNamespace("other"), withSharingKeyAndPort("k", 81)}, want: names.ReasonAssigned},
		"both Local, the same Pods":      {first: []func(*view.Service){withSharingKeyAndPort("k", 80), withLocalTrafficPolicy("app=a")}, second: []func(*view.Service){withSharingKeyAndPort("k", 81), withLocalTrafficPolicy("app=a")}, want: names.ReasonAssigned},
		"Local without Pods, Cluster":    {first: []func(*view.Service){withSharingKeyAndPort("k", 80), withLocalTrafficPolicy("")}, second: []func(*view.Service){withSharingKeyAndPort("k", 81)}, want: names.ReasonAssigned},
		"one port is used twice":         {first: []func(*view.Service){withSharingKeyAndPort("k", 80)}, second: []func(*view.Service){withSharingKeyAndPort("k", 80)}, want: names.ReasonPortConflict, words: "both use TCP/80"},
		"the keys differ":                {first: []func(*view.Service){withSharingKeyAndPort("k", 80)}, second: []func(*view.Service){withSharingKeyAndPort("m", 81)}, want: names.ReasonSharingKeyDiffers, words: `its sharing key is "k", not "m"`},
		"the first has no key":           {first: nil, second: []func(*view.Service){withSharingKeyAndPort("k", 81)}, want: names.ReasonAddressInUse, words: "that Service has no sharing key"},
		"the second has no key":          {first: []func(*view.Service){withSharingKeyAndPort("k", 80)}, second: nil, want: names.ReasonAddressInUse, words: "this Service has no sharing key"},
		"an empty key is none":           {first: []func(*view.Service){withSharingKeyAndPort("", 80)}, second: []func(*view.Service){withSharingKeyAndPort("", 81)}, want: names.ReasonAddressInUse},
		"one is Local, the other is not": {first: []func(*view.Service){withSharingKeyAndPort("k", 80)}, second: []func(*view.Service){withSharingKeyAndPort("k", 81), withLocalTrafficPolicy("app=a")}, want: names.ReasonTrafficPolicyConflict, words: "one has externalTrafficPolicy Local"},
		"both Local, other Pods":         {first: []func(*view.Service){withSharingKeyAndPort("k", 80), withLocalTrafficPolicy("app=a")}, second: []func(*view.Service){withSharingKeyAndPort("k", 81), withLocalTrafficPolicy("app=b")}, want: names.ReasonTrafficPolicyConflict, words: "selectors differ"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0/29"))
			w.wantDecision(w.editServiceAndCarryOutDecision("first", tc.first...), "192.0.2.0", names.ReasonAssigned)
			d := w.editServiceAndCarryOutDecision("second", append(tc.second, withRequestedAddresses("192.0.2.0"))...)
			if tc.want == names.ReasonAssigned {
				w.wantDecision(d, "192.0.2.0", names.ReasonAssigned)
				return
			}
			w.wantDecision(d, "", tc.want, "192.0.2.0 is held by Service default/first", tc.words)
			// If the choice is free, it gets the same address when it may share it, and the next
			// one otherwise.
			w.wantDecision(w.editServiceAndCarryOutDecision("second", withRequestedAddresses()), "192.0.2.1", names.ReasonAssigned)
		})
	}
}

func TestServiceThatMayNoLongerShareLosesTheAddress(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0/29"))
	w.editServiceAndCarryOutDecision("first", withSharingKeyAndPort("k", 80))
	w.wantDecision(w.editServiceAndCarryOutDecision("second", withSharingKeyAndPort("k", 81)), "192.0.2.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("second", withSharingKeyAndPort("k", 80)), "192.0.2.1", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("first"), "192.0.2.0", names.ReasonAssigned)
	// The only holder may change its sharing.
	w.wantDecision(w.editServiceAndCarryOutDecision("first", withSharingKeyAndPort("m", 443)), "192.0.2.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("third", withSharingKeyAndPort("m", 80)), "192.0.2.0", names.ReasonAssigned)
}

func TestIPFamilyPolicies(t *testing.T) {
	v4, v6 := func() *snapshot.Pool { return newPool(t, "four", "192.0.2.0/30") }, func() *snapshot.Pool { return newPool(t, "six", "fd00:1::/126") }
	both := func() *snapshot.Pool { return newPool(t, "z-both", "198.51.100.0/30", "fd00:2::/126") }
	one := func() *snapshot.Pool { return newPool(t, "one", "192.0.2.9", "fd00:3::9") }
	tests := map[string]struct {
		pools  []*snapshot.Pool
		edits  []func(*view.Service)
		want   string
		pools2 []string
		reason names.Reason
		waits  bool
	}{
		"one family from a pool of two":                       {pools: []*snapshot.Pool{both()}, want: "198.51.100.0", reason: names.ReasonAssigned},
		"IPv6 alone":                                          {pools: []*snapshot.Pool{v4(), both()}, edits: []func(*view.Service){withSingleStackIPv6}, want: "fd00:2::", reason: names.ReasonAssigned},
		"required, a later pool with both beats two":          {pools: []*snapshot.Pool{v4(), v6(), both()}, edits: []func(*view.Service){withDualStack(view.RequireDualStack)}, want: "198.51.100.0, fd00:2::", reason: names.ReasonAssigned},
		"required, two pools where none has both":             {pools: []*snapshot.Pool{v4(), v6()}, edits: []func(*view.Service){withDualStack(view.RequireDualStack)}, want: "192.0.2.0, fd00:1::", pools2: []string{"four", "six"}, reason: names.ReasonAssigned},
		"the order is IPv4, IPv6 whatever comes first":        {pools: []*snapshot.Pool{both()}, edits: []func(*view.Service){withDualStack(view.RequireDualStack), withPrimaryIPv6}, want: "198.51.100.0, fd00:2::", reason: names.ReasonAssigned},
		"required, one family in all":                         {pools: []*snapshot.Pool{v6()}, edits: []func(*view.Service){withDualStack(view.RequireDualStack)}, reason: names.ReasonPoolExhausted, waits: true},
		"preferred, both from one":                            {pools: []*snapshot.Pool{v4(), one()}, edits: []func(*view.Service){withDualStack(view.PreferDualStack)}, want: "192.0.2.9, fd00:3::9", reason: names.ReasonAssigned},
		"preferred, two pools":                                {pools: []*snapshot.Pool{v6(), v4()}, edits: []func(*view.Service){withDualStack(view.PreferDualStack)}, want: "192.0.2.0, fd00:1::", pools2: []string{"four", "six"}, reason: names.ReasonAssigned},
		"preferred, only the first family":                    {pools: []*snapshot.Pool{v4()}, edits: []func(*view.Service){withDualStack(view.PreferDualStack)}, want: "192.0.2.0", reason: names.ReasonAssigned, waits: true},
		"preferred, only the second family":                   {pools: []*snapshot.Pool{v6()}, edits: []func(*view.Service){withDualStack(view.PreferDualStack)}, want: "fd00:1::", reason: names.ReasonAssigned, waits: true},
		"preferred by a Service of one cluster IP: only that": {pools: []*snapshot.Pool{both()}, edits: []func(*view.Service){func(s *view.Service) { s.FamilyPolicy = view.PreferDualStack }}, want: "198.51.100.0", reason: names.ReasonAssigned},
		"required with one cluster IP":                        {pools: []*snapshot.Pool{both()}, edits: []func(*view.Service){func(s *view.Service) { s.FamilyPolicy = view.RequireDualStack }}, reason: names.ReasonFamilyMismatch, waits: true},
		"asked for, from two pools":                           {pools: []*snapshot.Pool{v4(), v6()}, edits: []func(*view.Service){withDualStack(view.RequireDualStack), withRequestedAddresses("fd00:1::2", "192.0.2.2")}, want: "fd00:1::2, 192.0.2.2", pools2: []string{"six", "four"}, reason: names.ReasonAssigned},
		"asked for, one address for two families":             {pools: []*snapshot.Pool{both()}, edits: []func(*view.Service){withDualStack(view.PreferDualStack), withRequestedAddresses("198.51.100.1")}, reason: names.ReasonFamilyMismatch, waits: true},
		"the named pool alone counts":                         {pools: []*snapshot.Pool{v4(), v6(), both()}, edits: []func(*view.Service){withDualStack(view.PreferDualStack), withRequestedPool("four")}, want: "192.0.2.0", reason: names.ReasonAssigned, waits: true},
		"the named pool lacks what is required":               {pools: []*snapshot.Pool{v4(), v6(), both()}, edits: []func(*view.Service){withDualStack(view.RequireDualStack), withRequestedPool("four")}, reason: names.ReasonPoolExhausted, waits: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newLedgerHarness(t, tc.pools...)
			d := w.editServiceAndCarryOutDecision("s", tc.edits...)
			w.wantDecision(d, tc.want, tc.reason)
			if !slices.Equal(d.PoolsOfAllAddressesIfSeveral, tc.pools2) || (len(d.PoolsOfAllAddressesIfSeveral) > 0 && d.PoolOfFirstAddress != d.PoolsOfAllAddressesIfSeveral[0]) {
				t.Errorf("the pools are %q, %q; want %q", d.PoolOfFirstAddress, d.PoolsOfAllAddressesIfSeveral, tc.pools2)
			}
			if d.DecideAgainWhenAddressesFree != tc.waits {
				t.Errorf("it waits for more: %v, want %v", d.DecideAgainWhenAddressesFree, tc.waits)
			}
			w.restartController()
			if again := w.editServiceAndCarryOutDecision("s"); !slices.Equal(again.Addresses, d.Addresses) {
				t.Errorf("after a restart it has %v, want %v", again.Addresses, d.Addresses)
			}
		})
	}
}

func TestOtherFamilyIsAddedWhenAvailable(t *testing.T) {
	v4, more := newPool(t, "four", "192.0.2.0/30"), newPool(t, "more", "192.0.2.8", "fd00:1::1")
	w := newLedgerHarness(t, v4)
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withDualStack(view.PreferDualStack)), "192.0.2.0", names.ReasonAssigned)
	w.setPools(v4, more)
	w.editServiceAndCarryOutDecision("other", withSingleStackIPv6)
	if d := w.editServiceAndCarryOutDecision("s"); !d.DecideAgainWhenAddressesFree || view.JoinAddresses(d.Addresses) != "192.0.2.0" {
		t.Errorf("while the other family is used up: %+v", d)
	}
	w.deleteService("other")
	d := w.editServiceAndCarryOutDecision("s")
	w.wantDecision(d, "192.0.2.0, fd00:1::1", names.ReasonAssigned, "from the pools four, more")
	if d.DecideAgainWhenAddressesFree || d.PoolOfFirstAddress != "four" || !slices.Equal(d.PoolsOfAllAddressesIfSeveral, []string{"four", "more"}) {
		t.Errorf("complete: %+v", d)
	}
	// Its own pool comes first when it has the family.
	w = newLedgerHarness(t, newPool(t, "four", "192.0.2.0/30"))
	w.editServiceAndCarryOutDecision("s", withDualStack(view.PreferDualStack))
	w.setPools(newPool(t, "a-six", "fd00:9::/126"), newPool(t, "four", "192.0.2.0/30", "fd00:1::/126"))
	w.wantDecision(w.editServiceAndCarryOutDecision("s"), "192.0.2.0, fd00:1::", names.ReasonAssigned)
	// A Service that drops a family loses only that address.
	w.wantDecision(w.editServiceAndCarryOutDecision("s", func(s *view.Service) { s.ClusterIPs, s.FamilyPolicy = s.ClusterIPs[:1], view.SingleStack }), "192.0.2.0", names.ReasonAssigned)
}

func TestPoolPriority(t *testing.T) {
	p := func(name, entry string, edits ...func(*snapshot.Pool)) *snapshot.Pool {
		return editPool(newPool(t, name, entry), edits...)
	}
	web := withLabel("tier", "web")
	tests := map[string]struct {
		pools  []*snapshot.Pool
		edits  []func(*view.Service)
		want   string
		reason names.Reason
	}{
		"open pools by name":                             {pools: []*snapshot.Pool{p("a", "192.0.2.1"), p("b", "192.0.2.2")}, want: "192.0.2.1", reason: names.ReasonAssigned},
		"a pool with a priority alone before open ones":  {pools: []*snapshot.Pool{p("a", "192.0.2.1"), p("b", "192.0.2.2", restrictedToNamespaces(0))}, want: "192.0.2.2", reason: names.ReasonAssigned},
		"the lower number first":                         {pools: []*snapshot.Pool{p("a", "192.0.2.1", restrictedToNamespaces(20)), p("b", "192.0.2.2", restrictedToNamespaces(10))}, want: "192.0.2.2", reason: names.ReasonAssigned},
		"0 is last":                                      {pools: []*snapshot.Pool{p("a", "192.0.2.1", restrictedToNamespaces(0)), p("b", "192.0.2.2", restrictedToNamespaces(1000))}, want: "192.0.2.2", reason: names.ReasonAssigned},
		"below 0 counts as 0":                            {pools: []*snapshot.Pool{p("a", "192.0.2.1", restrictedToNamespaces(-7)), p("b", "192.0.2.2", restrictedToNamespaces(1000))}, want: "192.0.2.2", reason: names.ReasonAssigned},
		"equals by name, however they admit":             {pools: []*snapshot.Pool{p("a", "192.0.2.1", selectingServices("tier=web")), p("b", "192.0.2.2", restrictedToNamespaces(0, "default")), p("c", "192.0.2.3", restrictedToNamespaces(0))}, edits: []func(*view.Service){web}, want: "192.0.2.1", reason: names.ReasonAssigned},
		"by label, one of several values":                {pools: []*snapshot.Pool{p("a", "192.0.2.1"), p("b", "192.0.2.2", selectingServices("tier in (web, api)"))}, edits: []func(*view.Service){web}, want: "192.0.2.2", reason: names.ReasonAssigned},
		"by the label's presence":                        {pools: []*snapshot.Pool{p("a", "192.0.2.1"), p("b", "192.0.2.2", selectingServices("tier"))}, edits: []func(*view.Service){web}, want: "192.0.2.2", reason: names.ReasonAssigned},
		"by another label as well":                       {pools: []*snapshot.Pool{p("a", "192.0.2.1"), p("b", "192.0.2.2", selectingServices("tier=web,size=big"))}, edits: []func(*view.Service){web}, want: "192.0.2.1", reason: names.ReasonAssigned},
		"one of two selectors is enough":                 {pools: []*snapshot.Pool{p("a", "192.0.2.1"), p("b", "192.0.2.2", selectingServices("tier=db", "tier=web"))}, edits: []func(*view.Service){web}, want: "192.0.2.2", reason: names.ReasonAssigned},
		"namespace and label both have to agree":         {pools: []*snapshot.Pool{p("a", "192.0.2.1", restrictedToNamespaces(1, "other"), selectingServices("tier=web")), p("b", "192.0.2.2", restrictedToNamespaces(2, "default"), selectingServices("tier=web"))}, edits: []func(*view.Service){web}, want: "192.0.2.2", reason: names.ReasonAssigned},
		"a namespace selector that matches no namespace": {pools: []*snapshot.Pool{p("a", "192.0.2.1", withServiceAllocationAdmittingNone, selectingServices("tier=web"))}, edits: []func(*view.Service){web}, reason: names.ReasonNoEligiblePool},
		"nor by name":                                    {pools: []*snapshot.Pool{p("a", "192.0.2.1", withServiceAllocationAdmittingNone)}, edits: []func(*view.Service){withRequestedPool("a")}, reason: names.ReasonPoolNotAllowed},
		"nor by address":                                 {pools: []*snapshot.Pool{p("a", "192.0.2.1", withServiceAllocationAdmittingNone)}, edits: []func(*view.Service){withRequestedAddresses("192.0.2.1")}, reason: names.ReasonPoolNotAllowed},
		"a restricted pool that asks to be named":        {pools: []*snapshot.Pool{p("a", "192.0.2.1", restrictedToNamespaces(1), withoutAutoAssign), p("b", "192.0.2.2")}, want: "192.0.2.2", reason: names.ReasonAssigned},
		"the next one when the first has no family":      {pools: []*snapshot.Pool{p("a", "fd00::1", restrictedToNamespaces(1)), p("b", "192.0.2.2")}, want: "192.0.2.2", reason: names.ReasonAssigned},
		"pool and address that do not agree":             {pools: []*snapshot.Pool{p("a", "192.0.2.1"), p("b", "192.0.2.2")}, edits: []func(*view.Service){withRequestedPool("b"), withRequestedAddresses("192.0.2.1")}, reason: names.ReasonInvalidRequest},
		"an excluded address that is asked for":          {pools: []*snapshot.Pool{p("a", "192.0.2.0/30", excludingRanges(t, "192.0.2.1"))}, edits: []func(*view.Service){withRequestedAddresses("192.0.2.1")}, reason: names.ReasonAddressNotInPool},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newLedgerHarness(t, tc.pools...)
			w.wantDecision(w.editServiceAndCarryOutDecision("s", tc.edits...), tc.want, tc.reason)
		})
	}
}

func TestAssignmentOrders(t *testing.T) {
	take := func(w *ledgerHarness, names ...string) (out []string) {
		for _, n := range names {
			out = append(out, view.JoinAddresses(w.editServiceAndCarryOutDecision(n).Addresses))
		}
		return out
	}
	check := func(t *testing.T, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	t.Run("lowest, without what is excluded", func(t *testing.T) {
		w := newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.8-192.0.2.10", "192.0.2.0/30"), excludingRanges(t, "192.0.2.9", "192.0.2.1-192.0.2.2")))
		check(t, take(w, "a", "b", "c", "d"), "192.0.2.8", "192.0.2.10", "192.0.2.0", "192.0.2.3")
		w.wantDecision(w.editServiceAndCarryOutDecision("e"), "", names.ReasonPoolExhausted)
		w.deleteService("b")
		check(t, take(w, "e"), "192.0.2.10")
	})
	t.Run("round robin", func(t *testing.T) {
		w := newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.0/30"), withAssignmentOrder(snapshot.OrderRoundRobin)))
		check(t, take(w, "a", "b"), "192.0.2.0", "192.0.2.1")
		w.deleteService("a")
		w.deleteService("b")
		check(t, take(w, "c", "d", "e", "f"), "192.0.2.2", "192.0.2.3", "192.0.2.0", "192.0.2.1")
		w.wantDecision(w.editServiceAndCarryOutDecision("g"), "", names.ReasonPoolExhausted)
	})
	t.Run("hash, the same name has the same address", func(t *testing.T) {
		fill := func(w *ledgerHarness) {
			for i := range 40 {
				w.editServiceAndCarryOutDecision("other-" + strconv.Itoa(i))
			}
		}
		first := newLedgerHarness(t, editPool(newPool(t, "a", "10.0.0.0/16"), withAssignmentOrder(snapshot.OrderHash)))
		a := take(first, "web", "api")
		second := newLedgerHarness(t, editPool(newPool(t, "a", "10.0.0.0/16"), withAssignmentOrder(snapshot.OrderHash)))
		fill(second)
		check(t, take(second, "api", "web"), a[1], a[0])
		second.deleteService("web")
		fill(second)
		check(t, take(second, "web"), a[0])
	})
	t.Run("hash, to the last address", func(t *testing.T) {
		w := newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.0/29"), withAssignmentOrder(snapshot.OrderHash)))
		got := take(w, "a", "b", "c", "d", "e", "f", "g", "h")
		slices.Sort(got)
		check(t, got, "192.0.2.0", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7")
	})
}

func TestServiceGetsSeveralAddressesPerFamily(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0-192.0.2.1", "fd00:1::/126"), newPool(t, "b", "198.51.100.0/30"))
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withRequestedAddressesPerFamily(2)), "192.0.2.0, 192.0.2.1", names.ReasonAssigned)
	d := w.editServiceAndCarryOutDecision("s", withRequestedAddressesPerFamily(3))
	w.wantDecision(d, "192.0.2.0, 192.0.2.1, 198.51.100.0", names.ReasonAssigned, "from the pools a, b")
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withRequestedAddressesPerFamily(1)), "192.0.2.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("two", withRequestedAddressesPerFamily(2), withDualStack(view.RequireDualStack)), "192.0.2.1, 198.51.100.0, fd00:1::, fd00:1::1", names.ReasonAssigned)
	d = w.editServiceAndCarryOutDecision("many", withRequestedAddressesPerFamily(8))
	w.wantDecision(d, "198.51.100.1, 198.51.100.2, 198.51.100.3", names.ReasonPoolExhausted, "fewer than the 8")
	if !d.DecideAgainWhenAddressesFree {
		t.Error("it does not wait for the others")
	}
	w.deleteService("two")
	w.wantDecision(w.editServiceAndCarryOutDecision("many"), "198.51.100.1, 198.51.100.2, 198.51.100.3, 198.51.100.0, 192.0.2.1", names.ReasonPoolExhausted)
	w.wantDecision(w.editServiceAndCarryOutDecision("many", withRequestedAddressesPerFamily(2), withRequestedAddresses("198.51.100.1", "192.0.2.1")), "198.51.100.1, 192.0.2.1", names.ReasonAssigned)
}

// A request that cannot be fulfilled has a text with each way out.
func TestRefusalTextsSayWhatToDo(t *testing.T) {
	dual := withDualStack(view.PreferDualStack)
	tests := map[string]struct {
		edits []func(*view.Service)
		want  names.Reason
		words []string
	}{
		"one address for two families": {edits: []func(*view.Service){dual, withRequestedAddresses("192.0.2.3")}, want: names.ReasonFamilyMismatch, words: []string{"ipFamilyPolicy SingleStack with the family IPv4", "request an IPv6 address too"}},
		"two addresses for one family": {edits: []func(*view.Service){withRequestedAddresses("192.0.2.3", "fd00:1::1")}, want: names.ReasonFamilyMismatch, words: []string{"request only an IPv4 address", "PreferDualStack"}},
		"the other family":             {edits: []func(*view.Service){withSingleStackIPv6, withRequestedAddresses("192.0.2.3")}, want: names.ReasonFamilyMismatch, words: []string{"request only an IPv6 address"}},
		"no pool":                      {want: names.ReasonNoPools, words: []string{"in namespace metallb-system, the only one that Gantry reads: create one there"}},
		"an unknown pool":              {edits: []func(*view.Service){withRequestedPool("x")}, want: names.ReasonPoolNotFound, words: []string{`no IPAddressPool "x" exists in namespace metallb-system`, "correct the annotation"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newLedgerHarness(t)
			w.wantDecision(w.editServiceAndCarryOutDecision("s", tc.edits...), "", tc.want, tc.words...)
		})
	}
}

// A user can write annotations of 256 KiB, and must not cause conditions of that size, neither of
// the own Service nor of another one.
func TestTextsQuoteShortPartsOfLongRequests(t *testing.T) {
	long := strings.Repeat("x", 1<<17)
	w := newLedgerHarness(t, newPool(t, "a", "192.0.2.1"))
	w.editServiceAndCarryOutDecision("first", withSharingKeyAndPort(long, 80))
	for name, edits := range map[string][]func(*view.Service){
		"key": {withSharingKeyAndPort("m"+long, 81)}, "pool": {withRequestedPool(long)}, "address": {withSharingKeyAndPort("k", 81), withRequestedAddresses("192.0.2.1")},
	} {
		if d := w.editServiceAndCarryOutDecision(name, edits...); len(d.Addresses) > 0 || len(d.Text) > 1000 {
			t.Errorf("%s: %v with a text of %d bytes", name, d.Addresses, len(d.Text))
		}
	}
}
