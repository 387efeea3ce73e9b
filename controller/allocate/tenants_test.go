package allocate

import (
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// withServiceLimit is the pool's limit of addresses for one Service; 0 is the default.
func withServiceLimit(n int) func(*snapshot.Pool) {
	return func(p *snapshot.Pool) { p.MaxAddressesPerService = n }
}

func sharingOnlyWithinNamespace(p *snapshot.Pool) { p.SharesOnlyWithinNamespace = true }

func TestServiceGetsOneAddressOfEachFamilyUnlessThePoolAllowsMore(t *testing.T) {
	pool := func(limit int) *snapshot.Pool {
		return editPool(newPool(t, "a", "192.0.2.0/28", "fd00:1::/124"), withServiceLimit(limit))
	}
	const limited = `pool "a" gives a Service at most 1 of each family`
	t.Run("by number", func(t *testing.T) {
		w := newLedgerHarness(t, pool(0))
		d := w.editServiceAndCarryOutDecision("web", withDualStack(view.RequireDualStack), withRequestedAddressesPerFamily(16))
		w.wantDecision(d, "192.0.2.0, fd00:1::", names.ReasonServiceLimitReached, "fewer than the 16 of each family", limited)
	})
	t.Run("by request", func(t *testing.T) {
		w := newLedgerHarness(t, pool(0))
		d := w.editServiceAndCarryOutDecision("web", withRequestedAddressesPerFamily(2), withRequestedAddresses("192.0.2.1", "192.0.2.2"))
		w.wantDecision(d, "", names.ReasonServiceLimitReached, limited)
	})
	t.Run("from two pools", func(t *testing.T) {
		w := newLedgerHarness(t, pool(0), editPool(newPool(t, "b", "198.51.100.0/28"), withServiceLimit(0)))
		w.wantDecision(w.editServiceAndCarryOutDecision("web", withRequestedAddressesPerFamily(2)), "192.0.2.0", names.ReasonServiceLimitReached)
		d := w.editServiceAndCarryOutDecision("web", withRequestedAddresses("192.0.2.0", "198.51.100.1"))
		w.wantDecision(d, "192.0.2.0", names.ReasonServiceLimitReached, `pool "b" gives`)
	})
	t.Run("that are kept for it", func(t *testing.T) {
		w := newLedgerHarness(t, pool(0))
		w.setReservations(&snapshot.Reservation{Name: "r", Service: view.ObjectKey{Namespace: "default", Name: "web"}, Addresses: parseAddresses("192.0.2.7", "192.0.2.8")})
		w.wantDecision(w.editServiceAndCarryOutDecision("web", withRequestedAddressesPerFamily(2)), "192.0.2.7", names.ReasonServiceLimitReached)
	})
	t.Run("unless the pool allows two", func(t *testing.T) {
		w := newLedgerHarness(t, pool(2))
		w.wantDecision(w.editServiceAndCarryOutDecision("web", withRequestedAddressesPerFamily(3)), "192.0.2.0, 192.0.2.1", names.ReasonServiceLimitReached, "at most 2")
		w.wantDecision(w.editServiceAndCarryOutDecision("other", withRequestedAddressesPerFamily(2)), "192.0.2.2, 192.0.2.3", names.ReasonAssigned)
	})
}

// A lower limit takes no address from a Service.
func TestServiceKeepsAddressesBeyondALowerLimit(t *testing.T) {
	w := newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.0/28"), withServiceLimit(3)))
	w.wantDecision(w.editServiceAndCarryOutDecision("web", withRequestedAddressesPerFamily(3)), "192.0.2.0, 192.0.2.1, 192.0.2.2", names.ReasonAssigned)
	w.setPools(editPool(newPool(t, "a", "192.0.2.0/28"), withServiceLimit(0)))
	w.wantDecision(w.editServiceAndCarryOutDecision("web"), "192.0.2.0, 192.0.2.1, 192.0.2.2", names.ReasonAssigned)
	w.restartController()
	d := w.editServiceAndCarryOutDecision("web", withRequestedAddresses("192.0.2.0", "192.0.2.1", "192.0.2.2"))
	w.wantDecision(d, "192.0.2.0, 192.0.2.1, 192.0.2.2", names.ReasonAssigned)
}

func TestPoolKeepsNamespacesFromSharing(t *testing.T) {
	pool := func(edits ...func(*snapshot.Pool)) *snapshot.Pool {
		return editPool(newPool(t, "a", "192.0.2.1-192.0.2.2"), edits...)
	}
	ask := []func(*view.Service){inNamespace("other"), withSharingKeyAndPort("k", 443)}
	t.Run("Cluster", func(t *testing.T) {
		w := newLedgerHarness(t, pool())
		w.editServiceAndCarryOutDecision("first", withSharingKeyAndPort("k", 80))
		w.wantDecision(w.editServiceAndCarryOutDecision("second", ask...), "192.0.2.1", names.ReasonAssigned)
	})
	t.Run("Namespace", func(t *testing.T) {
		w := newLedgerHarness(t, pool(sharingOnlyWithinNamespace))
		w.editServiceAndCarryOutDecision("first", withSharingKeyAndPort("k", 80))
		requested := w.editServiceAndCarryOutDecision("second", append(ask, withRequestedAddresses("192.0.2.1"))...)
		w.wantDecision(requested, "", names.ReasonAddressInUse, `192.0.2.1 is held by another namespace's Service and cannot be shared: only Services of one namespace share an address of pool "a"`)
		w.wantDecision(w.editServiceAndCarryOutDecision("second", withRequestedAddresses()), "192.0.2.2", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("third", withSharingKeyAndPort("k", 443)), "192.0.2.1", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("fourth", inNamespace("other"), withSharingKeyAndPort("k", 80)), "192.0.2.2", names.ReasonAssigned)
		// whether another namespace has this key is not told
		w.wantDecision(w.editServiceAndCarryOutDecision("fifth", inNamespace("third"), withSharingKeyAndPort("k", 80)), "", names.ReasonPoolExhausted)
	})
	t.Run("Services that share already continue", func(t *testing.T) {
		w := newLedgerHarness(t, pool())
		w.editServiceAndCarryOutDecision("first", withSharingKeyAndPort("k", 80))
		w.wantDecision(w.editServiceAndCarryOutDecision("second", ask...), "192.0.2.1", names.ReasonAssigned)
		w.setPools(pool(sharingOnlyWithinNamespace))
		for _, restart := range []bool{false, true} {
			if restart {
				w.restartController()
			}
			w.wantDecision(w.editServiceAndCarryOutDecision("first"), "192.0.2.1", names.ReasonAssigned)
			w.wantDecision(w.editServiceAndCarryOutDecision("second"), "192.0.2.1", names.ReasonAssigned)
		}
		w.wantDecision(w.editServiceAndCarryOutDecision("third", withSharingKeyAndPort("k", 8080)), "192.0.2.2", names.ReasonAssigned)
	})
}

// Whatever keeps an address from a Service, its text has no name and no key of another namespace.
func TestTextsNameNothingOfAnotherNamespace(t *testing.T) {
	inVault := inNamespace("vault")
	key := func(port uint16) func(*view.Service) { return withSharingKeyAndPort("hidden-key", port) }
	tests := map[string]struct {
		pool   []func(*snapshot.Pool)
		before func(*ledgerHarness)
		ask    []func(*view.Service)
		reason names.Reason
	}{
		"held without a key": {before: func(w *ledgerHarness) { w.editServiceAndCarryOutDecision("safe", inVault) }, reason: names.ReasonAddressInUse},
		"held with a key": {before: func(w *ledgerHarness) { w.editServiceAndCarryOutDecision("safe", inVault, key(80)) },
			ask: []func(*view.Service){withSharingKeyAndPort("guess", 81)}, reason: names.ReasonSharingKeyDiffers},
		"a port": {before: func(w *ledgerHarness) {
			w.editServiceAndCarryOutDecision("safe", inVault, withSharingKeyAndPort("k", 80))
		},
			ask: []func(*view.Service){withSharingKeyAndPort("k", 80)}, reason: names.ReasonPortConflict},
		"a traffic policy": {before: func(w *ledgerHarness) {
			w.editServiceAndCarryOutDecision("safe", inVault, withSharingKeyAndPort("k", 80))
		},
			ask: []func(*view.Service){withSharingKeyAndPort("k", 81), withLocalTrafficPolicy("app=a")}, reason: names.ReasonTrafficPolicyConflict},
		"a pool for one namespace": {pool: []func(*snapshot.Pool){sharingOnlyWithinNamespace}, before: func(w *ledgerHarness) { w.editServiceAndCarryOutDecision("safe", inVault, key(80)) },
			ask: []func(*view.Service){key(81)}, reason: names.ReasonAddressInUse},
		"a cool-down": {pool: []func(*snapshot.Pool){withCooldown(time.Hour)}, before: func(w *ledgerHarness) {
			w.editServiceAndCarryOutDecision("safe", inVault)
			w.deleteService("safe")
		}, reason: names.ReasonCoolingDown},
		"a reservation": {before: func(w *ledgerHarness) {
			w.setReservations(&snapshot.Reservation{Name: "safe-of-vault", Service: view.ObjectKey{Namespace: "vault", Name: "safe"}, Addresses: parseAddresses("192.0.2.1")})
		}, reason: names.ReasonAddressReserved},
		"a probe": {pool: []func(*snapshot.Pool){withAcquireProbe}, before: func(w *ledgerHarness) { w.editServiceAndCarryOutDecision("safe", inVault) }, reason: names.ReasonProbing},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.1"), tc.pool...))
			tc.before(w)
			for _, request := range [][]string{{"192.0.2.1"}, nil} {
				d := w.editServiceAndCarryOutDecision("curious", append(tc.ask, withRequestedAddresses(request...))...)
				if request != nil {
					w.wantDecision(d, "", tc.reason, "another namespace's Service")
				}
				for _, secret := range []string{"vault", "safe", "hidden-key"} {
					if strings.Contains(d.Text, secret) {
						t.Errorf("a Service of another namespace reads %q: %s", secret, d.Text)
					}
				}
			}
		})
	}
}

func TestWithheldAddressesCountInTheQuotaOfTheirNamespace(t *testing.T) {
	const exceeded = "namespace default has reached its quota"
	t.Run("a cool-down", func(t *testing.T) {
		pool := func() *snapshot.Pool {
			return editPool(newPool(t, "a", "192.0.2.0/28"), withQuota(2, nil), withCooldown(time.Hour))
		}
		w := newLedgerHarness(t, pool())
		w.editServiceAndCarryOutDecision("web")
		w.wantDecision(w.editServiceAndCarryOutDecision("web", withAddressesToRelease("192.0.2.0")), "192.0.2.1", names.ReasonAssigned)
		check := func() {
			t.Helper()
			w.wantDecision(w.editServiceAndCarryOutDecision("third"), "", names.ReasonQuotaExceeded, exceeded)
			w.wantDecision(w.editServiceAndCarryOutDecision("foreign", inNamespace("other")), "192.0.2.2", names.ReasonAssigned)
		}
		check()
		w.restartController()
		check()
		w.setPools(pool(), newPool(t, "b", "198.51.100.0/28")) // the counts are built anew
		w.setPools(editPool(newPool(t, "a", "192.0.2.0/27"), withQuota(2, nil), withCooldown(time.Hour)))
		check()
		// the Service that gave it up may have it again
		w.wantDecision(w.editServiceAndCarryOutDecision("web", withAddressesToRelease("192.0.2.1")), "192.0.2.0", names.ReasonAssigned)
		w.advanceTime(2 * time.Hour)
		w.wantDecision(w.editServiceAndCarryOutDecision("third"), "192.0.2.1", names.ReasonAssigned)
		w.wantDecision(w.editServiceAndCarryOutDecision("fourth"), "", names.ReasonQuotaExceeded, exceeded)
	})
	t.Run("a probe of an address that cools down", func(t *testing.T) {
		w := newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.0/28"), withQuota(2, nil), withCooldown(time.Hour)))
		w.editServiceAndCarryOutDecision("web")
		w.deleteService("web")
		pool := func() *snapshot.Pool {
			return editPool(newPool(t, "a", "192.0.2.0/28"), withQuota(2, nil), withCooldown(time.Hour), withAcquireProbe)
		}
		w.setPools(pool())
		w.wantDecision(w.editServiceAndCarryOutDecision("web"), "", names.ReasonProbing, "192.0.2.0")
		w.wantDecision(w.editServiceAndCarryOutDecision("second"), "", names.ReasonProbing, "192.0.2.1")
		w.wantDecision(w.editServiceAndCarryOutDecision("third"), "", names.ReasonQuotaExceeded, exceeded)
		// the counts are built anew
		w.setPools(editPool(newPool(t, "a", "192.0.2.0/27"), withQuota(3, nil), withCooldown(time.Hour), withAcquireProbe))
		w.wantDecision(w.editServiceAndCarryOutDecision("third"), "", names.ReasonProbing, "192.0.2.2")
		w.wantDecision(w.editServiceAndCarryOutDecision("fourth"), "", names.ReasonQuotaExceeded, exceeded)
		w.deleteService("web") // the address cools down on
		w.wantDecision(w.editServiceAndCarryOutDecision("fourth"), "", names.ReasonQuotaExceeded, exceeded)
	})
	t.Run("a probe and a quarantine", func(t *testing.T) {
		w := newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.0/28"), withQuota(1, nil), withAcquireProbe))
		w.wantDecision(w.editServiceAndCarryOutDecision("web", withRequestedAddresses("192.0.2.5")), "", names.ReasonProbing)
		w.wantDecision(w.editServiceAndCarryOutDecision("second"), "", names.ReasonQuotaExceeded, exceeded)
		w.ledger.QuarantineAddressAfterProbeAnswer(parseAddresses("192.0.2.5")[0], "02:00:00:00:00:09")
		w.wantDecision(w.editServiceAndCarryOutDecision("web", withRequestedAddresses()), "", names.ReasonQuotaExceeded, exceeded)
		w.advanceTime(2 * time.Hour)
		w.wantDecision(w.editServiceAndCarryOutDecision("web"), "", names.ReasonProbing, "192.0.2.0")
		// nobody asked for the address that the pool proposed
		w.ledger.QuarantineAddressAfterProbeAnswer(parseAddresses("192.0.2.0")[0], "02:00:00:00:00:09")
		w.wantDecision(w.editServiceAndCarryOutDecision("web"), "", names.ReasonProbing, "192.0.2.1")
	})
}

// A pool with autoAssign: false and the addresses of a reservation are closed to other namespaces
// by the pool's serviceAllocation, however they are asked for.
func TestServiceAllocationClosesManualPoolsAndReservationsToNamespaces(t *testing.T) {
	w := newLedgerHarness(t, editPool(newPool(t, "a", "192.0.2.0/28"), withoutAutoAssign, restrictedToNamespaces(0, "shop")))
	w.setReservations(&snapshot.Reservation{Name: "r", Service: view.ObjectKey{Namespace: "default", Name: "kept"}, Addresses: parseAddresses("192.0.2.7")})
	w.wantDecision(w.editServiceAndCarryOutDecision("named", withRequestedPool("a")), "", names.ReasonPoolNotAllowed)
	w.wantDecision(w.editServiceAndCarryOutDecision("asked", withRequestedAddresses("192.0.2.3")), "", names.ReasonPoolNotAllowed)
	w.wantDecision(w.editServiceAndCarryOutDecision("kept"), "", names.ReasonNoEligiblePool)
	w.wantDecision(w.editServiceAndCarryOutDecision("named-in-shop", inNamespace("shop"), withRequestedPool("a")), "192.0.2.0", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("reserved", inNamespace("shop"), withRequestedAddresses("192.0.2.7")), "", names.ReasonAddressReserved)
}

// An annotation may have 256 KiB. What a text quotes of it is short, since the text is in a
// condition, an event and a log line.
func TestTextsQuoteOnlyTheStartOfLongRequests(t *testing.T) {
	long := strings.Repeat("x", 256<<10)
	w := newLedgerHarness(t, newPool(t, "a", "192.0.2.1"))
	w.editServiceAndCarryOutDecision("first", withSharingKeyAndPort(long, 80))
	for name, edits := range map[string][]func(*view.Service){
		"a pool":                     {withRequestedPool(long)},
		"a pool, and an address":     {withRequestedPool(long), withRequestedAddresses("192.0.2.1")},
		"a sharing key":              {withSharingKeyAndPort(long+"y", 81)},
		"a sharing key and a port":   {withSharingKeyAndPort(long, 80)},
		"a sharing key, and request": {withSharingKeyAndPort("z", 81), withRequestedAddresses("192.0.2.1")},
	} {
		d := w.editServiceAndCarryOutDecision("second", append([]func(*view.Service){func(s *view.Service) { *s = *newService("second") }}, edits...)...)
		if len(d.Text) > 1024 || d.Reason == names.ReasonAssigned {
			t.Errorf("%s: the text has %d bytes: %s: %.300s", name, len(d.Text), d.Reason, d.Text)
		}
	}
}

// A Service with two addresses of a family gets two others when their pool is retired, although the
// other pool gives one Service one only. A change that its user makes gets one.
func TestRetiredAddressesAreReplacedBeyondTheLimit(t *testing.T) {
	old := newPool(t, "a", "192.0.2.0/31")
	young := editPool(newPool(t, "b", "198.51.100.0/28"), withServiceLimit(0))
	w := newLedgerHarness(t, old)
	w.editServiceAndCarryOutDecision("web", withRequestedAddressesPerFamily(2))
	retiring := editPool(old, func(p *snapshot.Pool) {
		p.Retirement, p.ExcludedRanges = &snapshot.Retirement{WholePool: true}, p.Ranges
	})
	w.setPools(retiring, young)
	w.ledger.UseSnapshot(w.snapshot)
	d, moved := DecideAssignmentWithoutRetired(w.lastServiceByName["web"], w.ledger, w.snapshot)
	w.wantDecision(d, "198.51.100.0, 198.51.100.1", names.ReasonAssigned)
	if !moved {
		t.Error("the Service keeps its retired addresses")
	}
	w.setPools(old, young)
	d = w.editServiceAndCarryOutDecision("web", withRequestedPool("b"))
	w.wantDecision(d, "198.51.100.0", names.ReasonServiceLimitReached)
}

// A pool without a free address of the family is not the pool whose limit must be raised.
func TestLimitOfAPoolWithoutFreeAddressIsNoReason(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "v4", "192.0.2.0"), editPool(newPool(t, "v6", "fd00:1::/124"), withServiceLimit(0)))
	d := w.editServiceAndCarryOutDecision("web", withRequestedAddressesPerFamily(2))
	w.wantDecision(d, "192.0.2.0", names.ReasonPoolExhausted)
}
