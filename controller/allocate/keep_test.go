package allocate

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// TestNoEditOfAPoolMovesAnAddress gives an address, edits the pools, and looks again: at once, and after a restart.
func TestNoEditOfAPoolMovesAnAddress(t *testing.T) {
	p := func(name, entry string, edits ...func(*snapshot.Pool)) *snapshot.Pool {
		return with(pool(t, name, entry), edits...)
	}
	tests := map[string]struct {
		edits  []func(*view.Service)
		after  []*snapshot.Pool
		reason names.Reason
		words  string
	}{
		"shrunk":                                {after: []*snapshot.Pool{p("a", "192.0.2.128/25")}, reason: names.ReasonAddressNotInPool, words: "no pool contains 192.0.2.0 any more"},
		"deleted":                               {reason: names.ReasonAddressNotInPool},
		"deleted, another is there":             {after: []*snapshot.Pool{p("b", "198.51.100.0/24")}, reason: names.ReasonAddressNotInPool},
		"renamed":                               {after: []*snapshot.Pool{p("b", "192.0.2.0/24")}, reason: names.ReasonAssigned, words: `"b"`},
		"grown, with lower addresses":           {after: []*snapshot.Pool{p("a", "192.0.0.0/16")}, reason: names.ReasonAssigned},
		"avoids .0 and .255":                    {after: []*snapshot.Pool{p("a", "192.0.2.0/24", func(p *snapshot.Pool) { p.AvoidBuggyIPs = true })}, reason: names.ReasonAddressNotInPool, words: "excludes"},
		"excludes the address":                  {after: []*snapshot.Pool{p("a", "192.0.2.0/24", excluding(t, "192.0.2.0/28"))}, reason: names.ReasonAddressNotInPool, words: "excludes"},
		"for another namespace":                 {after: []*snapshot.Pool{p("a", "192.0.2.0/24", pinned(1, "other"))}, reason: names.ReasonPoolNotAllowed, words: "no longer admits"},
		"for other labels":                      {after: []*snapshot.Pool{p("a", "192.0.2.0/24", selecting("tier=db"))}, reason: names.ReasonPoolNotAllowed},
		"no longer unasked":                     {after: []*snapshot.Pool{p("a", "192.0.2.0/24", closed)}, reason: names.ReasonAssigned},
		"beside a better one":                   {after: []*snapshot.Pool{p("0", "198.51.100.0/24", pinned(1)), p("a", "192.0.2.0/24")}, reason: names.ReasonAssigned},
		"in another order":                      {after: []*snapshot.Pool{p("a", "192.0.2.0/24", ordered(snapshot.OrderHash))}, reason: names.ReasonAssigned},
		"a quota that is exceeded":              {after: []*snapshot.Pool{p("a", "192.0.2.0/24", quota(0, nil))}, reason: names.ReasonAssigned},
		"named, and shrunk":                     {edits: []func(*view.Service){wants("a")}, after: []*snapshot.Pool{p("a", "192.0.2.128/25")}, reason: names.ReasonAddressNotInPool},
		"named, and made again elsewhere":       {edits: []func(*view.Service){wants("a")}, after: []*snapshot.Pool{p("a", "198.51.100.0/24")}, reason: names.ReasonAddressNotInPool},
		"named, and split":                      {edits: []func(*view.Service){wants("a")}, after: []*snapshot.Pool{p("a", "192.0.2.128/25"), p("b", "192.0.2.0/25")}, reason: names.ReasonAddressNotInPool, words: "pool a no longer contains"},
		"named, and deleted":                    {edits: []func(*view.Service){wants("a")}, reason: names.ReasonPoolNotFound},
		"named, and renamed":                    {edits: []func(*view.Service){wants("a")}, after: []*snapshot.Pool{p("b", "192.0.2.0/24")}, reason: names.ReasonPoolNotFound},
		"the address named, and it is gone":     {edits: []func(*view.Service){asks("192.0.2.0")}, after: []*snapshot.Pool{p("a", "192.0.2.128/25")}, reason: names.ReasonAddressNotInPool},
		"the address named, for other Services": {edits: []func(*view.Service){asks("192.0.2.0")}, after: []*snapshot.Pool{p("a", "192.0.2.0/24", nobody)}, reason: names.ReasonPoolNotAllowed},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			before := p("a", "192.0.2.0/24")
			w := newWorld(t, before)
			w.want(w.serve("s", tc.edits...), "192.0.2.0", names.ReasonAssigned)
			w.configure(tc.after...)
			for range 2 {
				w.want(w.serve("s"), "192.0.2.0", tc.reason, tc.words)
				w.restart()
			}
			if d := w.serve("other"); join(d.Addresses) == "192.0.2.0" {
				t.Errorf("another Service was given the address too: %s", d.Text)
			}
			// When the pool is back as it was, so is everything else.
			w.configure(before)
			w.want(w.serve("s"), "192.0.2.0", names.ReasonAssigned)
		})
	}
}

func TestTheOwnersEditMovesIt(t *testing.T) {
	a, b := pool(t, "a", "192.0.2.0/30"), pool(t, "b", "198.51.100.0/30")
	w := newWorld(t, a, b)
	w.want(w.serve("s"), "192.0.2.0", names.ReasonAssigned)
	w.want(w.serve("s", wants("b")), "198.51.100.0", names.ReasonAssigned)
	w.want(w.serve("s", wants("nowhere")), "198.51.100.0", names.ReasonPoolNotFound, "keeps 198.51.100.0")
	w.want(w.serve("s", wants("")), "198.51.100.0", names.ReasonAssigned)
	w.want(w.serve("s", asks("192.0.2.3")), "192.0.2.3", names.ReasonAssigned)
	w.want(w.serve("s", asks("203.0.113.1")), "192.0.2.3", names.ReasonAddressNotInPool)
	// What could not be had is given once it can.
	w.configure(a, b, pool(t, "c", "203.0.113.0/30"))
	w.want(w.serve("s"), "203.0.113.1", names.ReasonAssigned)
	w.want(w.serve("next"), "192.0.2.0", names.ReasonAssigned)
}

func TestAnOldAddressStaysUntilTheNewOneIsWritten(t *testing.T) {
	w := newWorld(t, pool(t, "a", "192.0.2.0/30"))
	w.serve("s")
	s := w.services["s"]
	s.AddressesToRelease = addrs("192.0.2.0")
	d := Decide(s, w.l, w.snap)
	w.want(d, "192.0.2.1", names.ReasonAssigned)
	w.l.Prepare(s.Key, d.Addresses) // and the write fails
	w.want(w.serve("other"), "192.0.2.2", names.ReasonAssigned)
	if got := w.l.Holders(netip.MustParseAddr("192.0.2.0")); len(got) != 1 {
		t.Errorf("the old address is held by %v before the new one is written", got)
	}
	w.want(Decide(s, w.l, w.snap), "192.0.2.1", names.ReasonAssigned)
	// The Service thinks better of it: the new address is free again.
	s.AddressesToRelease = nil
	w.want(w.serve("s"), "192.0.2.0", names.ReasonAssigned)
	w.want(w.serve("third"), "192.0.2.1", names.ReasonAssigned)
}

func TestReleaseAddress(t *testing.T) {
	w := newWorld(t, pool(t, "a", "192.0.2.0/30", "fd00:1::/126"))
	w.want(w.serve("s", dual(view.RequireDualStack)), "192.0.2.0, fd00:1::", names.ReasonAssigned)
	w.want(w.serve("s", releases("192.0.2.0")), "192.0.2.1, fd00:1::", names.ReasonAssigned)
	w.want(w.serve("s"), "192.0.2.1, fd00:1::", names.ReasonAssigned) // the annotation may stay
	w.want(w.serve("other"), "192.0.2.0", names.ReasonAssigned)
	w.delete("other")
	w.want(w.serve("s", releases("192.0.2.0", "192.0.2.1")), "192.0.2.2, fd00:1::", names.ReasonAssigned)
	w.want(w.serve("s", releases("192.0.2.2"), asks("192.0.2.2", "fd00:1::")), "192.0.2.2, fd00:1::", names.ReasonInvalidRequest, "take one of them out")
	w.serve("s", asks())

	// What cannot be exchanged is kept.
	w = newWorld(t, pool(t, "a", "192.0.2.0"))
	w.serve("s")
	w.want(w.serve("s", releases("192.0.2.0")), "192.0.2.0", names.ReasonPoolExhausted, "keeps 192.0.2.0")
	// One that its pool no longer contains is exchanged within the pool that the Service names.
	w.serve("s", releases(), wants("a"))
	w.configure(pool(t, "a", "192.0.2.8/30"))
	w.want(w.serve("s"), "192.0.2.0", names.ReasonAddressNotInPool)
	w.want(w.serve("s", releases("192.0.2.0")), "192.0.2.8", names.ReasonAssigned)
}

func TestQuotas(t *testing.T) {
	a := with(pool(t, "a", "192.0.2.0/29", "fd00:1::/125"), quota(1, map[string]int{"big": 2, "none": 0}))
	w := newWorld(t, a)
	w.want(w.serve("one"), "192.0.2.0", names.ReasonAssigned)
	w.want(w.serve("two"), "", names.ReasonQuotaExceeded, "namespace default", "(a)")
	w.want(w.serve("two", asks("192.0.2.5")), "", names.ReasonQuotaExceeded, `pool "a"`)
	w.want(w.serve("six", single6), "fd00:1::", names.ReasonAssigned) // each family for itself
	w.want(w.serve("big-1", in("big")), "192.0.2.1", names.ReasonAssigned)
	w.want(w.serve("big-2", in("big"), several(2)), "192.0.2.2", names.ReasonQuotaExceeded, "fewer than the 2")
	w.want(w.serve("nobody", in("none")), "", names.ReasonQuotaExceeded)
	w.restart()
	w.want(w.serve("two", asks()), "", names.ReasonQuotaExceeded)
	// Another pool is tried before it is told.
	w.configure(a, pool(t, "b", "198.51.100.0/30"))
	w.want(w.serve("two"), "198.51.100.0", names.ReasonAssigned)
	w.delete("one")
	w.want(w.serve("three"), "192.0.2.0", names.ReasonAssigned)

	// An address that is shared within a namespace counts once, and once for each namespace.
	w = newWorld(t, with(pool(t, "a", "192.0.2.0/29"), quota(1, nil)))
	w.serve("one", shares("k", 1))
	w.want(w.serve("two", shares("k", 2)), "192.0.2.0", names.ReasonAssigned)
	w.want(w.serve("three", shares("k", 3), asks("192.0.2.0")), "192.0.2.0", names.ReasonAssigned)
	w.want(w.serve("elsewhere", in("other"), shares("k", 4)), "192.0.2.0", names.ReasonAssigned)
	w.want(w.serve("further", in("other")), "", names.ReasonQuotaExceeded)
	w.delete("one")
	w.delete("two")
	w.want(w.serve("four"), "", names.ReasonQuotaExceeded)
	w.delete("three")
	w.want(w.serve("four"), "192.0.2.1", names.ReasonAssigned)
}

func TestCooldown(t *testing.T) {
	w := newWorld(t, with(pool(t, "a", "192.0.2.0/31"), cooling(time.Minute)))
	w.serve("one")
	w.serve("two")
	w.delete("one")
	w.want(w.serve("three"), "", names.ReasonPoolExhausted)
	w.want(w.serve("three", asks("192.0.2.0")), "", names.ReasonCoolingDown, "default/one", "2026-01-01T00:01:00Z")
	w.want(w.serve("one"), "192.0.2.0", names.ReasonAssigned) // of the same name, it may have it at once
	w.delete("one")
	w.restart()
	w.want(w.serve("three", asks()), "", names.ReasonPoolExhausted)
	if _, next := w.l.Advance(w.now); !next.Equal(w.now.Add(time.Minute)) {
		t.Errorf("the Ledger wants to be called at %s, want in a minute", next)
	}
	w.later(59 * time.Second)
	w.want(w.serve("three"), "", names.ReasonPoolExhausted)
	if freed, next := w.l.Advance(w.now.Add(time.Second)); len(freed) != 1 || !next.IsZero() {
		t.Errorf("after the cool-down %v is free, and it waits until %s", freed, next)
	}
	w.want(w.serve("three"), "192.0.2.0", names.ReasonAssigned)
	// A move begins one too.
	w.delete("two")
	w.later(time.Hour)
	w.want(w.serve("three", releases("192.0.2.0")), "192.0.2.1", names.ReasonAssigned)
	w.want(w.serve("four"), "", names.ReasonPoolExhausted)
}

func TestReservations(t *testing.T) {
	web := view.ObjectKey{Namespace: "default", Name: "web"}
	t.Run("by address", func(t *testing.T) {
		w := newWorld(t, with(pool(t, "a", "192.0.2.0/30"), closed), pool(t, "b", "198.51.100.0/30"))
		r := &snapshot.Reservation{Name: "r", Service: web, Addresses: addrs("192.0.2.0", "198.51.100.0"), ExpiresAt: w.now.Add(time.Hour)}
		if d := w.reserve(r); d.Reason != names.ReasonReserved {
			t.Errorf("the reservation is %s: %s", d.Reason, d.Text)
		}
		w.want(w.serve("other"), "198.51.100.1", names.ReasonAssigned)
		w.want(w.serve("other", asks("192.0.2.0")), "198.51.100.1", names.ReasonAddressReserved, `default/web by AddressReservation "r" until 2026-01-01T01:00:00Z`)
		w.want(w.serve("web"), "192.0.2.0", names.ReasonAssigned)
		w.delete("web")
		w.restart()
		w.want(w.serve("other"), "198.51.100.1", names.ReasonAddressReserved)
		w.later(time.Hour)
		w.want(w.serve("other"), "192.0.2.0", names.ReasonAssigned)
		if d := w.reserve(r); d.Reason != names.ReasonExpired {
			t.Errorf("after its time the reservation is %s: %s", d.Reason, d.Text)
		}
	})
	t.Run("of an address that somebody holds", func(t *testing.T) {
		w := newWorld(t, pool(t, "a", "192.0.2.0/30"))
		w.serve("other")
		if d := w.reserve(&snapshot.Reservation{Name: "r", Service: web, Addresses: addrs("192.0.2.0")}); d.Reason != names.ReasonAddressInUse {
			t.Errorf("the reservation is %s: %s", d.Reason, d.Text)
		}
		w.want(w.serve("other"), "192.0.2.0", names.ReasonAssigned)
		w.delete("other")
		w.want(w.serve("third"), "192.0.2.1", names.ReasonAssigned)
		w.want(w.serve("web"), "192.0.2.0", names.ReasonAssigned)
	})
	t.Run("of a pool, ahead of the Service", func(t *testing.T) {
		w := newWorld(t, pool(t, "a", "192.0.2.0/30"), pool(t, "b", "198.51.100.0/30", "fd00:1::/126"))
		r := &snapshot.Reservation{Name: "r", Service: web, Pool: "b"}
		if d := w.reserve(r); join(d.Addresses) != "198.51.100.0, fd00:1::" {
			t.Errorf("it keeps %v, %s: %s", d.Addresses, d.Reason, d.Text)
		}
		w.want(w.serve("other", wants("b")), "198.51.100.1", names.ReasonAssigned)
		w.want(w.serve("web", dual(view.RequireDualStack)), "198.51.100.0, fd00:1::", names.ReasonAssigned)
		if d := w.reserve(r); join(d.Addresses) != "198.51.100.0, fd00:1::" {
			t.Errorf("later it keeps %v", d.Addresses)
		}
		if d := w.reserve(&snapshot.Reservation{Name: "x", Service: web, Pool: "nowhere"}); d.Reason != names.ReasonPoolNotFound {
			t.Errorf("of a pool that is not there: %s", d.Reason)
		}
	})
	t.Run("of what a Service had", func(t *testing.T) {
		w := newWorld(t, pool(t, "a", "192.0.2.0/30"))
		r := &snapshot.Reservation{Name: "r", Service: web}
		if d := w.reserve(r); d.Reason != names.ReasonNoAddress {
			t.Errorf("without a Service it is %s: %s", d.Reason, d.Text)
		}
		w.serve("web")
		w.reserve(r)
		w.delete("web")
		w.want(w.serve("other"), "192.0.2.1", names.ReasonAssigned)
		w.restart()
		w.reserve(r) // the status lags behind
		w.want(w.serve("third"), "192.0.2.2", names.ReasonAssigned)
		w.want(w.serve("web"), "192.0.2.0", names.ReasonAssigned)
		w.delete("web")
		w.reserve() // and the reservation is gone
		w.want(w.serve("fourth"), "192.0.2.0", names.ReasonAssigned)
	})
	t.Run("what the status says is kept from the start", func(t *testing.T) {
		w := newWorld(t, pool(t, "a", "192.0.2.0/30"))
		w.snap.Reservations = []*snapshot.Reservation{{Name: "r", Service: web, KeptAddresses: addrs("192.0.2.0")}}
		w.want(w.serve("other"), "192.0.2.1", names.ReasonAssigned)
	})
}

func TestProbing(t *testing.T) {
	w := newWorld(t, with(pool(t, "a", "192.0.2.0/30"), probing))
	d := w.serve("s")
	w.want(d, "", names.ReasonProbing, "192.0.2.0")
	if join(d.Proposed) != "192.0.2.0" || len(w.l.Proposed()) != 1 {
		t.Fatalf("proposed is %v, the Ledger has %v", d.Proposed, w.l.Proposed())
	}
	w.want(w.serve("other"), "", names.ReasonProbing, "192.0.2.1")
	w.l.Silent(addrs("192.0.2.0")[0])
	w.l.Answered(addrs("192.0.2.1")[0], "02:00:00:00:00:01")
	w.want(w.serve("s"), "192.0.2.0", names.ReasonAssigned)
	w.want(w.serve("other"), "", names.ReasonProbing, "192.0.2.2")
	w.l.Silent(addrs("192.0.2.2")[0])
	w.want(w.serve("other"), "192.0.2.2", names.ReasonAssigned)
	w.want(w.serve("third", asks("192.0.2.1")), "", names.ReasonQuarantined, "02:00:00:00:00:01 answered", "until 2026-01-01T01:00:00Z")
	if len(w.l.Proposed()) != 0 {
		t.Errorf("still proposed: %v", w.l.Proposed())
	}
	w.restart()
	w.want(w.serve("third"), "", names.ReasonQuarantined)
	w.later(time.Hour)
	w.want(w.serve("third"), "", names.ReasonProbing)
	// A proposal that its Service no longer needs is free again.
	w.delete("third")
	w.want(w.serve("fourth"), "", names.ReasonProbing, "192.0.2.1")
	w.l.Silent(addrs("192.0.2.1")[0])
	// A move keeps the old address while the new one is asked for.
	w.want(w.serve("s", releases("192.0.2.0")), "192.0.2.0", names.ReasonProbing, "192.0.2.3", "keeps 192.0.2.0")
	w.l.Silent(addrs("192.0.2.3")[0])
	w.want(w.serve("s"), "192.0.2.3", names.ReasonAssigned)
	// Who shares an address needs no probe: it is in use by us.
	w.serve("fourth")
	w.want(w.serve("fourth", shares("k", 1)), "192.0.2.1", names.ReasonAssigned)
	w.want(w.serve("fifth", shares("k", 2), asks("192.0.2.1")), "192.0.2.1", names.ReasonAssigned)
}

func TestUsage(t *testing.T) {
	w := newWorld(t, with(pool(t, "a", "192.0.2.0/29", "fd00::/32"), cooling(time.Minute), excluding(t, "192.0.2.7")))
	check := func(want Usage) {
		t.Helper()
		if got := w.l.Usage(w.snap.Pools[0], w.snap); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	const most = 1<<63 - 1
	check(Usage{AvailableIPv4: 7, AvailableIPv6: most})
	w.serve("one", shares("k", 1))
	w.serve("two", shares("k", 2))
	w.serve("three", single6)
	check(Usage{AssignedIPv4: 1, AssignedIPv6: 1, AvailableIPv4: 6, AvailableIPv6: most - 1})
	w.serve("four")
	w.delete("four")
	check(Usage{AssignedIPv4: 1, AssignedIPv6: 1, AvailableIPv4: 5, AvailableIPv6: most - 1})
	w.configure(with(pool(t, "a", "192.0.2.0/30"), excluding(t, "192.0.2.0")))
	check(Usage{AssignedIPv4: 1, AvailableIPv4: 2})
}
