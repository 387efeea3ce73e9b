package allocate

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// Withheld is an address that is not free though nobody holds it, or that will not be once nobody does.
type Withheld struct {
	Address netip.Addr
	// Reason is ReasonAddressReserved, ReasonCoolingDown, ReasonQuarantined or ReasonProbing.
	Reason names.Reason
	// Service may have the address all the same; nobody may when it is quarantined.
	Service view.ObjectKey
	// Until is when the address is no longer withheld; zero is until somebody says so.
	Until time.Time
	// By is the AddressReservation, or who answered for the address on the segment.
	By string
	// Silent says of an address that is being probed that nobody answered for it.
	Silent bool
}

// same says whether two entries are about the same thing, so that the newer takes the older's place.
func (w Withheld) same(o Withheld) bool {
	return w.Reason == o.Reason && (w.Reason != names.ReasonAddressReserved || w.By == o.By)
}

// lasts says whether the entry has to be remembered across a restart: the others are found again.
func (w Withheld) lasts() bool {
	return w.Reason == names.ReasonCoolingDown || w.Reason == names.ReasonQuarantined
}

// deadline is when an entry may end. Entries that ended otherwise leave theirs behind, and it is passed over.
type deadline struct {
	at     time.Time
	on     address
	reason names.Reason
	by     string
}

// wait files a deadline behind those that end no later. Nearly all go to the end, because a pool's cool-downs end in the order in which they
// begin.
func (l *Ledger) wait(d deadline) {
	i := sort.Search(len(l.due), func(i int) bool { return d.at.Before(l.due[i].at) })
	l.due = slices.Insert(l.due, i, d)
}

// Advance tells the Ledger what time it is and ends what is over. It returns the addresses that became free, and when it has to be
// called again at the latest; zero when nothing waits for the time. Time that goes backwards is ignored.
func (l *Ledger) Advance(now time.Time) (freed []netip.Addr, next time.Time) {
	if now.After(l.now) {
		l.now = now
	}
	for len(l.due) > 0 && !l.due[0].at.After(l.now) {
		d := l.due[0]
		l.due = l.due[1:]
		over := func(w Withheld) bool {
			return w.Reason == d.reason && w.By == d.by && !w.Until.IsZero() && !w.Until.After(l.now)
		}
		if l.drop(d.on, over) {
			freed = append(freed, d.on.netip())
		}
	}
	if len(l.due) > 0 {
		next = l.due[0].at
	}
	return freed, next
}

// Lasting counts the changes of what has to be remembered across a restart, so that it is asked for only when there is news.
func (l *Ledger) Lasting() uint64 { return l.lasting }

// Remember returns what has to be given to Withhold after a restart, sorted. Of more than limit those are left out that end soonest.
func (l *Ledger) Remember(limit int) []Withheld {
	all := slices.DeleteFunc(l.Withheld(), func(w Withheld) bool { return !w.lasts() })
	if len(all) <= limit {
		return all
	}
	slices.SortStableFunc(all, func(x, y Withheld) int { return y.Until.Compare(x.Until) })
	all = all[:limit]
	slices.SortFunc(all, func(x, y Withheld) int { return cmp.Or(x.Address.Compare(y.Address), cmp.Compare(x.Reason, y.Reason)) })
	return all
}

// Withheld returns all that is withheld, sorted.
func (l *Ledger) Withheld() []Withheld {
	var out []Withheld
	for _, w := range l.withheld {
		out = append(out, w...)
	}
	slices.SortFunc(out, func(x, y Withheld) int {
		return cmp.Or(x.Address.Compare(y.Address), cmp.Compare(x.Reason, y.Reason), cmp.Compare(x.By, y.By))
	})
	return out
}

// Withhold keeps an address from everybody but the Service that is named, in the place of an older entry about the same thing. One that is over
// already is ignored.
func (l *Ledger) Withhold(w Withheld) {
	a := addressOf(w.Address)
	if !w.Until.IsZero() && !w.Until.After(l.now) {
		return
	}
	if slices.Contains(l.withheld[a], w) {
		return
	}
	l.forget(a, w.same)
	l.withheld[a] = append(l.withheld[a], w)
	if w.Reason == names.ReasonProbing {
		l.probing++
	}
	if w.lasts() {
		l.lasting++
	}
	if w.Reason == names.ReasonAddressReserved {
		if l.reserved[w.By] == nil {
			l.reserved[w.By] = map[address]struct{}{}
		}
		l.reserved[w.By][a] = struct{}{}
	}
	if w.Service != (view.ObjectKey{}) && w.Reason != names.ReasonQuarantined {
		l.waiting[w.Service] = append(l.waiting[w.Service], a)
	}
	if !w.Until.IsZero() {
		l.wait(deadline{w.Until, a, w.Reason, w.By})
	}
	if st := l.market.stock(a); st != nil {
		if at, ok := st.layout.position(a); ok {
			st.space.take(at)
		}
	}
}

// forget takes the entries that match from an address, and leaves it as free as it was.
func (l *Ledger) forget(a address, match func(Withheld) bool) {
	rest := l.withheld[a][:0]
	for _, w := range l.withheld[a] {
		if !match(w) {
			rest = append(rest, w)
			continue
		}
		if w.Reason == names.ReasonProbing {
			l.probing--
		}
		if w.lasts() {
			l.lasting++
		}
		if w.Reason == names.ReasonAddressReserved {
			if delete(l.reserved[w.By], a); len(l.reserved[w.By]) == 0 {
				delete(l.reserved, w.By)
			}
		}
		if i := slices.Index(l.waiting[w.Service], a); i >= 0 {
			l.waiting[w.Service] = slices.Delete(l.waiting[w.Service], i, i+1)
		}
		if w.Reason != names.ReasonQuarantined && len(l.waiting[w.Service]) == 0 {
			delete(l.waiting, w.Service)
		}
	}
	if l.withheld[a] = rest; len(rest) == 0 {
		delete(l.withheld, a)
	}
}

// drop takes the entries that match from an address, and says whether it became free.
func (l *Ledger) drop(a address, match func(Withheld) bool) bool {
	if len(l.withheld[a]) == 0 {
		return false
	}
	l.forget(a, match)
	if len(l.withheld[a]) > 0 || l.held(a) {
		return false
	}
	if st := l.market.stock(a); st != nil {
		if at, ok := st.layout.position(a); ok {
			st.space.free(at)
		}
	}
	return true
}

// Propose holds addresses for a Service until the segment has been asked for them, in the place of those proposed to it before.
func (l *Ledger) Propose(k view.ObjectKey, addresses []netip.Addr) {
	for _, a := range slices.Clone(l.waiting[k]) {
		if !slices.Contains(addresses, a.netip()) {
			l.drop(a, func(w Withheld) bool { return w.Reason == names.ReasonProbing && w.Service == k })
		}
	}
	for _, a := range addresses {
		if !slices.ContainsFunc(l.withheld[addressOf(a)], func(w Withheld) bool { return w.Reason == names.ReasonProbing && w.Service == k }) {
			l.Withhold(Withheld{Address: a, Service: k, Reason: names.ReasonProbing})
		}
	}
}

// Prepare holds addresses for a Service that it is about to be given, so that it keeps what it has until they are written: make before
// break. Commit or Release ends it; until then every decision for the Service prefers them.
func (l *Ledger) Prepare(k view.ObjectKey, addresses []netip.Addr) {
	held, _ := l.Held(k)
	added := slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return slices.Contains(held.Addresses, a) })
	l.Propose(k, added)
	for _, a := range added {
		l.Silent(a)
	}
}

// Proposed returns the addresses that wait for an answer from the segment, sorted, with the Services that they are for.
func (l *Ledger) Proposed() []Withheld {
	return slices.DeleteFunc(l.Withheld(), func(w Withheld) bool { return w.Reason != names.ReasonProbing || w.Silent })
}

// Probing says whether any address waits for an answer from the segment, or for the write that follows it.
func (l *Ledger) Probing() bool { return l.probing > 0 }

// Silent records that nobody answered for a proposed address: the next decision gives it to the Service that it was proposed to.
func (l *Ledger) Silent(a netip.Addr) {
	for i, w := range l.withheld[addressOf(a)] {
		if w.Reason == names.ReasonProbing {
			l.withheld[addressOf(a)][i].Silent = true
		}
	}
}

// Answered records that somebody else uses a proposed address: it is quarantined, and the next decision gives another. A pool that no longer
// probes quarantines for an hour.
func (l *Ledger) Answered(a netip.Addr, by string) {
	l.drop(addressOf(a), func(w Withheld) bool { return w.Reason == names.ReasonProbing })
	d := time.Hour
	if st := l.market.stock(addressOf(a)); st != nil && st.pool.Probe != nil {
		d = st.pool.Probe.QuarantineDelay
	}
	l.Withhold(Withheld{Address: a, Reason: names.ReasonQuarantined, Until: l.now.Add(d), By: by})
}

// withdraw drops what is proposed to the Service.
func (l *Ledger) withdraw(k view.ObjectKey) {
	if len(l.waiting[k]) > 0 {
		l.Propose(k, nil)
	}
}

// blocked returns the entry that keeps the address from the Service.
func (l *Ledger) blocked(a address, k view.ObjectKey) (Withheld, bool) {
	for _, w := range l.withheld[a] {
		if w.Reason == names.ReasonQuarantined || w.Service != k {
			return w, true
		}
	}
	return Withheld{}, false
}

// silent says whether the segment was asked for the address on behalf of the Service, and nobody answered.
func (l *Ledger) silent(a address, k view.ObjectKey) bool {
	return slices.ContainsFunc(l.withheld[a], func(w Withheld) bool { return w.Reason == names.ReasonProbing && w.Service == k && w.Silent })
}
