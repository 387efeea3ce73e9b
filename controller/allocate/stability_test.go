package allocate

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// TestPoolEditsChangeNoAssignedAddress assigns an address, edits the pools, and decides again: at
// once, and after a restart.
func TestPoolEditsChangeNoAssignedAddress(t *testing.T) {
	p := func(name, entry string, edits ...func(*snapshot.Pool)) *snapshot.Pool {
		return editPool(newPool(t, name, entry), edits...)
	}
	tests := map[string]struct {
		edits  []func(*view.Service)
		after  []*snapshot.Pool
		reason names.Reason
		words  string
	}{
		"shrunk":                                     {after: []*snapshot.Pool{p("a", "192.0.2.128/25")}, reason: names.ReasonAddressNotInPool, words: "no pool contains 192.0.2.0"},
		"deleted":                                    {reason: names.ReasonAddressNotInPool},
		"deleted, another is there":                  {after: []*snapshot.Pool{p("b", "198.51.100.0/24")}, reason: names.ReasonAddressNotInPool},
		"renamed":                                    {after: []*snapshot.Pool{p("b", "192.0.2.0/24")}, reason: names.ReasonAssigned, words: `"b"`},
		"grown, with lower addresses":                {after: []*snapshot.Pool{p("a", "192.0.0.0/16")}, reason: names.ReasonAssigned},
		"avoids .0 and .255":                         {after: []*snapshot.Pool{p("a", "192.0.2.0/24", func(p *snapshot.Pool) { p.AvoidBuggyIPs = true })}, reason: names.ReasonAddressNotInPool, words: "excludes"},
		"excludes the address":                       {after: []*snapshot.Pool{p("a", "192.0.2.0/24", excludingRanges(t, "192.0.2.0/28"))}, reason: names.ReasonAddressNotInPool, words: "excludes"},
		"for another namespace":                      {after: []*snapshot.Pool{p("a", "192.0.2.0/24", restrictedToNamespaces(1, "other"))}, reason: names.ReasonPoolNotAllowed, words: "does not admit"},
		"for other labels":                           {after: []*snapshot.Pool{p("a", "192.0.2.0/24", selectingServices("tier=db"))}, reason: names.ReasonPoolNotAllowed},
		"no longer unasked":                          {after: []*snapshot.Pool{p("a", "192.0.2.0/24", withoutAutoAssign)}, reason: names.ReasonAssigned},
		"beside a better one":                        {after: []*snapshot.Pool{p("0", "198.51.100.0/24", restrictedToNamespaces(1)), p("a", "192.0.2.0/24")}, reason: names.ReasonAssigned},
		"in another order":                           {after: []*snapshot.Pool{p("a", "192.0.2.0/24", withAssignmentOrder(snapshot.OrderHash))}, reason: names.ReasonAssigned},
		"a quota that is exceeded":                   {after: []*snapshot.Pool{p("a", "192.0.2.0/24", withQuota(0, nil))}, reason: names.ReasonAssigned},
		"named, and shrunk":                          {edits: []func(*view.Service){withRequestedPool("a")}, after: []*snapshot.Pool{p("a", "192.0.2.128/25")}, reason: names.ReasonAddressNotInPool},
		"named, and created again with other ranges": {edits: []func(*view.Service){withRequestedPool("a")}, after: []*snapshot.Pool{p("a", "198.51.100.0/24")}, reason: names.ReasonAddressNotInPool},
		"named, and split":                           {edits: []func(*view.Service){withRequestedPool("a")}, after: []*snapshot.Pool{p("a", "192.0.2.128/25"), p("b", "192.0.2.0/25")}, reason: names.ReasonAddressNotInPool, words: "pool a does not contain"},
		"named, and deleted":                         {edits: []func(*view.Service){withRequestedPool("a")}, reason: names.ReasonPoolNotFound},
		"named, and renamed":                         {edits: []func(*view.Service){withRequestedPool("a")}, after: []*snapshot.Pool{p("b", "192.0.2.0/24")}, reason: names.ReasonPoolNotFound},
		"the address named, and it is gone":          {edits: []func(*view.Service){withRequestedAddresses("192.0.2.0")}, after: []*snapshot.Pool{p("a", "192.0.2.128/25")}, reason: names.ReasonAddressNotInPool},
		"the address named, for other Services":      {edits: []func(*view.Service){withRequestedAddresses("192.0.2.0")}, after: []*snapshot.Pool{p("a", "192.0.2.0/24", withServiceAllocationAdmittingNone)}, reason: names.ReasonPoolNotAllowed},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			before := p("a", "192.0.2.0/24")
			w := newLedgerHarness(t, before)
			w.wantDecision(w.editServiceAndCarryOutDecision("s", tc.edits...), "192.0.2.0", names.ReasonAssigned)
			w.setPools(tc.after...)
			for range 2 {
				w.wantDecision(w.editServiceAndCarryOutDecision("s"), "192.0.2.0", tc.reason, tc.words)
				w.restartController()
			}
			if d := w.editServiceAndCarryOutDecision("other"); view.JoinAddresses(d.Addresses) == "192.0.2.0" {
				t.Errorf("another Service was given the address too: %s", d.Text)
			}
			// Once the pool is restored, so is everything else.
			w.setPools(before)
			w.wantDecision(w.editServiceAndCarryOutDecision("s"), "192.0.2.0", names.ReasonAssigned)
		})
	}
}

func TestEditedRequestChangesAddressOfService(t *testing.T) {
	a, b := newPool(t, "a", "192.0.2.0/30"), newPool(t, "b", "198.51.100.0/30")
	w := newLedgerHarness(t, a, b)
	w.wantDecision(w.editServiceAndCarryOutDecision("s"), "192.0.2.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withRequestedPool("b")), "198.51.100.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withRequestedPool("nowhere")), "198.51.100.0", names.ReasonPoolNotFound, "keeps 198.51.100.0")
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withRequestedPool("")), "198.51.100.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withRequestedAddresses("192.0.2.3")), "192.0.2.3", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withRequestedAddresses("203.0.113.1")), "192.0.2.3", names.ReasonAddressNotInPool)
	// What was not available is assigned once it is.
	w.setPools(a, b, newPool(t, "c", "203.0.113.0/30"))
	w.wantDecision(w.editServiceAndCarryOutDecision("s"), "203.0.113.1", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("next"), "192.0.2.0", names.ReasonAssigned)
}

func TestOldAddressIsHeldUntilNewOneIsWritten(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0/30"))
	w.editServiceAndCarryOutDecision("s")
	s := w.lastServiceByName["s"]
	s.AddressesToExchange = parseAddresses("192.0.2.0")
	d := DecideAssignment(s, w.ledger, w.snapshot)
	w.wantDecision(d, "192.0.2.1", names.ReasonAssigned)
	w.ledger.CommitOldAndNewAddresses(s, d)
	w.wantDecision(w.editServiceAndCarryOutDecision("other"), "192.0.2.2", names.ReasonAssigned)
	if got := w.ledger.HoldersOfAddress(netip.MustParseAddr("192.0.2.0")); len(got) != 1 {
		t.Errorf("the old address is held by %v before the new one is written", got)
	}
	// The write fails.
	w.ledger.CommitAssignment(s, w.statusAddressesByService["s"], "a")
	w.wantDecision(DecideAssignment(s, w.ledger, w.snapshot), "192.0.2.1", names.ReasonAssigned)
	// The Service withdraws its request: the new address is free again.
	s.AddressesToExchange = nil
	w.wantDecision(w.editServiceAndCarryOutDecision("s"), "192.0.2.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("third"), "192.0.2.1", names.ReasonAssigned)
}

func TestReleaseAnnotationExchangesAddress(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0/30", "fd00:1::/126"))
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withDualStack(view.RequireDualStack)), "192.0.2.0, fd00:1::", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withAddressesToRelease("192.0.2.0")), "192.0.2.1, fd00:1::", names.ReasonAssigned)
	// The annotation may stay.
	w.wantDecision(w.editServiceAndCarryOutDecision("s"), "192.0.2.1, fd00:1::", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("other"), "192.0.2.0", names.ReasonAssigned)
	w.deleteService("other")
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withAddressesToRelease("192.0.2.0", "192.0.2.1")), "192.0.2.2, fd00:1::", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withAddressesToRelease("192.0.2.2"), withRequestedAddresses("192.0.2.2", "fd00:1::")), "192.0.2.2, fd00:1::", names.ReasonInvalidRequest, "remove one of the two")
	w.editServiceAndCarryOutDecision("s", withRequestedAddresses())

	// An address that cannot be exchanged is kept.
	w = newLedgerHarness(t, newPool(t, "a", "192.0.2.0"))
	w.editServiceAndCarryOutDecision("s")
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withAddressesToRelease("192.0.2.0")), "192.0.2.0", names.ReasonPoolExhausted, "keeps 192.0.2.0")
	testExchangeKeepsEachFamily(t)
	// An address that its pool no longer contains is exchanged within the pool that the Service
	// names.
	w.editServiceAndCarryOutDecision("s", withAddressesToRelease(), withRequestedPool("a"))
	w.setPools(newPool(t, "a", "192.0.2.8/30"))
	w.wantDecision(w.editServiceAndCarryOutDecision("s"), "192.0.2.0", names.ReasonAddressNotInPool)
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withAddressesToRelease("192.0.2.0")), "192.0.2.8", names.ReasonAssigned)
}

// testExchangeKeepsEachFamily exchanges an address while no other one of its family is free.
func testExchangeKeepsEachFamily(t *testing.T) {
	// The other family is no replacement, whether the Service has it already or gets it now.
	w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0", "fd00:1::/126"))
	w.editServiceAndCarryOutDecision("s", withDualStack(view.PreferDualStack))
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withAddressesToRelease("192.0.2.0")), "192.0.2.0, fd00:1::", names.ReasonPoolExhausted, "keeps 192.0.2.0")
	w = newLedgerHarness(t, newPool(t, "a", "fd00:1::"))
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withDualStack(view.PreferDualStack)), "fd00:1::", names.ReasonAssigned)
	w.setPools(newPool(t, "a", "fd00:1::"), newPool(t, "b", "192.0.2.0"))
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withAddressesToRelease("fd00:1::")), "fd00:1::, 192.0.2.0", names.ReasonPoolExhausted, "keeps fd00:1::")
	// One of two addresses is kept if only one other is free.
	w = newLedgerHarness(t, newPool(t, "a", "192.0.2.0-192.0.2.2"))
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withRequestedAddressesPerFamily(2)), "192.0.2.0, 192.0.2.1", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withAddressesToRelease("192.0.2.0", "192.0.2.1")), "192.0.2.2, 192.0.2.1", names.ReasonPoolExhausted, "keeps 192.0.2.1")
}

// TestRetiredAddressIsExchangedForItsFamily retires the only address of a Service that wants both
// families, while an address of the other family becomes free.
func TestRetiredAddressIsExchangedForItsFamily(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "a", "fd00:1::"))
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withDualStack(view.PreferDualStack)), "fd00:1::", names.ReasonAssigned)
	retiring := editPool(newPool(t, "a", "fd00:1::"), func(p *snapshot.Pool) {
		p.Retirement, p.ExcludedRanges = &snapshot.Retirement{WholePool: true}, p.Ranges
	})
	w.setPools(retiring, newPool(t, "b", "192.0.2.0"))
	w.ledger.UseSnapshot(w.snapshot)
	if d, moved := DecideAssignmentWithoutRetired(w.lastServiceByName["s"], w.ledger, w.snapshot); moved {
		t.Errorf("the Service gives up its retired IPv6 address for %v", d.Addresses)
	}
	w.setPools(retiring, newPool(t, "b", "192.0.2.0", "fd00:2::"))
	w.ledger.UseSnapshot(w.snapshot)
	d, moved := DecideAssignmentWithoutRetired(w.lastServiceByName["s"], w.ledger, w.snapshot)
	w.wantDecision(d, "fd00:2::, 192.0.2.0", names.ReasonAssigned)
	if !moved {
		t.Error("the Service keeps its retired address although another one of its family is free")
	}
}

func TestQuotas(t *testing.T) {
	a := editPool(newPool(t, "a", "192.0.2.0/29", "fd00:1::/125"), withQuota(1, map[string]int{"big": 2, "none": 0}))
	w := newLedgerHarness(t, a)
	w.wantDecision(w.editServiceAndCarryOutDecision("one"), "192.0.2.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("two"), "", names.ReasonQuotaExceeded, "namespace default", "(a)")
	w.wantDecision(w.editServiceAndCarryOutDecision("two", withRequestedAddresses("192.0.2.5")), "", names.ReasonQuotaExceeded, `pool "a"`)
	// Each family for itself.
	w.wantDecision(w.editServiceAndCarryOutDecision("six", withSingleStackIPv6), "fd00:1::", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("big-1", inNamespace("big")), "192.0.2.1", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("big-2", inNamespace("big"), withRequestedAddressesPerFamily(2)), "192.0.2.2", names.ReasonQuotaExceeded, "fewer than the 2")
	w.wantDecision(w.editServiceAndCarryOutDecision("nobody", inNamespace("none")), "", names.ReasonQuotaExceeded)
	w.restartController()
	w.wantDecision(w.editServiceAndCarryOutDecision("two", withRequestedAddresses()), "", names.ReasonQuotaExceeded)
	// Another pool is tried before the shortage is reported.
	w.setPools(a, newPool(t, "b", "198.51.100.0/30"))
	w.wantDecision(w.editServiceAndCarryOutDecision("two"), "198.51.100.0", names.ReasonAssigned)
	w.deleteService("one")
	w.wantDecision(w.editServiceAndCarryOutDecision("three"), "192.0.2.0", names.ReasonAssigned)

	// An address that is shared within a namespace counts once per namespace.
	w = newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.0/29"), withQuota(1, nil)))
	w.editServiceAndCarryOutDecision("one", withSharingKeyAndPort("k", 1))
	w.wantDecision(w.editServiceAndCarryOutDecision("two", withSharingKeyAndPort("k", 2)), "192.0.2.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("three", withSharingKeyAndPort("k", 3), withRequestedAddresses("192.0.2.0")), "192.0.2.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("elsewhere", inNamespace("other"), withSharingKeyAndPort("k", 4)), "192.0.2.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("further", inNamespace("other")), "", names.ReasonQuotaExceeded)
	w.deleteService("one")
	w.deleteService("two")
	w.wantDecision(w.editServiceAndCarryOutDecision("four"), "", names.ReasonQuotaExceeded)
	w.deleteService("three")
	w.wantDecision(w.editServiceAndCarryOutDecision("four"), "192.0.2.1", names.ReasonAssigned)
}

func TestReleasedAddressCoolsDownBeforeReuse(t *testing.T) {
	w := newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.0/31"), withCooldown(time.Minute)))
	w.editServiceAndCarryOutDecision("one")
	w.editServiceAndCarryOutDecision("two")
	w.deleteService("one")
	w.wantDecision(w.editServiceAndCarryOutDecision("three"), "", names.ReasonPoolExhausted)
	w.wantDecision(w.editServiceAndCarryOutDecision("three", withRequestedAddresses("192.0.2.0")), "", names.ReasonCoolingDown, "default/one", "2026-01-01T00:01:00Z")
	// A Service of the same name may have it at once.
	w.wantDecision(w.editServiceAndCarryOutDecision("one"), "192.0.2.0", names.ReasonAssigned)
	w.deleteService("one")
	w.restartController()
	w.wantDecision(w.editServiceAndCarryOutDecision("three", withRequestedAddresses()), "", names.ReasonPoolExhausted)
	if _, next := w.ledger.AdvanceTime(w.currentTime); !next.Equal(w.currentTime.Add(time.Minute)) {
		t.Errorf("the Ledger wants to be called at %s, want in a minute", next)
	}
	w.advanceTime(59 * time.Second)
	w.wantDecision(w.editServiceAndCarryOutDecision("three"), "", names.ReasonPoolExhausted)
	if freed, next := w.ledger.AdvanceTime(w.currentTime.Add(time.Second)); len(freed) != 1 || !next.IsZero() {
		t.Errorf("after the cool-down %v is free, and it waits until %s", freed, next)
	}
	w.wantDecision(w.editServiceAndCarryOutDecision("three"), "192.0.2.0", names.ReasonAssigned)
	// A move also starts a cool-down.
	w.deleteService("two")
	w.advanceTime(time.Hour)
	w.wantDecision(w.editServiceAndCarryOutDecision("three", withAddressesToRelease("192.0.2.0")), "192.0.2.1", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("four"), "", names.ReasonPoolExhausted)
}

func TestReservations(t *testing.T) {
	web := view.ObjectKey{Namespace: "default", Name: "web"}
	t.Run("by address", func(t *testing.T) {
		w := newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.0/30"), withoutAutoAssign), newPool(t, "b", "198.51.100.0/30"))
		r := &snapshot.Reservation{Name: "r", Service: web, Addresses: parseAddresses("192.0.2.0", "198.51.100.0"), ExpiresAt: w.currentTime.Add(time.Hour)}
		if d := w.setReservations(r); d.Reason != names.ReasonReserved {
			t.Errorf("the reservation is %s: %s", d.Reason, d.Text)
		}
		w.wantDecision(w.editServiceAndCarryOutDecision("other"), "198.51.100.1", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("other", withRequestedAddresses("192.0.2.0")), "198.51.100.1", names.ReasonAddressReserved, `default/web by AddressReservation "r" until 2026-01-01T01:00:00Z`)
		w.wantDecision(w.editServiceAndCarryOutDecision("web"), "192.0.2.0", names.ReasonAssigned)
		w.deleteService("web")
		w.restartController()
		w.wantDecision(w.editServiceAndCarryOutDecision("other"), "198.51.100.1", names.ReasonAddressReserved)
		w.advanceTime(time.Hour)
		w.wantDecision(w.editServiceAndCarryOutDecision("other"), "192.0.2.0", names.ReasonAssigned)
		if d := w.setReservations(r); d.Reason != names.ReasonExpired {
			t.Errorf("after its time the reservation is %s: %s", d.Reason, d.Text)
		}
	})
	t.Run("of an address that another Service holds", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0/30"))
		w.editServiceAndCarryOutDecision("other")
		if d := w.setReservations(&snapshot.Reservation{Name: "r", Service: web, Addresses: parseAddresses("192.0.2.0")}); d.Reason != names.ReasonAddressInUse {
			t.Errorf("the reservation is %s: %s", d.Reason, d.Text)
		}
		w.wantDecision(w.editServiceAndCarryOutDecision("other"), "192.0.2.0", names.ReasonAssigned)
		w.deleteService("other")
		w.wantDecision(w.editServiceAndCarryOutDecision("third"), "192.0.2.1", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("web"), "192.0.2.0", names.ReasonAssigned)
	})
	t.Run("of a pool, ahead of the Service", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0/30"), newPool(t, "b", "198.51.100.0/30", "fd00:1::/126"))
		r := &snapshot.Reservation{Name: "r", Service: web, PoolToChooseFrom: "b"}
		if d := w.setReservations(r); view.JoinAddresses(d.Addresses) != "198.51.100.0, fd00:1::" {
			t.Errorf("it keeps %v, %s: %s", d.Addresses, d.Reason, d.Text)
		}
		w.wantDecision(w.editServiceAndCarryOutDecision("other", withRequestedPool("b")), "198.51.100.1", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("web", withDualStack(view.RequireDualStack)), "198.51.100.0, fd00:1::", names.ReasonAssigned)
		if d := w.setReservations(r); view.JoinAddresses(d.Addresses) != "198.51.100.0, fd00:1::" {
			t.Errorf("later it keeps %v", d.Addresses)
		}
		if d := w.setReservations(&snapshot.Reservation{Name: "x", Service: web, PoolToChooseFrom: "nowhere"}); d.Reason != names.ReasonPoolNotFound {
			t.Errorf("of a pool that is not there: %s", d.Reason)
		}
	})
	t.Run("of what a Service had", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0/30"))
		r := &snapshot.Reservation{Name: "r", Service: web}
		if d := w.setReservations(r); d.Reason != names.ReasonNoAddress {
			t.Errorf("without a Service it is %s: %s", d.Reason, d.Text)
		}
		w.editServiceAndCarryOutDecision("web")
		w.setReservations(r)
		w.deleteService("web")
		w.wantDecision(w.editServiceAndCarryOutDecision("other"), "192.0.2.1", names.ReasonAssigned)
		w.restartController()
		w.setReservations(r) // the status lags behind
		w.wantDecision(w.editServiceAndCarryOutDecision("third"), "192.0.2.2", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("web"), "192.0.2.0", names.ReasonAssigned)
		w.deleteService("web")
		w.setReservations() // and the reservation is gone
		w.wantDecision(w.editServiceAndCarryOutDecision("fourth"), "192.0.2.0", names.ReasonAssigned)
	})
	t.Run("what the status says is kept from the start", func(t *testing.T) {
		w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0/30"))
		w.snapshot.Reservations = []*snapshot.Reservation{{Name: "r", Service: web, StatusAddresses: parseAddresses("192.0.2.0")}}
		w.wantDecision(w.editServiceAndCarryOutDecision("other"), "192.0.2.1", names.ReasonAssigned)
	})
}

func TestAddressIsProbedBeforeAssignment(t *testing.T) {
	w := newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.0/30"), withAcquireProbe))
	d := w.editServiceAndCarryOutDecision("s")
	w.wantDecision(d, "", names.ReasonProbing, "192.0.2.0")
	if view.JoinAddresses(d.AddressesToProbe) != "192.0.2.0" || len(w.ledger.WithheldAddressesAwaitingProbe()) != 1 {
		t.Fatalf("proposed is %v, the Ledger has %v", d.AddressesToProbe, w.ledger.WithheldAddressesAwaitingProbe())
	}
	w.wantDecision(w.editServiceAndCarryOutDecision("other"), "", names.ReasonProbing, "192.0.2.1")
	w.ledger.RecordAcquireProbeFoundNoHost(parseAddresses("192.0.2.0")[0])
	w.ledger.QuarantineAddressAfterProbeAnswer(parseAddresses("192.0.2.1")[0], "02:00:00:00:00:01")
	w.wantDecision(w.editServiceAndCarryOutDecision("s"), "192.0.2.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("other"), "", names.ReasonProbing, "192.0.2.2")
	w.ledger.RecordAcquireProbeFoundNoHost(parseAddresses("192.0.2.2")[0])
	w.wantDecision(w.editServiceAndCarryOutDecision("other"), "192.0.2.2", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("third", withRequestedAddresses("192.0.2.1")), "", names.ReasonQuarantined, "02:00:00:00:00:01 answered", "until 2026-01-01T01:00:00Z")
	if len(w.ledger.WithheldAddressesAwaitingProbe()) != 0 {
		t.Errorf("still proposed: %v", w.ledger.WithheldAddressesAwaitingProbe())
	}
	w.restartController()
	w.wantDecision(w.editServiceAndCarryOutDecision("third"), "", names.ReasonQuarantined)
	w.advanceTime(time.Hour)
	w.wantDecision(w.editServiceAndCarryOutDecision("third"), "", names.ReasonProbing)
	// A proposal that its Service no longer needs is free again.
	w.deleteService("third")
	w.wantDecision(w.editServiceAndCarryOutDecision("fourth"), "", names.ReasonProbing, "192.0.2.1")
	w.ledger.RecordAcquireProbeFoundNoHost(parseAddresses("192.0.2.1")[0])
	// A move keeps the old address while the new one is probed.
	w.wantDecision(w.editServiceAndCarryOutDecision("s", withAddressesToRelease("192.0.2.0")), "192.0.2.0", names.ReasonProbing, "192.0.2.3", "keeps 192.0.2.0")
	w.ledger.RecordAcquireProbeFoundNoHost(parseAddresses("192.0.2.3")[0])
	w.wantDecision(w.editServiceAndCarryOutDecision("s"), "192.0.2.3", names.ReasonAssigned)
	// A shared address needs no probe: our Services use it already.
	w.editServiceAndCarryOutDecision("fourth")
	w.wantDecision(w.editServiceAndCarryOutDecision("fourth", withSharingKeyAndPort("k", 1)), "192.0.2.1", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("fifth", withSharingKeyAndPort("k", 2), withRequestedAddresses("192.0.2.1")), "192.0.2.1", names.ReasonAssigned)
}

func TestPoolUsageCountsAssignedAndAvailable(t *testing.T) {
	w := newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.0/29", "fd00::/32"), withCooldown(time.Minute), excludingRanges(t, "192.0.2.7")))
	check := func(want PoolUsage) {
		t.Helper()
		if got := w.ledger.UsageOfPool(w.snapshot.Pools[0], w.snapshot); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	const most = 1<<63 - 1
	check(PoolUsage{AvailableIPv4: 7, AvailableIPv6: most})
	w.editServiceAndCarryOutDecision("one", withSharingKeyAndPort("k", 1))
	w.editServiceAndCarryOutDecision("two", withSharingKeyAndPort("k", 2))
	w.editServiceAndCarryOutDecision("three", withSingleStackIPv6)
	check(PoolUsage{AssignedIPv4: 1, AssignedIPv6: 1, AvailableIPv4: 6, AvailableIPv6: most - 1})
	w.editServiceAndCarryOutDecision("four")
	w.deleteService("four")
	check(PoolUsage{AssignedIPv4: 1, AssignedIPv6: 1, AvailableIPv4: 5, AvailableIPv6: most - 1})
	w.setPools(editPool(newPool(t, "a", "192.0.2.0/30"), excludingRanges(t, "192.0.2.0")))
	check(PoolUsage{AssignedIPv4: 1, AvailableIPv4: 2})
}

// If two reservations name one address, the older one keeps it, and the other one says so.
func TestOlderReservationKeepsTheAddress(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0/30"))
	reservation := func(name string, age time.Duration, addresses ...string) *snapshot.Reservation {
		return &snapshot.Reservation{Name: name, Service: view.ObjectKey{Namespace: "default", Name: "for-" + name}, Addresses: parseAddresses(addresses...), CreatedAt: w.currentTime.Add(-age)}
	}
	young, old := reservation("a", time.Minute, "192.0.2.0", "192.0.2.1"), reservation("b", time.Hour, "192.0.2.0")
	check := func(r *snapshot.Reservation, want names.Reason, addresses string, words string) {
		t.Helper()
		d := DecideReservation(r, w.ledger, w.snapshot)
		w.wantDecision(d, addresses, want, words)
	}
	w.setReservations(young)
	check(young, names.ReasonReserved, "192.0.2.0, 192.0.2.1", "")
	for range 2 {
		w.setReservations(young, old)
		check(old, names.ReasonReserved, "192.0.2.0", "")
		check(young, names.ReasonAddressInUse, "192.0.2.1", `AddressReservation "b", which is older, keeps 192.0.2.0 for Service default/for-b`)
		w.wantDecision(w.editServiceAndCarryOutDecision("for-a", withRequestedAddresses("192.0.2.0")), "", names.ReasonAddressReserved, `"b"`)
		w.wantDecision(w.editServiceAndCarryOutDecision("for-b", withRequestedAddresses("192.0.2.0")), "192.0.2.0", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("for-a", withRequestedAddresses("192.0.2.1")), "192.0.2.1", names.ReasonAssigned)
		w.deleteService("for-a")
		w.deleteService("for-b")
		w.restartController()
	}
	// When the older one ends, the younger one keeps the address at once.
	old.ExpiresAt = w.currentTime.Add(time.Hour)
	w.setReservations(young, old)
	w.advanceTime(time.Hour)
	w.wantDecision(w.editServiceAndCarryOutDecision("other", withRequestedAddresses("192.0.2.0")), "", names.ReasonAddressReserved, `"a"`)
	check(young, names.ReasonReserved, "192.0.2.0, 192.0.2.1", "")
	check(old, names.ReasonExpired, "", "")
	// Two reservations for one Service do not clash.
	same := reservation("c", 0, "192.0.2.1")
	same.Service = young.Service
	w.setReservations(young, same)
	check(same, names.ReasonReserved, "192.0.2.1", "")
}

// An address that no status ever showed was used by nobody, so that nothing has to cool down.
func TestOnlyWrittenAddressesCoolDown(t *testing.T) {
	p := editPool(newPool(t, "a", "192.0.2.0/30"), withCooldown(time.Minute))
	w := newLedgerHarness(t, p)
	decide := func(name string) (*view.Service, Decision) {
		s := newService(name)
		return s, DecideAssignment(s, w.ledger, w.snapshot)
	}
	s, d := decide("gone")
	w.ledger.CommitOldAndNewAddresses(s, d)
	w.ledger.ReleaseService(s.Key)
	w.wantDecision(w.editServiceAndCarryOutDecision("next"), "192.0.2.0", names.ReasonAssigned)
	s, d = decide("conflict")
	w.ledger.CommitOldAndNewAddresses(s, d)
	w.ledger.CommitAssignment(s, nil, "")
	w.wantDecision(w.editServiceAndCarryOutDecision("then"), "192.0.2.1", names.ReasonAssigned)
	// The write may have arrived.
	s, d = decide("unclear")
	w.ledger.CommitOldAndNewAddresses(s, d)
	w.ledger.AssumeAddressesWritten(s.Key)
	w.ledger.ReleaseService(s.Key)
	w.wantDecision(w.editServiceAndCarryOutDecision("last"), "192.0.2.3", names.ReasonAssigned)
	w.deleteService("next")
	w.wantDecision(w.editServiceAndCarryOutDecision("none"), "", names.ReasonPoolExhausted)
}

func TestRoundRobinContinuesAfterAPoolEdit(t *testing.T) {
	p := func(entries ...string) *snapshot.Pool {
		return editPool(newPool(t, "a", entries...), withAssignmentOrder(snapshot.OrderRoundRobin))
	}
	w := newLedgerHarness(t, p("192.0.2.0/29"))
	for _, name := range []string{"a", "b", "c"} {
		w.editServiceAndCarryOutDecision(name)
		w.deleteService(name)
	}
	w.setPools(p("198.51.100.0/31", "192.0.2.0/29"))
	w.wantDecision(w.editServiceAndCarryOutDecision("d"), "192.0.2.3", names.ReasonAssigned)
	w.setPools(p("198.51.100.0/31"))
	w.wantDecision(w.editServiceAndCarryOutDecision("e"), "198.51.100.0", names.ReasonAssigned)
}

// A pool may contain addresses that mean something else everywhere. Those are never assigned, and
// the others are.
func TestAddressesOfASpecialPurposeAreNeverAssigned(t *testing.T) {
	for entry, tc := range map[string]struct{ want, refused string }{
		"0.0.0.0/0":                 {"1.0.0.0", "127.0.0.1"},
		"126.255.255.255-128.0.0.0": {"126.255.255.255", "127.0.0.0"},
		"::/0":                      {"::2", "fe80::1"},
		"fe7f::-fec0::":             {"fe7f::", "fe80::"},
	} {
		w := newLedgerHarness(t, newPool(t, "a", entry))
		family := func(s *view.Service) {}
		if strings.Contains(entry, ":") {
			family = withSingleStackIPv6
		}
		w.wantDecision(w.editServiceAndCarryOutDecision("s", family), tc.want, names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("t", family, withRequestedAddresses(tc.refused)), "", names.ReasonAddressNotInPool)
	}
}

// IPv4 addresses are numbers inside the IPv6 range ::/0, and belong to their own pool all the same.
func TestPoolOfAllIPv6HasNoIPv4Address(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "four", "192.0.2.0/30"), newPool(t, "six", "::/0"))
	w.wantDecision(w.editServiceAndCarryOutDecision("a", withSingleStackIPv6, withRequestedAddresses("fd00::1")), "fd00::1", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("b", withSingleStackIPv6, withRequestedAddresses("fd00::1")), "", names.ReasonAddressInUse)
	w.wantDecision(w.editServiceAndCarryOutDecision("c"), "192.0.2.0", names.ReasonAssigned)
	if u := w.ledger.UsageOfPool(w.snapshot.Pools[1], w.snapshot); u.AssignedIPv6 != 1 || u.AssignedIPv4+u.AvailableIPv4 != 0 {
		t.Errorf("the usage of the IPv6 pool is %+v", u)
	}
}
