package allocate

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// ledgerHarness is a Ledger with its pools and Services. It carries decisions out as the controller
// does.
type ledgerHarness struct {
	*testing.T
	ledger            *Ledger
	snapshot          *snapshot.Snapshot
	lastServiceByName map[string]*view.Service
	currentTime       time.Time
	// statusAddressesByService are the addresses in the status of each Service.
	statusAddressesByService map[string][]netip.Addr
}

func newLedgerHarness(t *testing.T, pools ...*snapshot.Pool) *ledgerHarness {
	w := &ledgerHarness{T: t, ledger: NewLedger(), lastServiceByName: map[string]*view.Service{}, statusAddressesByService: map[string][]netip.Addr{}, currentTime: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	w.ledger.AdvanceTime(w.currentTime)
	w.setPools(pools...)
	return w
}

// setPools replaces the pools.
func (w *ledgerHarness) setPools(pools ...*snapshot.Pool) {
	next := &snapshot.Snapshot{Namespace: "metallb-system", Pools: pools}
	if w.snapshot != nil {
		next.Reservations = w.snapshot.Reservations
	}
	w.snapshot = next
}

// setReservations replaces the reservations and decides what they keep.
func (w *ledgerHarness) setReservations(all ...*snapshot.Reservation) (last Decision) {
	w.snapshot = &snapshot.Snapshot{Pools: w.snapshot.Pools, Reservations: all}
	for _, r := range all {
		last = DecideReservation(r, w.ledger, w.snapshot)
		w.ledger.WithholdReservedAddresses(r, last.Addresses)
	}
	return last
}

func (w *ledgerHarness) advanceTime(d time.Duration) {
	w.currentTime = w.currentTime.Add(d)
	w.ledger.AdvanceTime(w.currentTime)
}

// editServiceAndCarryOutDecision edits a Service, decides, and carries the Decision out.
func (w *ledgerHarness) editServiceAndCarryOutDecision(name string, edits ...func(*view.Service)) Decision {
	w.Helper()
	s := w.lastServiceByName[name]
	if s == nil {
		s = newService(name)
		w.lastServiceByName[name] = s
	}
	next := *s
	s = &next
	w.lastServiceByName[name] = s
	for _, e := range edits {
		e(s)
	}
	d := DecideAssignment(s, w.ledger, w.snapshot)
	if again := DecideAssignment(s, w.ledger, w.snapshot); !equalDecisions(d, again) {
		w.Errorf("%s: two equal decisions differ: %+v, then %+v", name, d, again)
	}
	w.carryOutDecision(s, d)
	return d
}

func equalDecisions(a, b Decision) bool {
	return slices.Equal(a.Addresses, b.Addresses) && a.PoolOfFirstAddress == b.PoolOfFirstAddress && a.Reason == b.Reason && a.Text == b.Text && slices.Equal(a.AddressesToProbe, b.AddressesToProbe)
}

// carryOutDecision does what the controller does with a Decision.
func (w *ledgerHarness) carryOutDecision(s *view.Service, d Decision) {
	w.Helper()
	if len(d.AddressesToProbe) > 0 {
		w.ledger.WithholdAddressesUntilProbed(s, d.AddressesToProbe)
	} else {
		w.ledger.CommitOldAndNewAddresses(s, d)
	}
	w.statusAddressesByService[s.Key.Name] = d.Addresses
	if len(d.AddressesToProbe) == 0 {
		w.ledger.CommitAssignment(s, d.Addresses, d.PoolOfFirstAddress)
	}
}

func (w *ledgerHarness) deleteService(name string) {
	w.ledger.ReleaseService(w.lastServiceByName[name].Key)
	delete(w.lastServiceByName, name)
	delete(w.statusAddressesByService, name)
}

// restartController builds a new Ledger from what is written, as a controller does at its start.
func (w *ledgerHarness) restartController() {
	memory := w.ledger.AllWithheldAddresses()
	pools := map[string]string{}
	for n, s := range w.lastServiceByName {
		held, _ := w.ledger.AssignmentOf(s.Key)
		pools[n] = held.PoolOfFirstAddress
	}
	w.ledger = NewLedger()
	w.ledger.AdvanceTime(w.currentTime)
	for _, m := range memory {
		w.ledger.WithholdAddress(m)
	}
	for n, s := range w.lastServiceByName {
		if len(w.statusAddressesByService[n]) > 0 {
			w.ledger.CommitAssignment(s, w.statusAddressesByService[n], pools[n])
		}
	}
}

// wantDecision checks a Decision: its addresses ("A, B" or empty), its Reason, and words of its
// sentence.
func (w *ledgerHarness) wantDecision(d Decision, addresses string, reason names.Reason, words ...string) {
	w.Helper()
	if view.JoinAddresses(d.Addresses) != addresses || d.Reason != reason {
		w.Errorf("got %q, %s: %s; want %q, %s", view.JoinAddresses(d.Addresses), d.Reason, d.Text, addresses, reason)
	}
	for _, word := range words {
		if !strings.Contains(d.Text, word) {
			w.Errorf("the sentence is %q, want %q in it", d.Text, word)
		}
	}
}

// Edits of Services.

func inNamespace(namespace string) func(*view.Service) {
	return func(s *view.Service) { s.Key.Namespace = namespace }
}

func withLocalTrafficPolicy(selector string) func(*view.Service) {
	return func(s *view.Service) { s.HasLocalTrafficPolicy, s.PodSelector = true, selector }
}

func withSingleStackIPv6(s *view.Service) {
	s.ClusterIPs, s.PrimaryFamily, s.FamilyPolicy = parseAddresses("fd00::9"), ipfamily.IPv6, view.SingleStack
}

func withPrimaryIPv6(s *view.Service) { s.PrimaryFamily = ipfamily.IPv6 }

func withLabel(key, value string) func(*view.Service) {
	return func(s *view.Service) { s.Labels = map[string]string{key: value} }
}

func withRequestedAddressesPerFamily(n int) func(*view.Service) {
	return func(s *view.Service) { s.RequestedAddressesPerFamily = n }
}

func withAddressesToRelease(texts ...string) func(*view.Service) {
	return func(s *view.Service) { s.AddressesToExchange = parseAddresses(texts...) }
}

// editPool returns the pool after the edits.
func editPool(p *snapshot.Pool, edits ...func(*snapshot.Pool)) *snapshot.Pool {
	for _, e := range edits {
		e(p)
	}
	return p
}

func withoutAutoAssign(p *snapshot.Pool) { p.AutoAssign = false }

func restrictedToNamespaces(priority int, namespaces ...string) func(*snapshot.Pool) {
	return func(p *snapshot.Pool) {
		p.ServiceAllocation = &snapshot.ServiceAllocation{Priority: priority, Namespaces: namespaces, OnlyListedNamespaces: len(namespaces) > 0}
	}
}

// withServiceAllocationAdmittingNone is the result of namespaceSelectors that match no namespace.
func withServiceAllocationAdmittingNone(p *snapshot.Pool) {
	p.ServiceAllocation = &snapshot.ServiceAllocation{OnlyListedNamespaces: true}
}

func selectingServices(texts ...string) func(*snapshot.Pool) {
	return func(p *snapshot.Pool) {
		if p.ServiceAllocation == nil {
			p.ServiceAllocation = &snapshot.ServiceAllocation{}
		}
		for _, t := range texts {
			s, err := labels.Parse(t)
			if err != nil {
				panic(err)
			}
			p.ServiceAllocation.ServiceSelectors = append(p.ServiceAllocation.ServiceSelectors, s)
		}
	}
}

func excludingRanges(t testing.TB, entries ...string) func(*snapshot.Pool) {
	return func(p *snapshot.Pool) { p.ExcludedRanges = newPool(t, "", entries...).Ranges }
}

func withAssignmentOrder(o snapshot.AssignmentOrder) func(*snapshot.Pool) {
	return func(p *snapshot.Pool) { p.AssignmentOrder = o }
}

func withCooldown(d time.Duration) func(*snapshot.Pool) {
	return func(p *snapshot.Pool) { p.CooldownDelay = d }
}

func withQuota(n int, namespaces map[string]int) func(*snapshot.Pool) {
	return func(p *snapshot.Pool) {
		p.Quota = &snapshot.NamespaceQuota{DefaultLimit: n, LimitByNamespace: namespaces}
	}
}

func withAcquireProbe(p *snapshot.Pool) {
	p.AcquireProbe = &snapshot.AcquireProbeSettings{QuarantineDelay: time.Hour}
}
