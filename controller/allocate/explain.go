package allocate

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// notAdmitted says that a pool is for others.
const notAdmitted = "the serviceAllocation of pool %q does not admit this Service: ask for another pool or address, or add the namespace or the labels of the Service to it"

// requested says which pool gives an address that the Service asks for, or why it cannot have it. An address that it holds already is
// judged by its pool alone.
func (d *decider) requested(a netip.Addr) (*source, names.Reason, string) {
	at := addressOf(a)
	src := d.m.gives(at)
	if src == nil {
		if outer := d.m.covering(at); outer != nil {
			return nil, names.ReasonAddressNotInPool, fmt.Sprintf("pool %q excludes the requested %s, by gantry.exclude or avoidBuggyIPs: ask for another address", outer.pool.Name, a)
		}
		return nil, names.ReasonAddressNotInPool, fmt.Sprintf("no pool contains the requested %s: ask for an address of a pool, or add it to one", a)
	}
	if d.s.RequestedPool != "" && d.s.RequestedPool != src.pool.Name {
		return nil, names.ReasonInvalidRequest, fmt.Sprintf("the requested %s belongs to pool %q, but the annotation %s asks for pool %q: take one of them out",
			a, src.pool.Name, names.AnnotationPool, d.s.RequestedPool)
	}
	if !admits(src.pool, d.s) {
		return nil, names.ReasonPoolNotAllowed, fmt.Sprintf(notAdmitted, src.pool.Name)
	}
	if slices.Contains(d.held.Addresses, a) {
		return src, "", ""
	}
	if reason, text := d.l.clash(at, d.s.Key, d.share); reason != "" {
		return nil, reason, fmt.Sprintf("the requested %s %s", a, text)
	}
	if w, blocked := d.l.blocked(at, d.s.Key); blocked && !d.l.held(at) {
		return nil, w.Reason, fmt.Sprintf("the requested %s %s", a, w.sentence())
	}
	if !d.affords(src.stock(at.family()), at) {
		return nil, names.ReasonQuotaExceeded, fmt.Sprintf("namespace %s holds as many addresses of pool %q as its quota allows: raise the quota or free some", d.s.Key.Namespace, src.pool.Name)
	}
	return src, "", ""
}

// clash says why the Service may not hold the address beside those who do; the Reason is empty when it may. Of several it names the
// first by name, so that every controller says the same.
func (l *Ledger) clash(a address, k view.ObjectKey, sh *share) (names.Reason, string) {
	first, reason, why := l.firstRival(a, k, sh)
	if first == nil {
		return "", ""
	}
	return reason, fmt.Sprintf("is held by Service %s, which may not share it: %s", first.key, why)
}

// firstRival returns the first holder of the address by name that may not share it with the Service, and why not; nil when there is
// none.
func (l *Ledger) firstRival(a address, k view.ObjectKey, sh *share) (first *record, reason names.Reason, why string) {
	var room [1]int32
	for _, id := range l.holders.of(a, &room) {
		r := l.record(id)
		if r.key == k || (first != nil && first.key.Compare(r.key) < 0) {
			continue
		}
		if found, text := sh.clash(r.share); found != "" {
			first, reason, why = r, found, text
		}
	}
	return first, reason, why
}

// sentence says why the address cannot be had, as the end of a sentence.
func (w Withheld) sentence() string {
	until := ""
	if !w.Until.IsZero() {
		until = " until " + w.Until.UTC().Format(time.RFC3339)
	}
	switch w.Reason {
	case names.ReasonAddressReserved:
		return fmt.Sprintf("is reserved for Service %s by AddressReservation %q%s", w.Service, w.By, until)
	case names.ReasonQuarantined:
		return fmt.Sprintf("is in quarantine%s: %s answered for it on the segment", until, w.By)
	case names.ReasonProbing:
		return fmt.Sprintf("is about to be given to Service %s", w.Service)
	}
	return fmt.Sprintf("was given back by Service %s and cools down%s", w.Service, until)
}

// keep leaves the Service with what it has and says why it does not get what it asks for.
func (d *decider) keep(r names.Reason, format string, args ...any) Decision {
	d.picked, d.kept = nil, d.held.Addresses
	if d.s.RequestFault == "" { // what it holds beyond its number is an exchange that was not written
		d.trim()
		d.held.Addresses = d.kept
	}
	out := Decision{Addresses: d.held.Addresses, Reason: r, Text: fmt.Sprintf(format, args...), Waiting: true}
	if len(d.held.Addresses) > 0 {
		out.Text += fmt.Sprintf("; the Service keeps %s", join(d.held.Addresses))
		out.Pool, out.Pools, _ = d.origins(out.Addresses)
	}
	return out
}

func (d *decider) assigned(addresses []netip.Addr) Decision {
	out := Decision{Addresses: addresses, Reason: names.ReasonAssigned}
	out.Pool, out.Pools, out.Text = d.origins(addresses)
	return out
}

// origins returns the pools of the addresses and a sentence about them. What no pool covers is said to be of the pool that it came from; and
// so is what the Service got from the pool that it names, so that a later change of the pools is told from one of its own.
func (d *decider) origins(addresses []netip.Addr) (pool string, pools []string, text string) {
	room := make([]byte, 0, 96)
	room = append(room, "assigned "...)
	for i, a := range addresses {
		name := d.held.Pool
		if src := d.m.covering(addressOf(a)); src != nil && !(name != "" && name == d.s.RequestedPool && slices.Contains(d.kept, a)) {
			name = src.pool.Name
		}
		switch {
		case i == 0:
			pool = name
		case !slices.Contains(pools, name) && (name != pool || pools != nil):
			if pools == nil {
				pools = []string{pool}
			}
			pools = append(pools, name)
		}
		if i > 0 {
			room = append(room, ", "...)
		}
		room = a.AppendTo(room)
	}
	switch {
	case pools != nil:
		room = append(append(room, " from the pools "...), strings.Join(pools, ", ")...)
	default:
		room = append(append(append(room, ` from pool "`...), pool...), '"')
	}
	return pool, pools, string(room)
}

func join(addresses []netip.Addr) string {
	var out []string
	for _, a := range addresses {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

// most is how many pools are named in a sentence.
const most = 8

// list names pools, sorted, each once; of many only the first.
func list(from []*source) string {
	var out []string
	for _, src := range from {
		out = append(out, src.pool.Name)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if n := len(out); n > most {
		return strings.Join(out[:most], ", ") + fmt.Sprintf(" and %d more", n-most)
	}
	return strings.Join(out, ", ")
}

func itoa(n int) string { return strconv.Itoa(n) }
