package reconcile

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/view"
)

// look decides what becomes of one Service. One whose write is under way is looked at when that has ended.
func (r *Services) look(ctx context.Context, l letter) {
	rec := r.records[l.ObjectKey]
	if rec != nil && rec.busy {
		rec.again = true
		return
	}
	s, err := r.API.Cached(ctx, l.ObjectKey)
	if err != nil {
		r.problem(l.ObjectKey, err, lastDelay)
		r.lookAfter(l.ObjectKey, lastDelay)
		return
	}
	switch {
	case s == nil && rec == nil:
		return
	case s == nil && l.gone == rec.uid:
		r.release(l.ObjectKey, "the Service is gone")
		return
	case s == nil:
		r.confirm(l.ObjectKey, rec)
		return
	case rec != nil && versionOf(s.ResourceVersion) < rec.version:
		return // the cache is behind; the event that it owes us brings us back
	case rec != nil && rec.uid != s.UID:
		r.release(l.ObjectKey, "the Service was made anew under the same name")
		rec = nil
	}
	if rec != nil && rec.refused == s.ResourceVersion && time.Now().Before(rec.retry) {
		return // a timer runs
	}
	v := view.FromService(s)
	if !r.ours(&v) {
		r.dismiss(s, &v)
		return
	}
	if rec == nil {
		rec = &record{uid: s.UID, version: versionOf(s.ResourceVersion), waiting: waitingSince(s, time.Now())}
		r.records[l.ObjectKey] = rec
	}
	r.journal.fence.Supersede(l.ObjectKey, s.ResourceVersion)
	if now := sharing(&v); now != rec.sharing { // who waits to share with it may try again
		rec.sharing, r.wakeSharers = now, r.wakeSharers || rec.sharing != ""
	}
	if !r.observe(&v, rec, s.ResourceVersion) {
		r.checkSharing(&v)
		return
	}
	r.carryOut(ctx, s, &v, allocate.Decide(&v, r.ledger, r.config.snapshot))
}

// sharing is what decides with whom a Service may share, in one text; empty when it wants to share with nobody.
func sharing(v *view.Service) string {
	if v.SharingKey == "" {
		return ""
	}
	return fmt.Sprint(v.SharingKey, v.Ports, v.LocalTrafficPolicy, v.PodSelector)
}

// lookAfter has a Service looked at after d.
func (r *Services) lookAfter(k view.ObjectKey, d time.Duration) {
	time.AfterFunc(d, func() { r.inbox.add(k) })
}

// confirm asks the API server itself about a Service before what it holds is given up.
func (r *Services) confirm(k view.ObjectKey, rec *record) {
	rec.busy = true
	r.start(&confirm{key: k, epoch: r.epoch})
}

// confirmed takes in what the API server says. An answer from before the Ledger was built anew counts for nothing.
func (r *Services) confirmed(c *confirm, now *corev1.Service, err error) {
	rec := r.free(c.key)
	switch {
	case err != nil:
		rec.failures++
		r.problem(c.key, err, delay(rec.failures))
		r.lookAfter(c.key, delay(rec.failures))
		return
	case c.epoch != r.epoch:
		r.inbox.add(c.key)
		return
	case now == nil || now.UID != rec.uid:
		r.release(c.key, "the Service is gone")
		return
	}
	rec.failures = 0
	rec.version = max(rec.version, versionOf(now.ResourceVersion))
	if v := view.FromService(now); !r.ours(&v) && !marked(now) {
		r.release(c.key, "the Service is no LoadBalancer of this class any more")
	}
}

// free ends that a Service is busy; news that came meanwhile are looked at next.
func (r *Services) free(k view.ObjectKey) *record {
	rec := r.records[k]
	rec.busy = false
	if rec.again {
		rec.again = false
		r.inbox.add(k)
	}
	return rec
}

// observe takes in a status that says something else than the Ledger: another controller gave it, it came with the object, from a
// backup say, or somebody edited it. It is a claim like any other, as far as nobody else holds the addresses. What a pending
// assignment may still bring is held beside it. It returns false when the Ledger has another holder, and so may be wrong: the API
// server is asked before anything is taken from anybody. What was built or checked against that very status is right.
func (r *Services) observe(v *view.Service, rec *record, baseVersion string) bool {
	if r.clashes(v) && versionOf(baseVersion) > rec.loaded {
		return false
	}
	held, _ := r.ledger.Held(v.Key)
	addresses := v.AssignedAddresses
	if len(addresses) == 0 { // what it had before somebody wiped the status is its own still
		addresses = held.Addresses
	}
	addresses = union(addresses, r.journal.fence.Addresses(v.Key, baseVersion))
	// The pool's name counts where no pool has the addresses any more: it is only known from who wrote it.
	if !slices.Equal(addresses, held.Addresses) || len(v.AssignedAddresses) > 0 && v.RecordedPool != "" && v.RecordedPool != held.Pool {
		r.claim(v, addresses)
		if slices.ContainsFunc(held.Addresses, func(a netip.Addr) bool { return !slices.Contains(addresses, a) }) {
			r.counters.stale, r.wakePending = true, true // somebody who waits may have it
		}
	}
	return true
}

// clashes says whether the status has an address that is another's, as far as the Ledger knows.
func (r *Services) clashes(v *view.Service) bool {
	return slices.ContainsFunc(v.AssignedAddresses, func(a netip.Addr) bool { return !r.ledger.Usable(a, v) })
}

// carryOut commits a Decision and has it written. The Ledger comes first: from then on nobody else is given the addresses. What the
// Service had stays with it until the new is written: make before break.
func (r *Services) carryOut(ctx context.Context, s *corev1.Service, v *view.Service, d allocate.Decision) {
	if d.Reason == names.ReasonAssigned && !d.Waiting {
		r.pending.remove(v.Key)
	} else {
		r.pending.put(v.Key, d.Reason)
	}
	w := &write{v: *v, before: s, decision: d, pool: d.Pool, epoch: r.epoch}
	w.held, _ = r.ledger.Held(v.Key)
	w.after = desired(s, d, w.pool)
	if len(d.Proposed) > 0 {
		r.ledger.Propose(v.Key, d.Proposed)
	}
	if same(s, w.after) {
		if !r.mayStillChange(w) {
			r.journal.fence.Settle(v.Key, s.ResourceVersion)
			r.commit(w)
			return
		}
		touch(w.after)
		w.touched = true
	}
	if r.records[v.Key].contended(time.Now()) {
		r.Log.Warn("somebody else writes this Service's status again and again; is another controller at work on it?", "service", v.Key.String(), "reason", names.ReasonWriteFailed)
		r.lookAfter(v.Key, contendedDelay)
		return
	}
	if len(d.Addresses) > 0 && r.Forecast != nil {
		if c, sure := r.Forecast(ctx, s, d.Addresses); sure {
			meta.SetStatusCondition(&w.after.Status.Conditions, c)
		}
	}
	if len(d.Proposed) == 0 {
		r.ledger.Commit(v, union(w.held.Addresses, d.Addresses), w.pool)
	}
	r.records[v.Key].busy = true
	if len(union(v.AssignedAddresses, d.Addresses)) > len(v.AssignedAddresses) && !r.journal.fence.Covers(w.intent()) {
		r.stage(w)
		return
	}
	r.start(w)
}

// stage has a write wait for the AddressLedger. First come those of Services that the object shows already: they take no more room.
func (r *Services) stage(w *write) {
	j := &r.journal
	w.refused = r.records[w.v.Key].entryRefused
	if j.fence.Shows(w.v.Key) {
		j.staged = slices.Insert(j.staged, 0, w)
		return
	}
	j.staged = append(j.staged, w)
}

// mayStillChange says whether a write that another controller has under way may still bring the Service an address that its status
// does not show. A write of ours ends that, even one that says nothing new.
func (r *Services) mayStillChange(w *write) bool {
	pending := r.journal.fence.Addresses(w.v.Key, w.before.ResourceVersion)
	return len(union(w.v.AssignedAddresses, pending)) > len(w.v.AssignedAddresses)
}

// A Service that has to be written more often than this is fought over: each side would undo the other's write within milliseconds,
// and the API server would have to bear it.
const (
	contendedWrites = 20
	contendedPeriod = 10 * time.Second
	contendedDelay  = 2 * time.Second
)

// contended counts a write that is about to be made, and says whether it has to wait.
func (r *record) contended(now time.Time) bool {
	if now.Sub(r.since) > contendedPeriod {
		r.since, r.writes = now, 0
	}
	r.writes++
	return r.writes > contendedWrites
}

// commit records that a Service holds what was decided, and nothing else.
func (r *Services) commit(w *write) {
	if len(w.decision.Proposed) > 0 { // nothing is given yet
		return
	}
	r.ledger.Commit(&w.v, w.decision.Addresses, w.pool)
	if slices.Equal(w.held.Addresses, w.decision.Addresses) {
		return
	}
	r.counters.stale = true
	if slices.ContainsFunc(w.held.Addresses, func(a netip.Addr) bool { return !slices.Contains(w.decision.Addresses, a) }) {
		r.wakePending = true
	}
}

// wrote takes in what became of a write.
func (r *Services) wrote(_ context.Context, w *write, o outcome, now *corev1.Service, err error) {
	k, base := w.v.Key, w.before.ResourceVersion
	rec := r.records[k]
	r.Metrics.statusWrites.WithLabelValues(o.String()).Inc()
	if o == unknown { // it stays busy, and its Intent open, until it is known
		w.doubt = true
		rec.failures++
		r.problem(k, err, delay(rec.failures))
		r.startAfter(w, delay(rec.failures))
		return
	}
	r.state.attempt(writing, true)
	if o == rejected {
		r.journal.fence.Refuse(k, base)
	} else {
		r.journal.fence.Settle(k, base)
	}
	r.free(k)
	if now != nil {
		rec.version = max(rec.version, versionOf(now.ResourceVersion))
	}
	if o == landed && !w.dismissed {
		r.measureWait(w, rec)
	}
	if o == landed && !w.dismissed && !w.touched {
		r.tell(w)
	}
	if w.epoch != r.epoch { // the Ledger was built anew meanwhile, and knows better
		r.inbox.add(k)
		return
	}
	switch o {
	case landed:
		if w.dismissed {
			r.release(k, "the Service is no LoadBalancer of this class any more")
			return
		}
		r.commit(w)
		if w.decision.Reason == names.ReasonWriteFailed { // what it says is why, and it is tried again
			rec.refused = now.ResourceVersion
			return
		}
		rec.failures = 0
	case gone:
		r.release(k, "the Service is gone")
	case refused: // somebody else wrote the Service: what it says now counts
		r.revert(w, now)
		r.inbox.add(k)
	case rejected:
		rec.failures++
		rec.refused, rec.retry = base, time.Now().Add(delay(rec.failures))
		r.problem(k, err, delay(rec.failures))
		r.revert(w, w.before)
		r.lookAfter(k, delay(rec.failures))
	}
}

// startAfter has a task run after d.
func (r *Services) startAfter(w *write, d time.Duration) {
	w.wake = time.Now().Add(d)
	r.sleeping = append(r.sleeping, w)
	r.pokeAfter(d)
}

// revert records that a Service holds what its status says and what another's write may still bring, and nothing that was decided
// for it.
func (r *Services) revert(w *write, now *corev1.Service) {
	if w.dismissed { // nothing was decided
		return
	}
	v := view.FromService(now)
	if r.clashes(&v) {
		r.checkSharing(&v)
		return
	}
	before, _ := r.ledger.Held(v.Key)
	after := union(v.AssignedAddresses, r.journal.fence.Addresses(v.Key, now.ResourceVersion))
	r.ledger.Commit(&v, after, v.RecordedPool)
	if len(before.Addresses) > len(after) {
		r.wakePending = true
	}
	r.pending.put(w.v.Key, names.ReasonWriteFailed)
}

// release frees what a Service held and lets those that wait try again.
func (r *Services) release(k view.ObjectKey, why string) {
	r.pending.remove(k)
	delete(r.records, k)
	r.journal.fence.Settle(k, "")
	if freed := r.ledger.Release(k); len(freed) > 0 {
		r.Log.Info("addresses released", "service", k.String(), "addresses", freed, "why", why)
		r.counters.stale, r.wakePending = true, true
	}
}

// dismiss takes our status from a Service that is not ours to serve. One of another class is that class's to write, so that only
// what it held from us is taken back; one that never was ours is left alone.
func (r *Services) dismiss(s *corev1.Service, v *view.Service) {
	rec := r.records[v.Key]
	if rec == nil && (v.IsLoadBalancer || !marked(s)) {
		return
	}
	w := &write{v: *v, before: s, epoch: r.epoch, dismissed: true}
	w.held, _ = r.ledger.Held(v.Key)
	w.after = cleared(s, w.held.Addresses)
	switch {
	case rec == nil:
		rec = &record{uid: s.UID, version: versionOf(s.ResourceVersion)}
		r.records[v.Key] = rec
	case same(s, w.after): // nothing to write that would prove that it is so
		r.confirm(v.Key, rec)
		return
	}
	rec.busy = true
	r.start(w)
}

// sorted returns the keys in order.
func sorted[V any](keys map[view.ObjectKey]V) []view.ObjectKey {
	return slices.SortedFunc(maps.Keys(keys), view.ObjectKey.Compare)
}

// union returns the addresses of both, each once, those of a first.
func union(a, b []netip.Addr) []netip.Addr {
	out := slices.Clone(a)
	for _, x := range b {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}
