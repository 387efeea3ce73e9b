package assign

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/view"
)

// probeRetryInterval is when an unanswered AddressProbe is created again, since it may have been
// deleted.
const probeRetryInterval = 30 * time.Second

// probesByAddress are the AddressProbes that the worker has created.
type probesByAddress map[netip.Addr]*openProbe

// openProbe is the probe of one address.
type openProbe struct {
	service view.ObjectKey
	// objectUID is that of the object; a result in an object with another uid is old.
	objectUID types.UID
	// writeInFlight says that a write of the object has not ended.
	writeInFlight bool
	// createdAt is when the object was created. failures counts failed attempts in a row.
	createdAt           time.Time
	consecutiveFailures int
	retryAt             time.Time
}

// probeName is the name of the AddressProbe for an address: one per address, so that an address is
// not probed twice at once.
func probeName(a netip.Addr) string { return strings.ReplaceAll(a.StringExpanded(), ":", "-") }

// createAndDeleteAddressProbes creates an AddressProbe for each proposed address, deletes those
// that are not needed any more, and handles results.
func (r *ServiceWorker) createAndDeleteAddressProbes(ctx context.Context) {
	if answers := r.workQueue.takeProbesChanged(); answers {
		r.readProbeAnswers(ctx)
	}
	if !r.ledger.HasAddressesWithheldForProbe() && len(r.openProbeByAddress) == 0 {
		return
	}
	proposed := map[netip.Addr]allocate.WithheldAddress{}
	for _, w := range r.ledger.WithheldAddressesAwaitingProbe() {
		proposed[w.Address] = w
	}
	now := r.Now()
	for a, w := range proposed {
		p := r.openProbeByAddress[a]
		if p == nil {
			p = &openProbe{service: w.ServiceThatMayHoldIt}
			r.openProbeByAddress[a] = p
		}
		old := p.objectUID != "" && now.Sub(p.createdAt) >= probeRetryInterval
		if p.writeInFlight || now.Before(p.retryAt) || p.objectUID != "" && p.service == w.ServiceThatMayHoldIt && !old {
			continue
		}
		p.service, p.writeInFlight, p.objectUID = w.ServiceThatMayHoldIt, true, ""
		r.apiTaskQueue.enqueueTask(&probeWrite{address: a, objectToCreateOrNil: r.newAddressProbe(a, w.ServiceThatMayHoldIt)})
	}
	for a, p := range r.openProbeByAddress {
		if _, wanted := proposed[a]; wanted || p.writeInFlight || now.Before(p.retryAt) {
			continue
		}
		p.writeInFlight = true
		r.apiTaskQueue.enqueueTask(&probeWrite{address: a})
	}
}

// newAddressProbe returns the AddressProbe for an address.
func (r *ServiceWorker) newAddressProbe(a netip.Addr, k view.ObjectKey) *v1alpha1.AddressProbe {
	p := &v1alpha1.AddressProbe{Spec: v1alpha1.AddressProbeSpec{
		Address: a.String(), Service: v1alpha1.ServiceReference{Namespace: k.Namespace, Name: k.Name},
	}}
	p.Name = probeName(a)
	if pool := r.configuration.Snapshot.PoolThatCanAssignAll(a); pool != nil {
		p.Spec.Pool = pool.Name
	}
	return p
}

// readProbeAnswers reads the AddressProbes. One that is left over from before a restart is
// deleted.
func (r *ServiceWorker) readProbeAnswers(ctx context.Context) {
	all, err := r.API.ReadCachedAddressProbes(ctx)
	if err != nil {
		r.Log.Error("reading the AddressProbes failed", "error", err, "again", maxRetryDelay)
		time.AfterFunc(maxRetryDelay, r.workQueue.markProbesChanged)
		return
	}
	for i := range all {
		o := &all[i]
		a, err := netip.ParseAddr(o.Spec.Address)
		if err != nil || probeName(a) != o.Name {
			continue // not ours
		}
		p := r.openProbeByAddress[a]
		switch {
		case p == nil:
			r.openProbeByAddress[a] = &openProbe{writeInFlight: true}
			r.apiTaskQueue.enqueueTask(&probeWrite{address: a})
		case p.writeInFlight || p.objectUID != o.UID:
		case o.Status.Outcome == v1alpha1.ProbeOutcomeSilent:
			r.ledger.RecordUnansweredAcquireProbe(a)
			r.workQueue.addChanged(p.service)
		case o.Status.Outcome == v1alpha1.ProbeOutcomeAnswered:
			if r.quarantineAddress(ctx, a, o) {
				r.workQueue.addChanged(p.service)
			}
		}
	}
}

// quarantineAddress withholds an address that a host uses, and says whether the address was
// proposed.
func (r *ServiceWorker) quarantineAddress(ctx context.Context, a netip.Addr, o *v1alpha1.AddressProbe) bool {
	if !slices.ContainsFunc(r.ledger.WithheldAddressesAwaitingProbe(), func(w allocate.WithheldAddress) bool { return w.Address == a }) {
		return false
	}
	r.ledger.QuarantineAddressAfterProbeAnswer(a, o.Status.By)
	r.Log.Warn("a host on the segment uses an address of a pool; the address goes into quarantine", "address", a, "pool", o.Spec.Pool, "by", o.Status.By,
		"node", o.Status.Node, "reason", names.ReasonQuarantined)
	about := view.ObjectKey{Namespace: o.Spec.Service.Namespace, Name: o.Spec.Service.Name}
	if s, err := r.API.ReadCachedService(ctx, about); err == nil && s != nil {
		r.RecordEvent(s, corev1.EventTypeWarning, names.EventAllocationFailed, string(names.ReasonQuarantined)+": host "+o.Status.By+" answered for "+
			a.String()+" on the segment of node "+o.Status.Node+"; another address is tried")
	}
	return true
}

// probeWrite creates an AddressProbe, or deletes it if object is nil.
type probeWrite struct {
	address             netip.Addr
	objectToCreateOrNil *v1alpha1.AddressProbe
}

// runTask implements task.
func (w *probeWrite) runTask(ctx context.Context, api WorkerAPI) taskResultHandler {
	var now *v1alpha1.AddressProbe
	var err error
	if w.objectToCreateOrNil == nil {
		err = api.DeleteProbe(ctx, probeName(w.address))
	} else {
		now, err = api.CreateOrReplaceProbe(ctx, w.objectToCreateOrNil)
	}
	return func(_ context.Context, r *ServiceWorker) { r.handleProbeWriteResult(w, now, err) }
}

// handleProbeWriteResult handles the result of a write.
func (r *ServiceWorker) handleProbeWriteResult(w *probeWrite, now *v1alpha1.AddressProbe, err error) {
	p := r.openProbeByAddress[w.address]
	p.writeInFlight = false
	switch {
	case err != nil:
		p.consecutiveFailures++
		wait := retryDelay(p.consecutiveFailures)
		p.retryAt = r.Now().Add(wait)
		r.workQueue.wakeWorkerAfter(wait)
		r.Log.Error("writing an AddressProbe failed", "address", w.address, "error", err, "reason", names.ReasonWriteFailed, "again", wait)
	case w.objectToCreateOrNil == nil:
		delete(r.openProbeByAddress, w.address)
		r.workQueue.wakeWorker() // the address may have been proposed again meanwhile
	default:
		p.objectUID, p.createdAt, p.consecutiveFailures, p.retryAt = now.UID, r.Now(), 0, time.Time{}
		r.workQueue.markProbesChanged() // the result may have arrived before this answer
		r.workQueue.wakeWorkerAfter(probeRetryInterval)
	}
}
