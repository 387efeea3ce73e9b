package reconcile

import (
	"context"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/view"
)

// A Service can show an address that another one holds, as far as the Ledger knows, without a right
// to share it. Mostly its own edit broke the right: a port, the sharing key, the traffic policy. It
// can also be the Ledger that is behind. The API server knows which, and is asked for these few
// Services only: anybody who may edit a Service can break a right as often as he likes, so that it
// must not cost a reading of all Services.

// Limits of what a broken right to share may cost.
const (
	// maxChecks is how many checks in a row may lead to nothing before all Services are read. With
	// the delays between them it is about six seconds.
	maxChecks = 7
	// reloadInterval is the least time between two readings of all Services for that cause.
	reloadInterval = 30 * time.Second
)

// sharingCheck asks the API server about a Service whose status shows addresses that others hold, and
// about one of these holders for each address.
type sharingCheck struct {
	service view.ObjectKey
	holders []view.ObjectKey
	epoch   int
}

// checkSharing starts a check. Until it has ended nothing is decided for the Service.
func (r *Services) checkSharing(v *view.Service) {
	r.records[v.Key].busy = true
	c := &sharingCheck{service: v.Key, epoch: r.epoch}
	for _, a := range v.AssignedAddresses {
		if rivals := r.ledger.Rivals(a, v); len(rivals) > 0 && !slices.Contains(c.holders, rivals[0]) {
			c.holders = append(c.holders, rivals[0])
		}
	}
	r.start(c)
}

// run implements task.
func (c *sharingCheck) run(ctx context.Context, api API) result {
	live := map[view.ObjectKey]*corev1.Service{}
	for _, k := range append([]view.ObjectKey{c.service}, c.holders...) {
		s, err := api.Live(ctx, k)
		if err != nil {
			return func(_ context.Context, r *Services) { r.retryCheck(c, err) }
		}
		live[k] = s
	}
	return func(_ context.Context, r *Services) { r.finishCheck(c, live) }
}

// retryCheck has a Service looked at again whose check got no answer.
func (r *Services) retryCheck(c *sharingCheck, err error) {
	rec := r.free(c.service)
	rec.failures++
	r.problem(c.service, err, delay(rec.failures))
	r.lookAfter(c.service, delay(rec.failures))
}

// finishCheck takes in what the API server says of the Services of a check. An answer from before the
// Ledger was built anew counts for nothing.
func (r *Services) finishCheck(c *sharingCheck, live map[view.ObjectKey]*corev1.Service) {
	rec, s := r.free(c.service), live[c.service]
	switch {
	case c.epoch != r.epoch:
		r.inbox.add(c.service)
		return
	case s == nil || s.UID != rec.uid:
		r.release(c.service, "the Service is gone")
		return
	}
	rec.version = max(rec.version, versionOf(s.ResourceVersion))
	h := &holder{view.FromService(s), s.ResourceVersion}
	if !r.ours(&h.Service) { // it is dismissed when the cache shows it so
		r.inbox.add(c.service)
		return
	}
	holders := map[view.ObjectKey]*holder{}
	for _, k := range c.holders {
		if other := r.refreshHolder(k, live[k]); other != nil {
			holders[k] = other
		}
	}
	switch {
	case !r.clashes(&h.Service):
		r.keepUsable(h)
	case r.exchange(h, holders):
	case r.lost(&h.Service, holders):
		r.Log.Info("a Service has no right any more to an address that it has", "service", h.Key.String(), "addresses", h.AssignedAddresses)
		r.keepUsable(h)
		rec.loaded = versionOf(h.version)
	default:
		r.checkLater(rec, h.Key)
		return
	}
	rec.checks, rec.failures = 0, 0
	r.inbox.add(c.service)
}

// refreshHolder takes in what the API server says of a holder, and returns the holder as it is; nil
// when it is not ours any more, or when a write to it is under way, which says more.
func (r *Services) refreshHolder(k view.ObjectKey, s *corev1.Service) *holder {
	rec := r.records[k]
	switch {
	case rec == nil || rec.busy:
		return nil
	case s == nil || s.UID != rec.uid:
		r.release(k, "the Service is gone")
		r.inbox.add(k)
		return nil
	}
	h := &holder{view.FromService(s), s.ResourceVersion}
	rec.version = max(rec.version, versionOf(h.version))
	r.inbox.add(k)
	if !r.ours(&h.Service) {
		return nil
	}
	// One whose status somebody has wiped holds what it had until its status says so again.
	if len(h.AssignedAddresses) > 0 && !r.clashes(&h.Service) {
		r.keepUsable(h)
	}
	return h
}

// holder is a Service as the API server has it.
type holder struct {
	view.Service
	version string
}

// keepUsable records that a Service holds what its status shows, and what a pending assignment may yet
// write there, as far as nobody else is in the way.
func (r *Services) keepUsable(h *holder) {
	before, _ := r.ledger.Held(h.Key)
	now := slices.DeleteFunc(union(h.AssignedAddresses, r.journal.fence.Addresses(h.Key, h.version)), func(a netip.Addr) bool {
		return !r.ledger.Usable(a, &h.Service)
	})
	r.ledger.Commit(&h.Service, now, h.RecordedPool)
	for _, a := range before.Addresses {
		switch {
		case slices.Contains(now, a):
		case len(r.ledger.Holders(a)) == 0:
			r.counters.stale, r.wakePending = true, true
		default:
			r.wakeSharers = true
		}
	}
}

// wake has those Services looked at that wait for what has become free: all of them, or only those that
// may share an address. Anybody can change a right to share as often as he likes, and most do not share.
func (r *Services) wake() {
	keys := sorted(r.pending.reasons)
	if !r.wakePending {
		keys = slices.DeleteFunc(keys, func(k view.ObjectKey) bool {
			rec := r.records[k]
			return rec == nil || rec.sharing == ""
		})
	}
	r.wakePending, r.wakeSharers = false, false
	r.inbox.addLater(keys...)
}

// lost says whether the Service has lost each address that others hold, as far as the Ledger knows:
// the API server shows the address with a holder that may not share it with the Service.
func (r *Services) lost(v *view.Service, holders map[view.ObjectKey]*holder) bool {
	for _, a := range v.AssignedAddresses {
		rivals := r.ledger.Rivals(a, v)
		proof := func(k view.ObjectKey) bool {
			h := holders[k]
			return h != nil && slices.Contains(h.AssignedAddresses, a) && !allocate.MayShare(v, &h.Service)
		}
		if len(rivals) > 0 && !slices.ContainsFunc(rivals, proof) {
			return false
		}
	}
	return true
}

// exchange records Services that were all edited so that they may share again, while the Ledger still
// has each as it was before and so in the way of the others. It returns false, and changes nothing,
// when that is not how it is.
func (r *Services) exchange(h *holder, holders map[view.ObjectKey]*holder) bool {
	var edited []*holder
	for _, a := range h.AssignedAddresses {
		for _, k := range r.ledger.Rivals(a, &h.Service) {
			other := holders[k]
			if other == nil || len(other.AssignedAddresses) == 0 || !allocate.MayShare(&h.Service, &other.Service) || !r.onlyRival(h.Key, &other.Service) {
				return false
			}
			edited = append(edited, other)
		}
	}
	for i, x := range edited {
		for _, y := range edited[:i] {
			if x != y && !allocate.MayShare(&x.Service, &y.Service) {
				return false
			}
		}
	}
	r.keepUsable(h)
	for _, other := range edited {
		r.keepUsable(other)
	}
	r.keepUsable(h)
	return true
}

// onlyRival says whether nobody but the Service k is in the way of what the other Service shows.
func (r *Services) onlyRival(k view.ObjectKey, h *view.Service) bool {
	return !slices.ContainsFunc(h.AssignedAddresses, func(a netip.Addr) bool {
		return slices.ContainsFunc(r.ledger.Rivals(a, h), func(rival view.ObjectKey) bool { return rival != k })
	})
}

// checkLater has a Service checked again of which the API server's answers did not tell enough, and all
// Services read when that goes on. The Service keeps what it has until then.
func (r *Services) checkLater(rec *record, k view.ObjectKey) {
	rec.checks++
	if rec.checks < maxChecks {
		r.lookAfter(k, delay(rec.checks))
		return
	}
	if wait := time.Until(r.lastReload.Add(reloadInterval)); wait > 0 {
		r.lookAfter(k, wait)
		return
	}
	r.lastReload = time.Now()
	r.suspects[k] = struct{}{}
	r.requireReload(causeSharing)
}

// Causes of a reading of all Services, as the metric gantry_controller_reloads_total names them.
const (
	causeStart         = "Start"
	causeSharing       = "SharingUnclear"
	causeLedgerChanged = "LedgerChanged"
	causeLedgerDeleted = "LedgerDeleted"
)

// requireReload has all Services read before anything else is decided.
func (r *Services) requireReload(cause string) {
	r.reloadCause = cause
	r.loaded.Store(false)
	r.inbox.poke()
}
