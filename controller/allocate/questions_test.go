package allocate

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// TestCheckpointKeepsLongestWithheld stores the withheld addresses for a restart.
func TestCheckpointKeepsLongestWithheld(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "a", "192.0.2.0/29"))
	entry := func(address string, reason names.Reason, d time.Duration) WithheldAddress {
		return WithheldAddress{Address: netip.MustParseAddr(address), Reason: reason, WithheldUntil: w.currentTime.Add(d)}
	}
	first := entry("192.0.2.1", names.ReasonCoolingDown, 3*time.Minute)
	second := entry("192.0.2.2", names.ReasonQuarantined, time.Minute)
	third := entry("192.0.2.3", names.ReasonCoolingDown, 2*time.Minute)
	reserved := entry("192.0.2.4", names.ReasonAddressReserved, time.Hour)
	for _, e := range []WithheldAddress{third, first, second} {
		before := w.ledger.WithheldCheckpointVersion()
		if w.ledger.WithholdAddress(e); w.ledger.WithheldCheckpointVersion() == before {
			t.Errorf("the version does not change with %+v", e)
		}
	}
	before := w.ledger.WithheldCheckpointVersion()
	w.ledger.WithholdAddress(reserved)
	w.ledger.WithholdAddress(first)
	w.ledger.WithholdAddress(entry("192.0.2.5", names.ReasonCoolingDown, 0)) // is over
	if got := w.ledger.WithheldCheckpointVersion(); got != before {
		t.Errorf("the version changes from %d to %d, and the entries do not", before, got)
	}
	for limit, want := range map[int][]WithheldAddress{
		4: {first, second, third}, 3: {first, second, third}, 2: {first, third}, 1: {first}, 0: {},
	} {
		if got := w.ledger.WithheldCheckpointEntries(limit); !slices.Equal(got, want) {
			t.Errorf("at most %d entries: %+v, want %+v", limit, got, want)
		}
	}
	w.advanceTime(time.Minute)
	if got, want := w.ledger.WithheldCheckpointEntries(4), []WithheldAddress{first, third}; !slices.Equal(got, want) {
		t.Errorf("after a minute: %+v, want %+v", got, want)
	}
	if w.ledger.WithheldCheckpointVersion() == before {
		t.Error("an entry has ended, and the version is the same")
	}
}

func TestLedgerListsHoldersOfSharedAddress(t *testing.T) {
	w := newLedgerHarness(t, newPool(t, "a", "192.0.2.1/32"))
	address := netip.MustParseAddr("192.0.2.1")
	w.wantDecision(w.editServiceAndCarryOutDecision("web", withSharingKeyAndPort("k", 80)), "192.0.2.1", names.ReasonAssigned)
	w.wantDecision(w.editServiceAndCarryOutDecision("dns", withSharingKeyAndPort("k", 53)), "192.0.2.1", names.ReasonAssigned)
	web, dns := w.lastServiceByName["web"], w.lastServiceByName["dns"]
	w.editServiceAndCarryOutDecision("waits")
	if got := w.ledger.ServicesHoldingAddresses(); !slices.Equal(got, []view.ObjectKey{dns.Key, web.Key}) {
		t.Errorf("%v hold addresses, want dns and web", got)
	}
	for name, c := range map[string]struct {
		service   *view.Service
		conflicts []view.ObjectKey
	}{
		"a holder itself":            {web, nil},
		"another port":               {newSharingService("api", 81), nil},
		"the port of one holder":     {newSharingService("api", 80), []view.ObjectKey{web.Key}},
		"no sharing key":             {newService("api"), []view.ObjectKey{dns.Key, web.Key}},
		"a holder with another port": {newSharingService("web", 53), []view.ObjectKey{dns.Key}},
	} {
		if got := w.ledger.ConflictingHolders(address, c.service); !slices.Equal(got, c.conflicts) {
			t.Errorf("%s: the address is in conflict with %v, want %v", name, got, c.conflicts)
		}
		if got, want := w.ledger.CanShareWithHolders(address, c.service), len(c.conflicts) == 0; got != want {
			t.Errorf("%s: the Service may hold the address: %v, want %v", name, got, want)
		}
	}
	if !w.ledger.CanShareWithHolders(netip.MustParseAddr("192.0.2.2"), newService("api")) {
		t.Error("a Service may not hold an address without a holder")
	}
	if !CanShareAddress(web, dns) || CanShareAddress(web, newSharingService("api", 80)) || CanShareAddress(web, newService("api")) {
		t.Error("two Services can share an address just where they have one key and different ports")
	}
	w.deleteService("dns")
	if got := w.ledger.ServicesHoldingAddresses(); !slices.Equal(got, []view.ObjectKey{web.Key}) {
		t.Errorf("%v hold addresses, want only web", got)
	}
}

// newSharingService returns a Service with the sharing key "k" and one port.
func newSharingService(name string, port uint16) *view.Service {
	s := newService(name)
	withSharingKeyAndPort("k", port)(s)
	return s
}

// TestReleasedAddressCoolsDownByEditedPool: the pools change, then a Service goes.
func TestReleasedAddressCoolsDownByEditedPool(t *testing.T) {
	old := newPool(t, "a", "192.0.2.1/32")
	w := newLedgerHarness(t, old)
	w.wantDecision(w.editServiceAndCarryOutDecision("web"), "192.0.2.1", names.ReasonAssigned)
	next := editPool(old, withCooldown(time.Minute))
	w.setPools(next)
	w.ledger.UseSnapshot(w.snapshot)
	if got := w.ledger.UsageOfPool(next, w.snapshot); got != (PoolUsage{AssignedIPv4: 1}) {
		t.Errorf("the usage is %+v, want one assigned address", got)
	}
	w.deleteService("web")
	if got := w.ledger.UsageOfPool(next, w.snapshot); got != (PoolUsage{}) {
		t.Errorf("the usage is %+v, want that the address cools down", got)
	}
	w.advanceTime(time.Minute)
	if got := w.ledger.UsageOfPool(next, w.snapshot); got != (PoolUsage{AvailableIPv4: 1}) {
		t.Errorf("the usage is %+v, want one available address", got)
	}
	if got := w.ledger.UsageOfPool(newPool(t, "unknown", "203.0.113.0/24"), w.snapshot); got != (PoolUsage{}) {
		t.Errorf("a pool outside of the snapshot has the usage %+v", got)
	}
}
