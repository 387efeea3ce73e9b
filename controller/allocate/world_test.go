package allocate

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// world is a Ledger with its pools and the Services that were served, which carries decisions out as the controller does.
type world struct {
	*testing.T
	l        *Ledger
	snap     *snapshot.Snapshot
	services map[string]*view.Service
	now      time.Time
	// written are the addresses in the status of each Service.
	written map[string][]netip.Addr
}

func newWorld(t *testing.T, pools ...*snapshot.Pool) *world {
	w := &world{T: t, l: NewLedger(), services: map[string]*view.Service{}, written: map[string][]netip.Addr{}, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	w.l.Advance(w.now)
	w.configure(pools...)
	return w
}

// configure replaces the pools.
func (w *world) configure(pools ...*snapshot.Pool) {
	next := &snapshot.Snapshot{Pools: pools}
	if w.snap != nil {
		next.Reservations = w.snap.Reservations
	}
	w.snap = next
}

// reserve replaces the reservations, and has what they keep decided.
func (w *world) reserve(all ...*snapshot.Reservation) (last Decision) {
	w.snap = &snapshot.Snapshot{Pools: w.snap.Pools, Reservations: all}
	for _, r := range all {
		last = DecideReservation(r, w.l, w.snap)
		w.l.Keep(r, last.Addresses)
	}
	return last
}

func (w *world) later(d time.Duration) {
	w.now = w.now.Add(d)
	w.l.Advance(w.now)
}

// serve has a Service served, after the edits: decided, prepared, written and committed.
func (w *world) serve(name string, edits ...func(*view.Service)) Decision {
	w.Helper()
	s := w.services[name]
	if s == nil {
		s = service(name)
		w.services[name] = s
	}
	next := *s
	s = &next
	w.services[name] = s
	for _, e := range edits {
		e(s)
	}
	d := Decide(s, w.l, w.snap)
	if again := Decide(s, w.l, w.snap); !same(d, again) {
		w.Errorf("%s: the same question has two answers: %+v, then %+v", name, d, again)
	}
	w.carryOut(s, d)
	return d
}

func same(a, b Decision) bool {
	return slices.Equal(a.Addresses, b.Addresses) && a.Pool == b.Pool && a.Reason == b.Reason && a.Text == b.Text && slices.Equal(a.Proposed, b.Proposed)
}

// carryOut does what the controller does with a Decision.
func (w *world) carryOut(s *view.Service, d Decision) {
	w.Helper()
	if len(d.Proposed) > 0 {
		w.l.Propose(s.Key, d.Proposed)
	} else {
		w.l.Prepare(s.Key, d.Addresses)
	}
	w.written[s.Key.Name] = d.Addresses
	if len(d.Proposed) == 0 {
		w.l.Commit(s, d.Addresses, d.Pool)
	}
}

func (w *world) delete(name string) {
	w.l.Release(w.services[name].Key)
	delete(w.services, name)
	delete(w.written, name)
}

// restart builds a Ledger anew from what is written, as a controller does that starts.
func (w *world) restart() {
	memory := w.l.Withheld()
	pools := map[string]string{}
	for n, s := range w.services {
		held, _ := w.l.Held(s.Key)
		pools[n] = held.Pool
	}
	w.l = NewLedger()
	w.l.Advance(w.now)
	for _, m := range memory {
		w.l.Withhold(m)
	}
	for n, s := range w.services {
		if len(w.written[n]) > 0 {
			w.l.Commit(s, w.written[n], pools[n])
		}
	}
}

// want checks a Decision: its addresses, "A, B" or empty, its Reason, and words of its sentence.
func (w *world) want(d Decision, addresses string, reason names.Reason, words ...string) {
	w.Helper()
	if join(d.Addresses) != addresses || d.Reason != reason {
		w.Errorf("got %q, %s: %s; want %q, %s", join(d.Addresses), d.Reason, d.Text, addresses, reason)
	}
	for _, word := range words {
		if !strings.Contains(d.Text, word) {
			w.Errorf("the sentence is %q, want %q in it", d.Text, word)
		}
	}
}

// Edits of Services.

func in(namespace string) func(*view.Service) {
	return func(s *view.Service) { s.Key.Namespace = namespace }
}

func local(selector string) func(*view.Service) {
	return func(s *view.Service) { s.LocalTrafficPolicy, s.PodSelector = true, selector }
}

func single6(s *view.Service) {
	s.ClusterIPs, s.PrimaryFamily, s.FamilyPolicy = addrs("fd00::9"), view.IPv6, view.SingleStack
}

func primary6(s *view.Service) { s.PrimaryFamily = view.IPv6 }

func labelled(key, value string) func(*view.Service) {
	return func(s *view.Service) { s.Labels = map[string]string{key: value} }
}

func several(n int) func(*view.Service) { return func(s *view.Service) { s.AddressCount = n } }

func releases(texts ...string) func(*view.Service) {
	return func(s *view.Service) { s.AddressesToRelease = addrs(texts...) }
}

// with returns the pool after the edits.
func with(p *snapshot.Pool, edits ...func(*snapshot.Pool)) *snapshot.Pool {
	for _, e := range edits {
		e(p)
	}
	return p
}

func closed(p *snapshot.Pool) { p.AutoAssign = false }

func pinned(priority int, namespaces ...string) func(*snapshot.Pool) {
	return func(p *snapshot.Pool) {
		p.ServiceAllocation = &snapshot.ServiceAllocation{Priority: priority, Namespaces: namespaces, NamespacesRestricted: len(namespaces) > 0}
	}
}

// nobody is what namespaceSelectors make of a pool when they match no namespace.
func nobody(p *snapshot.Pool) {
	p.ServiceAllocation = &snapshot.ServiceAllocation{NamespacesRestricted: true}
}

func selecting(texts ...string) func(*snapshot.Pool) {
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

func excluding(t testing.TB, entries ...string) func(*snapshot.Pool) {
	return func(p *snapshot.Pool) { p.ExcludedRanges = pool(t, "", entries...).Ranges }
}

func ordered(o snapshot.AssignmentOrder) func(*snapshot.Pool) {
	return func(p *snapshot.Pool) { p.Order = o }
}

func cooling(d time.Duration) func(*snapshot.Pool) {
	return func(p *snapshot.Pool) { p.CooldownDelay = d }
}

func quota(n int, namespaces map[string]int) func(*snapshot.Pool) {
	return func(p *snapshot.Pool) { p.Quota = &snapshot.Quota{PerNamespace: n, LimitByNamespace: namespaces} }
}

func probing(p *snapshot.Pool) { p.Probe = &snapshot.ProbeSettings{QuarantineDelay: time.Hour} }
